"""Embeddings of each layout in either prompt, in company with others; diffusers' textual inversion is the oracle."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mezzotint.families.base import Prompt
from mezzotint.families.embedding import EmbeddingSet
from mezzotint.families.sd import StableDiffusion
from tests.models import WINDOW, build_sd, build_sdxl
from tests.parity.rig import COMPANY, Asked, Rig, assert_equal, difference
from tests.requests import request

COUNTS = {"one": 1, "three": 3}


def saved(folder: Path, name: str, count: int, widths: list[int]) -> list[Tensor]:
    """A file of random vectors, as loud as the tests' own tokens. Returns those of each text encoder."""
    noise = torch.Generator().manual_seed(count)
    vectors = [torch.randn(count, width, generator=noise) for width in widths]
    layouts: dict[str, Tensor] = {"<one>": vectors[0][0]} if count == 1 else {"emb_params": vectors[0]}
    if len(widths) == 2:
        layouts = dict(zip(("clip_l", "clip_g"), vectors, strict=True))
    save_file(layouts, folder / f"{name}.safetensors")
    return vectors


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    folder = tmp_path_factory.mktemp(request.param)
    built = Rig({"sd": build_sd, "sdxl": build_sdxl}[request.param](folder / "tiny"))
    pipeline = built.pipeline
    encoders = [(pipeline.tokenizer, pipeline.text_encoder)]
    if built.is_xl:
        encoders.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
    for name, count in COUNTS.items():
        vectors = saved(folder, name, count, [encoder.config.hidden_size for _, encoder in encoders])
        for (tokenizer, encoder), own in zip(encoders, vectors, strict=True):
            pipeline.load_textual_inversion(own, token=name, tokenizer=tokenizer, text_encoder=encoder)
    return built


def naming(rig: Rig, **fields: Any) -> Asked:
    texts = fields.get("prompt", "") + fields.get("negative_prompt", "")
    there = tuple(rig.path.parent / f"{name}.safetensors" for name in COUNTS if name in texts)
    return Asked(request=request(**fields), embeddings=there)


@pytest.mark.parametrize(
    "texts",
    [
        {"prompt": "one"},
        {"prompt": "a dog, three, fog"},
        {"prompt": "fog", "negative_prompt": "three one"},
        {"prompt": "one and three and one", "negative_prompt": "three"},
    ],
    ids=str,
)
def test_a_picture_equals_the_pipelines(rig: Rig, texts: dict[str, str]) -> None:
    asked = naming(rig, **texts)
    expected = rig.oracle(asked)
    as_words = rig.draw([request(**texts)])[0][0]
    assert difference(as_words, expected) > 5, "the embedding changes nothing"
    assert_equal(rig.draw([asked])[0][0], expected)
    assert_equal(rig.draw([*COMPANY, Asked(request=request(**texts)), asked], stagger=1)[-1][0], expected)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    folder = tmp_path_factory.mktemp("family")
    saved(folder, "one", 1, [32])
    saved(folder, "three", 3, [32])
    return StableDiffusion(build_sd(folder / "tiny"), torch.device("cpu"), torch.float32)


def read(family: StableDiffusion, *names: str) -> EmbeddingSet:
    folder = family.layout._path.parent  # type: ignore[attr-defined]
    return tuple((name, family.load_embedding(folder / f"{name}.safetensors")) for name in names)


def hidden(family: StableDiffusion, text: str, embeddings: EmbeddingSet) -> Tensor:
    asked = Prompt(text=text, syntax="weighted", clip_skip=None, embeddings=embeddings)
    assert family.encode([asked])[0].windows == family.windows(asked)
    return family.encode([asked])[0].hidden


def test_the_token_of_its_file_names_it_too(family: StableDiffusion) -> None:
    embeddings = read(family, "one")
    by_id = hidden(family, "a one b", embeddings)
    assert torch.equal(hidden(family, "a <ONE> b", embeddings), by_id)
    assert torch.equal(hidden(family, "a embedding:one b", embeddings), by_id)
    assert not torch.allclose(hidden(family, "a one b", ()), by_id)


def test_one_that_does_not_fit_into_a_window_begins_the_next(family: StableDiffusion) -> None:
    embeddings, words = read(family, "three"), "a b c d e f g h i j k l m"  # one token less than a window holds
    split = hidden(family, f"{words} three", embeddings)
    assert len(split) == 2 * WINDOW
    assert torch.allclose(split[WINDOW:], hidden(family, "three", embeddings), atol=1e-5)
    assert len(hidden(family, f"{words[:-4]} three", embeddings)) == WINDOW


def test_a_weight_counts_for_all_of_its_vectors(family: StableDiffusion) -> None:
    embeddings = read(family, "three")
    plain, weighed = hidden(family, "a three", embeddings), hidden(family, "a (three:2)", embeddings)
    scale = weighed[0] / plain[0]  # the start token carries no weight
    assert torch.allclose(weighed[2:5], plain[2:5] * 2 * scale, atol=1e-5)
    assert torch.allclose(weighed[5:], plain[5:] * scale, atol=1e-5)


def test_of_another_width_or_too_long_it_is_refused(family: StableDiffusion, tmp_path: Path) -> None:
    saved(tmp_path, "wide", 2, [48])
    with pytest.raises(ValueError, match="48 channels; this model's text has 32"):
        family.load_embedding(tmp_path / "wide.safetensors")
    saved(tmp_path, "both", 2, [32, 48])
    with pytest.raises(ValueError, match="32 and 48 channels; this model's text has 32"):
        family.load_embedding(tmp_path / "both.safetensors")
    saved(tmp_path, "long", WINDOW, [32])
    with pytest.raises(ValueError, match=f"{WINDOW} tokens; this model reads {WINDOW - 2}"):
        family.load_embedding(tmp_path / "long.safetensors")
