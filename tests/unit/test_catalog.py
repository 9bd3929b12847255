"""Folders as they come, and as an attacker makes them: each is listed, and none is used that should not be."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mezzotint.catalog import (
    BUNDLED,
    BUNDLED_MODEL,
    MAX_THUMBNAIL_BYTES,
    Catalog,
    LoraDefaults,
    Model,
    fitting,
    thumbnail,
)
from mezzotint.headers import MAX_HEADER_BYTES, weight_files
from tests import single_files
from tests.models import build_controlnet, build_lora, build_sd, build_sdxl


@pytest.fixture
def root(random_sd: Path, tmp_path: Path) -> Path:
    """A models folder of one good model, to be broken."""
    shutil.copytree(random_sd, tmp_path / "models")
    return tmp_path / "models"


def scan(root: Path) -> dict[str, Model]:
    catalog = Catalog([root], root.parent / "cache")
    catalog.scan()
    return dict(catalog.models)


def test_a_good_folder_is_ready_with_its_facts(root: Path) -> None:
    model = scan(root)["tiny"]
    assert (model.state, model.family, model.scheduler, model.prediction_type) == ("ready", "sd", "ddim", "epsilon")
    assert (model.width, model.height, model.size_multiple, model.min_size) == (16, 16, 2, 4)
    assert model.bytes == sum(path.stat().st_size for path in root.rglob("*.safetensors"))
    weights = [load_file(path) for path in root.rglob("*.safetensors")]
    assert model.parameters == sum(tensor.numel() for file in weights for tensor in file.values())


def test_the_bundled_model_is_always_there(tmp_path: Path) -> None:
    assert scan(tmp_path / "none")[BUNDLED_MODEL].state == "ready"


def test_the_bundled_model_has_its_adapters_beside_it_within_90_mb(tmp_path: Path) -> None:
    found = scan(tmp_path / "none")
    fits = {model.id: (model.kind, fitting(model, found.values())) for model in found.values() if model.id != "icons"}
    assert fits == {
        "icons-canny": ("controlnet", ["icons"]),
        "blob": ("lora", ["icons"]),
        "monochrome": ("lora", ["icons"]),
        "quick": ("lora", ["icons"]),
    }
    assert found["quick"].lora_defaults == LoraDefaults(num_inference_steps=4, guidance_scale=1.0, scheduler="ddim")
    assert found["icons-canny"].control_type == "canny"
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) <= 90_000_000


def test_an_embedding_is_known_by_its_tensors_and_goes_with_models_of_its_text(root: Path) -> None:
    files = {
        "a1111": {"emb_params": torch.zeros(3, 32)},
        "toy": {"<cat>": torch.zeros(32)},
        "both": {"clip_l": torch.zeros(2, 24), "clip_g": torch.zeros(2, 8)},
        "wide": {"emb_params": torch.zeros(1, 768)},
        "long": {"emb_params": torch.zeros(76, 32)},
        "uneven": {"clip_l": torch.zeros(2, 24), "clip_g": torch.zeros(1, 8)},
        "empty": {"emb_params": torch.zeros(0, 32)},
    }
    for name, tensors in files.items():
        save_file(tensors, root / f"{name}.safetensors")
    found = scan(root)
    assert {found[name].kind for name in files} == {"embedding"}
    told = {name: (found[name].tokens, found[name].trained_as, fitting(found[name], found.values())) for name in files}
    assert told["a1111"] == (3, "emb_params", ["tiny"])
    assert told["toy"] == (1, "<cat>", ["tiny"])
    assert (told["both"][0], told["both"][2]) == (2, ["tiny"])
    assert told["wide"][2] == []
    for name, words in {"long": "76 tokens", "uneven": "as many for each", "empty": "0 tokens"}.items():
        assert found[name].state == "invalid"
        assert words in str(found[name].reason)


def test_a_png_beside_a_model_is_its_thumbnail(root: Path, tmp_path: Path) -> None:
    build_lora(root / "ink.v2.safetensors", root / "tiny")
    shutil.copytree(root / "tiny", root / "tiny.v1")
    for name in ("tiny.v1", "ink.v2"):
        (root / f"{name}.png").write_bytes(b"a picture")
    found = scan(root)
    assert thumbnail(found["tiny.v1"]) == root / "tiny.v1.png"
    assert thumbnail(found["ink.v2"]) == root / "ink.v2.png"
    assert thumbnail(found["tiny"]) is None
    (root / "tiny.png").write_bytes(b"x" * (MAX_THUMBNAIL_BYTES + 1))
    assert thumbnail(found["tiny"]) is None
    (tmp_path / "secret").write_text("not a picture of a model")
    (root / "ink.v2.png").unlink()
    (root / "ink.v2.png").symlink_to(tmp_path / "secret")
    assert thumbnail(found["ink.v2"]) is None


def test_mezzotint_json_sets_the_defaults(root: Path) -> None:
    (root / "tiny" / "mezzotint.json").write_text('{"defaults": {"num_inference_steps": 3, "width": 32}}')
    model = scan(root)["tiny"]
    assert (model.num_inference_steps, model.width, model.height) == (3, 32, 16)


def test_a_second_model_of_the_same_name_gets_its_digest(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(root, other)
    catalog = Catalog([root, other], tmp_path / "cache")
    catalog.scan()
    names = sorted(name for name in catalog.models if name.startswith("tiny"))
    assert len(names) == 2
    assert names[1].startswith("tiny~")


def test_the_digest_follows_the_bytes(root: Path) -> None:
    catalog = Catalog([root], root.parent / "cache")
    catalog.scan()
    before = catalog.digest(catalog.models["tiny"])
    assert catalog.digest(catalog.models["tiny"]) == before
    weights = root / "tiny" / "vae" / "diffusion_pytorch_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert catalog.digest(catalog.models["tiny"]) != before


def test_a_lora_is_known_by_its_tensors_however_it_is_described(root: Path) -> None:
    catalog, found = Catalog([root], root.parent / "cache"), []
    for name in ("charcoal", "ink"):
        file = build_lora(root / "ink.safetensors", root / "tiny", trained_as=name)
        catalog.scan()
        assert catalog.known_digest("ink") is None
        assert catalog.tensors_digest("ink") == ""
        data = file.read_bytes()
        assert catalog.digest(catalog.models["ink"]) == catalog.known_digest("ink") == hashlib.sha256(data).hexdigest()
        found.append(catalog.tensors_digest("ink"))
        assert found[-1] == hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert found[0] == found[1]
    assert catalog.tensors_digest("tiny") == catalog.tensors_digest("none") == ""


def test_a_cache_that_cannot_be_written_costs_the_note_not_the_model(root: Path) -> None:
    (root.parent / "cache").write_text("a file where the folder of notes would be")
    catalog = Catalog([root], root.parent / "cache")
    catalog.scan()
    assert len(catalog.digest(catalog.models["tiny"])) == 64
    assert catalog.verify(catalog.models["tiny"])[0].ok


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(model: Path) -> None:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def header_bomb(model: Path) -> None:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * 64)


def endless_header(model: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 64)


def config_bomb(model: Path) -> None:
    (model / "unet" / "config.json").write_text(" " * (2 << 20))


def pickle_beside(model: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n.")


def code_beside(model: Path) -> None:
    (model / "pipeline.py").write_text("raise SystemExit")


def foreign_component(model: Path) -> None:
    edit_json(model / "model_index.json", unet=["os", "system"])


def remote_code(model: Path) -> None:
    edit_json(model / "text_encoder" / "config.json", auto_map={"AutoModel": "evil.Model"})


def link_out(model: Path) -> None:
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    outside = model.parent.parent / "outside.safetensors"
    shutil.move(weights, outside)
    weights.symlink_to(outside)


def folder_out(model: Path) -> None:
    (model / "unet").rename(model.parent.parent / "outside")
    (model / "unet").symlink_to(model.parent.parent / "outside")


def fifo_behind_a_link(model: Path) -> None:
    folder_out(model)
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    os.mkfifo(model / "unet" / "diffusion_pytorch_model.safetensors")


def linked_folder(model: Path) -> None:
    (model / "unet").rename(model.parent / "shared")
    (model / "unet").symlink_to(model.parent / "shared")


def fifo(model: Path) -> None:
    os.mkfifo(model / "vae" / "pipe.json")


def missing_shard(model: Path) -> None:
    (model / "text_encoder" / "model.safetensors").unlink()


def five_channels(model: Path) -> None:
    edit_json(model / "unet" / "config.json", in_channels=5)


def guidance_as_input(model: Path) -> None:
    edit_json(model / "unet" / "config.json", time_cond_proj_dim=256)


def not_json(model: Path) -> None:
    (model / "model_index.json").write_text("\x00nope")


def a_list(model: Path) -> None:
    (model / "model_index.json").write_text("[]")


def no_channels(model: Path) -> None:
    edit_json(model / "vae" / "config.json", block_out_channels=4)


def no_levels(model: Path) -> None:
    edit_json(model / "vae" / "config.json", block_out_channels=[])


def no_size(model: Path) -> None:
    edit_json(model / "unet" / "config.json", sample_size=0)


def defaults_in_a_list(model: Path) -> None:
    (model / "mezzotint.json").write_text('{"defaults": []}')


def no_steps(model: Path) -> None:
    (model / "mezzotint.json").write_text('{"defaults": {"num_inference_steps": 0}}')


def no_number(model: Path) -> None:
    (model / "mezzotint.json").write_text('{"defaults": {"guidance_scale": NaN}}')


def odd_width(model: Path) -> None:
    (model / "mezzotint.json").write_text('{"defaults": {"width": 15}}')


def misspelt(model: Path) -> None:
    (model / "mezzotint.json").write_text('{"defaults": {"num_steps": 4}}')


def one_word(model: Path) -> None:
    (model / "mezzotint.json").write_text('{"trigger_words": "ink"}')


def many_layers(model: Path) -> None:
    edit_json(model / "text_encoder" / "config.json", num_hidden_layers=10**9)


def rewrite_header(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def first(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for name, entry in header.items() if name != "__metadata__")
    return found


def overlap(model: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        header["twice"] = first(header)

    rewrite_header(model, change)


def wrong_shape(model: Path) -> None:
    rewrite_header(model, lambda header: first(header).update(shape=[1 << 40, 1 << 40]))


def negative_place(model: Path) -> None:
    rewrite_header(model, lambda header: first(header).update(data_offsets=[-8, 0]))


def foreign_numbers(model: Path) -> None:
    rewrite_header(model, lambda header: first(header).update(dtype="Q4"))


def deep_header(model: Path) -> None:
    text = b"[" * 100_000
    (model / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, "where its header says"),
        (header_bomb, "header is too large"),
        (endless_header, "header is too large"),
        (config_bomb, "is over"),
        (pickle_beside, "can carry code"),
        (code_beside, "can carry code"),
        (foreign_component, "os.system"),
        (remote_code, "auto_map"),
        (link_out, "link out of the model folder"),
        (folder_out, "unet is a link out of the model folder"),
        (fifo_behind_a_link, "unet is a link out of the model folder"),
        (linked_folder, "unet is a link to a folder"),
        (fifo, "not a plain file"),
        (missing_shard, "no weights"),
        (five_channels, "5 channels"),
        (guidance_as_input, "guidance as an input"),
        (not_json, "cannot be read"),
        (a_list, "not a JSON object"),
        (no_channels, "block_out_channels is 4"),
        (no_levels, "block_out_channels is []"),
        (no_size, "sample_size is 0"),
        (defaults_in_a_list, "no JSON object"),
        (no_steps, "num_inference_steps must be a whole number from 1"),
        (no_number, "guidance_scale must be a number from 0 to 50; it is 'nan'"),
        (odd_width, "width 15 must be a multiple of 2"),
        (misspelt, "'num_steps'; they can be width"),
        (one_word, "must be a list"),
        (many_layers, "at most 256"),
        (overlap, "over another tensor"),
        (wrong_shape, "its shape needs"),
        (negative_place, "cannot be"),
        (foreign_numbers, "Q4"),
        (deep_header, "cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_cannot_be_trusted_is_listed_with_the_reason(
    root: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(root / "tiny")
    model = scan(root)["tiny"]
    assert model.state == "invalid"
    assert model.reason is not None
    assert words in model.reason
    assert str(root) not in model.reason


@pytest.mark.parametrize("name", ["old.ckpt", "old.pt", "old.bin", "old.safetensors"])
def test_a_file_that_is_a_pickle_or_empty_is_listed_with_the_reason(root: Path, name: str) -> None:
    (root / name).write_bytes(b"" if name.endswith("safetensors") else b"cos\nsystem\n.")
    model = scan(root)["old"]
    assert model.state == "invalid"
    assert model.reason is not None
    assert ("truncated" if name.endswith("safetensors") else "pickles") in model.reason


@pytest.mark.parametrize("name", ["My Ink (v1).safetensors", "_ink.safetensors", "\u58a8.safetensors"])
def test_a_name_that_cannot_be_an_id_is_listed_under_one_that_can(root: Path, name: str) -> None:
    build_lora(root / name, root / "tiny")
    (found,) = [model for model in scan(root).values() if model.path == str(root / name)]
    assert (found.state, found.id) == ("ready", {"M": "My_Ink_v1_", "_": "ink", "\u58a8": "model~fe478617"}[name[0]])
    build_lora(root / "My_Ink_v1_.safetensors", root / "tiny", seed=1)
    assert scan(root)["My_Ink_v1_"].path == str(root / "My_Ink_v1_.safetensors")


def test_a_link_to_nothing_is_listed_with_the_reason(root: Path) -> None:
    (root / "gone.safetensors").symlink_to(root / "nowhere")
    assert "link to nothing" in str(scan(root)["gone"].reason)


def test_what_may_not_be_looked_at_hides_no_other_model(root: Path) -> None:
    for name in ("lost+found", "gone.safetensors"):  # a system that says no, to root as well
        (root / name).symlink_to("x" * 300)
    found = scan(root)
    assert found["tiny"].state == "ready"
    assert "name too long" in str(found["gone"].reason)


def test_an_autoencoder_without_levels_is_not_ready(root: Path) -> None:
    shutil.copytree(root / "tiny" / "vae", root / "clear")
    edit_json(root / "clear" / "config.json", block_out_channels=[])
    found = scan(root)["clear"]
    assert (found.state, "block_out_channels" in str(found.reason)) == ("invalid", True)


@pytest.mark.parametrize(
    "changes",
    [{"conditioning_embedding_out_channels": [8, 8, 16]}, {"in_channels": 8}, {"layers_per_block": 2}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_controlnet_of_other_latents_than_the_models_fits_it_not(root: Path, changes: dict[str, Any]) -> None:
    build_controlnet(root / "net", root / "tiny")
    found = scan(root)
    assert fitting(found["net"], found.values()) == ["tiny"]
    edit_json(root / "net" / "config.json", **changes)
    found = scan(root)
    assert (found["net"].state, fitting(found["net"], found.values())) == ("ready", [])


def peft(folder: Path, model: Path, **told: object) -> Path:
    build_lora(folder / "adapter_model.safetensors", model)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | told))
    return folder


def test_a_folder_of_pefts_is_a_lora_and_its_config_counts(root: Path) -> None:
    peft(root / "ink", root / "tiny")
    (root / "ink" / "mezzotint.json").write_text('{"trigger_words": ["ink"]}')
    catalog = Catalog([root], root.parent / "cache")
    catalog.scan()
    model = catalog.models["ink"]
    assert (model.kind, model.state, model.trigger_words) == ("lora", "ready", ("ink",))
    assert "tiny" in fitting(model, catalog.models.values())
    assert model.bytes == (root / "ink" / "adapter_model.safetensors").stat().st_size
    before, tensors = catalog.digest(model), catalog.tensors_digest("ink")
    assert tensors
    peft(root / "ink", root / "tiny", lora_alpha=2)
    assert catalog.scan()
    assert catalog.digest(catalog.models["ink"]) != before
    assert catalog.tensors_digest("ink") == tensors


@pytest.mark.parametrize(
    ("told", "words"),
    [({"peft_type": "LOHA"}, "'LOHA'"), ({"init_lora_weights": "pissa_niter_16"}, "changed"), (None, "is missing")],
    ids=["kind", "base", "none"],
)
def test_a_folder_of_pefts_that_is_no_plain_lora_is_refused(
    root: Path, told: dict[str, object] | None, words: str
) -> None:
    peft(root / "ink", root / "tiny", **(told or {}))
    if told is None:
        (root / "ink" / "adapter_config.json").unlink()
    model = scan(root)["ink"]
    assert (model.kind, model.state, words in str(model.reason)) == ("lora", "invalid", True)


def test_a_file_of_pefts_beside_a_config_that_may_be_anothers_is_refused(root: Path) -> None:
    build_lora(root / "ink.safetensors", root / "tiny", layout="peft alone")
    assert scan(root)["ink"].state == "ready"
    (root / "adapter_config.json").write_text("{}")
    model = Catalog([root], root.parent / "cache")
    model.scan()
    assert "a folder of their own" in str(model.models["ink"].reason)


def test_a_suffix_in_capitals_is_the_same_suffix(root: Path) -> None:
    build_lora(root / "INK.SAFETENSORS", root / "tiny")
    (root / "OLD.CKPT").write_bytes(b"1")
    (root / "INK.png").write_bytes(b"a picture")
    found = scan(root)
    assert (found["INK"].kind, found["INK"].state) == ("lora", "ready")
    assert thumbnail(found["INK"]) == root / "INK.png"
    assert "pickles" in str(found["OLD"].reason)
    (root / "tiny" / "WEIGHTS.BIN").write_bytes(b"a pickle")
    assert "WEIGHTS.BIN is a pickle" in str(scan(root)["tiny"].reason)


def test_one_name_in_two_files_that_cannot_be_used_lists_both(root: Path) -> None:
    (root / "old.ckpt").write_bytes(b"1")
    (root / "old.pt").write_bytes(b"2")
    assert len([name for name in scan(root) if name.startswith("old")]) == 2


def test_a_scan_tells_whether_anything_came_changed_or_went(root: Path) -> None:
    catalog = Catalog([root], root.parent / "cache")
    assert catalog.scan()
    assert not catalog.scan()
    truncate(root / "tiny")
    assert catalog.scan()
    assert catalog.models["tiny"].state == "invalid"
    shutil.rmtree(root / "tiny")
    assert catalog.scan()
    assert "tiny" not in catalog.models


def test_names_of_no_text_that_come_to_one_id_are_listed_apart(root: Path) -> None:
    for name in (b"a\xfe.ckpt", b"a\xff.ckpt"):
        (root / os.fsdecode(name)).write_bytes(b"")
    found = scan(root)
    assert len([name for name in found if name.startswith("a_")]) == 2
    assert found["tiny"].state == "ready"


def test_a_setting_names_an_autoencoder_that_must_be_there(root: Path) -> None:
    shutil.copytree(root / "tiny" / "vae", root / "clear")
    catalog = Catalog([root], root.parent / "cache")
    catalog.scan()
    own = catalog.digest(catalog.models["tiny"])
    (root / "tiny" / "mezzotint.json").write_text('{"defaults": {"vae": "clear"}}')
    catalog.scan()
    assert (catalog.models["clear"].kind, catalog.models["tiny"].vae) == ("vae", "clear")
    assert catalog.models["tiny"].vae_path == str(root / "clear")
    assert catalog.vae("tiny") == ("clear", ""), "its file was not hashed yet"
    assert catalog.digest(catalog.models["tiny"]) != own
    weights = root / "clear" / "diffusion_pytorch_model.safetensors"
    assert catalog.vae("tiny") == ("clear", hashlib.sha256(weights.read_bytes()).hexdigest())
    assert catalog.vae("clear") == catalog.vae("none") == ("", "")
    (root / "clear" / "mezzotint.json").write_text("{}")
    save_file(single_files.vae_names(load_file(weights)), root / "one.SAFETENSORS")
    (root / "tiny" / "mezzotint.json").write_text('{"defaults": {"vae": "one"}}')
    catalog.scan()
    catalog.digest(catalog.models["tiny"])
    sha256 = hashlib.sha256((root / "one.SAFETENSORS").read_bytes()).hexdigest()
    assert catalog.vae("tiny") == ("one.SAFETENSORS", sha256)
    (root / "tiny" / "mezzotint.json").write_text('{"defaults": {"vae": "clear"}}')
    shutil.rmtree(root / "clear")
    catalog.scan()
    assert catalog.models["tiny"].state == "invalid"
    assert "vae" in str(catalog.models["tiny"].reason)


def test_whole_precision_is_taken_before_half_and_other_variants(tmp_path: Path) -> None:
    for name in ("model.fp16", "model", "model.non_ema", "diffusion_pytorch_model"):
        (tmp_path / f"{name}.safetensors").touch()
    assert [path.name for path in weight_files(tmp_path)] == [
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
    ]
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    assert [path.name for path in weight_files(tmp_path)] == ["model.fp16.safetensors"]


def test_every_kind_of_model_is_told_with_what_it_goes_with(tmp_path: Path) -> None:
    root = tmp_path / "kinds"
    build_sd(root / "tiny")
    build_sd(root / "painter", inpaints=True)
    build_sdxl(root / "large")
    build_controlnet(root / "tiny-canny", root / "tiny")
    build_lora(root / "ink.safetensors", root / "tiny", layout="kohya", trained_as="charcoal")
    build_lora(root / "fog.safetensors", root / "large")
    (root / "ink.json").write_text('{"trigger_words": ["ink drawing"]}')
    (root / "other").mkdir()
    (root / "other" / "config.json").write_text('{"_class_name": "Prior"}')
    found = scan(root)
    mine = {name: model for name, model in found.items() if Path(model.path).is_relative_to(root)}
    assert {name: (model.kind, model.family, model.state) for name, model in mine.items()} == {
        "tiny": ("checkpoint", "sd", "ready"),
        "painter": ("checkpoint", "sd", "ready"),
        "large": ("checkpoint", "sdxl", "ready"),
        "tiny-canny": ("controlnet", "", "ready"),
        "ink": ("lora", "", "ready"),
        "fog": ("lora", "", "ready"),
        "other": ("controlnet", "", "invalid"),
    }
    assert found["painter"].types == ("inpainting",)
    assert found["tiny-canny"].control_type == "canny"
    assert found["ink"].trigger_words == ("ink drawing",)
    assert (found["ink"].trained_as, found["fog"].trained_as) == ("charcoal", "")
    goes = {name: fitting(found[name], found.values()) for name in ("tiny-canny", "ink", "fog", "tiny")}
    assert goes == {"tiny-canny": ["painter", "tiny"], "ink": ["painter", "tiny"], "fog": ["large"], "tiny": []}


def test_a_published_folder_with_a_safety_checker_is_usable(root: Path) -> None:
    edit_json(root / "tiny" / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert scan(root)["tiny"].state == "ready"
