"""transformers is the oracle of our text encoder and tokenizer, in both layouts that folders have."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from mezzotint.families.base import MAX_WINDOWS, Prompt
from mezzotint.families.clip import ClipTextEncoder, ClipTokenizer
from mezzotint.families.layouts import Folder
from mezzotint.families.sd import StableDiffusion
from tests.models import WINDOW

TEXTS = [
    "",
    "a slice of pizza",
    "  Spaces\tand\nLINES  ",
    "it's 1999: don't (stop) [now] -- 3.14!",
    "naïve café Ünïcödé дом 家 🏠👩‍🚀",
    "<|startoftext|> inside <|endoftext|> text",
    "x" * 100,
    "\u0000\u200b\ufeff",
]


@pytest.fixture(scope="module")
def older(random_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer in the older layout: vocab.json, merges.txt, special_tokens_map.json."""
    folder = tmp_path_factory.mktemp("older")
    whole = json.loads((random_sd / "tiny" / "tokenizer" / "tokenizer.json").read_text())
    vocabulary = whole["model"]["vocab"]
    merges = [("a", "b</w>"), ("p", "i"), ("pi", "z")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    special = {"bos_token": {"content": "<|startoftext|>"}, "eos_token": "<|endoftext|>", "pad_token": "!"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": WINDOW, "pad_token": "!"}))
    return folder


@pytest.fixture(scope="module")
def padded(random_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers saves a tokenizer that was used to fill windows: the file itself says to pad and to cut."""
    folder = tmp_path_factory.mktemp("padded")
    shutil.copytree(random_sd / "tiny" / "tokenizer", folder, dirs_exist_ok=True)
    used = Tokenizer.from_file(str(folder / "tokenizer.json"))
    used.enable_padding(length=WINDOW, pad_id=1, pad_token="<|endoftext|>")
    used.enable_truncation(WINDOW)
    used.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("text", [*TEXTS, "more words than a window holds " * 9])
@pytest.mark.parametrize("layout", ["whole", "older", "padded"])
def test_tokens_are_those_of_transformers(random_sd: Path, older: Path, padded: Path, layout: str, text: str) -> None:
    folder = {"whole": random_sd / "tiny" / "tokenizer", "older": older, "padded": padded}[layout]
    oracle = CLIPTokenizer.from_pretrained(folder)
    ours = ClipTokenizer(folder)
    assert ours.ids(text) == oracle(text, add_special_tokens=False, verbose=False).input_ids
    assert (ours.start, ours.end) == (oracle.bos_token_id, oracle.eos_token_id)
    assert (ours.pad, ours.window) == (oracle.pad_token_id, WINDOW)


@pytest.mark.parametrize("told", [10**9, 10**30])
def test_a_window_that_the_tokenizer_does_not_know_is_the_encoders(random_sd: Path, tmp_path: Path, told: int) -> None:
    shutil.copytree(random_sd / "tiny", tmp_path, dirs_exist_ok=True)
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": told}))
    assert ClipTokenizer(*Folder(tmp_path).vocabulary("tokenizer")).window == WINDOW
    config.write_text("{}")
    assert ClipTokenizer(*Folder(tmp_path).vocabulary("tokenizer")).window == WINDOW


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_hidden_states_are_those_of_transformers(random_sd: Path, skip: int) -> None:
    model = random_sd / "tiny"
    folder = model / "text_encoder"
    ids = torch.randint(0, 300, (3, WINDOW), generator=torch.Generator().manual_seed(1))
    oracle = CLIPTextModel.from_pretrained(folder).eval()
    ours = ClipTextEncoder.load(Folder(model), "text_encoder", torch.device("cpu"), torch.float32)
    with torch.no_grad():
        hidden = oracle(ids, output_hidden_states=True).hidden_states[-(skip + 1)]
        expected = oracle.final_layer_norm(hidden)
        assert torch.allclose(ours(ids, skip=skip), expected, atol=1e-5)
        assert not torch.allclose(ours(ids, skip=(skip + 1) % 3), expected, atol=1e-2)


def test_a_long_prompt_is_whole_windows_one_after_another(random_sd: Path) -> None:
    family = StableDiffusion(random_sd / "tiny", torch.device("cpu"), torch.float32)
    words = "a b c d e f g h i j k l m n"  # one token each, as many as a window holds
    asked = Prompt(text=words, syntax="plain", clip_skip=None)
    assert family.windows(asked) == 1
    (one,) = family.encode([asked])
    (two,) = family.encode([Prompt(text=f"{words} {words}", syntax="plain", clip_skip=None, windows=1)])
    assert (one.windows, two.windows) == (1, 2)
    assert torch.allclose(two.hidden[:WINDOW], one.hidden, atol=1e-5)
    assert torch.allclose(two.hidden[WINDOW:], one.hidden, atol=1e-5)
    (padded,) = family.encode([Prompt(text=words, syntax="plain", clip_skip=None, windows=2)])
    (empty,) = family.encode([Prompt(text="", syntax="plain", clip_skip=None, windows=1)])
    assert torch.allclose(padded.hidden[WINDOW:], empty.hidden, atol=1e-5)
    (cut,) = family.encode([Prompt(text=words * 20, syntax="plain", clip_skip=None, windows=1)])
    assert (cut.windows, cut.cut) == (MAX_WINDOWS, True)


def test_weights_scale_their_tokens_and_keep_the_mean_of_the_window(random_sd: Path) -> None:
    family = StableDiffusion(random_sd / "tiny", torch.device("cpu"), torch.float32)

    def hidden(text: str, syntax: str = "weighted") -> Tensor:
        (encoded,) = family.encode([Prompt(text=text, syntax=syntax, clip_skip=None, windows=1)])
        return encoded.hidden

    plain = hidden("a b c", "plain")
    assert torch.equal(hidden("a b c"), plain)
    assert torch.equal(hidden("a (b:1.0) c"), plain)
    weighed = hidden("a (b:3) c")
    scale = weighed[0] / plain[0]  # the start token carries no weight: all of it is the mean's correction
    assert torch.allclose(weighed[2], plain[2] * 3 * scale, atol=1e-5)
    assert torch.allclose(weighed[3], plain[3] * scale, atol=1e-5)
    assert torch.allclose(weighed.mean(), plain.mean(), atol=1e-6)
    assert not torch.allclose(hidden("a (b:3) c", "plain"), plain), "plain reads the marks as text"
    assert len(hidden("a BREAK b")) == 2 * WINDOW
