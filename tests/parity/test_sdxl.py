"""SDXL's base model against its pipelines: text, pictures, ControlNet, LoRA, alone and in company."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mezzotint.families.table import SCHEDULERS
from mezzotint.request import ControlNetUse, LoraUse
from tests.models import build_controlnet, build_lora, build_sdxl
from tests.parity.rig import COMPANY, Asked, Rig, apart, assert_equal, difference, save_pictures
from tests.requests import request


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sdxl")
    build_sdxl(root / "tiny")
    build_controlnet(root / "edges", root / "tiny", seed=2)
    build_lora(root / "style.safetensors", root / "tiny", seed=3)
    build_lora(root / "kohya.safetensors", root / "tiny", seed=3, layout="kohya")
    kohya = load_file(root / "kohya.safetensors")
    save_file({renumbered(name): tensor for name, tensor in kohya.items()}, root / "stability.safetensors")
    save_pictures(root)
    return root


@pytest.fixture(scope="module")
def rig(folder: Path) -> Rig:
    return Rig(folder / "tiny")


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_a_picture_equals_the_pipelines(rig: Rig, scheduler: str) -> None:
    asked = request(scheduler=scheduler, negative_prompt="blur")
    expected = rig.oracle(asked)
    assert_equal(rig.draw([asked])[0][0], expected)
    assert_equal(rig.draw([*COMPANY, asked], stagger=2)[-1][0], expected)
    assert difference(rig.oracle(request(scheduler=scheduler, seed=8)), expected) > 5, "any picture would pass"


@pytest.mark.parametrize(
    "changes",
    [{"negative_prompt": ""}, {"guidance_scale": 1.0}, {"clip_skip": 1}, {"width": 24, "height": 32}],
    ids=str,
)
def test_a_field_means_what_it_means_in_diffusers(rig: Rig, changes: dict[str, Any]) -> None:
    asked = request(**changes)
    assert_equal(rig.draw([asked, *COMPANY])[0][0], rig.oracle(asked))


@pytest.mark.parametrize("kind", ["img2img", "inpainting", "controlnet", "lora", "all"])
def test_every_type_equals_the_pipelines(rig: Rig, folder: Path, kind: str) -> None:
    asked = Asked(request=request(type=kind if kind != "all" else "inpainting"))
    if kind in ("img2img", "inpainting", "all"):
        changed = replace(asked.request, image="asset:i", strength=0.7)
        asked = replace(asked, request=changed, files={"image": folder / "image.png"})
    if kind in ("inpainting", "all"):
        changed = replace(asked.request, mask="asset:m")
        asked = replace(asked, request=changed, files=asked.files | {"mask": folder / "mask.png"})
    if kind in ("controlnet", "all"):
        use = ControlNetUse(
            model="edges", image="asset:e", preprocessor="none", options={}, scale=0.8, start=0.0, end=0.7,
            resize_mode="stretch", control_mode="balanced",
        )  # fmt: skip
        changed = replace(asked.request, controlnets=(use,))
        files = asked.files | {"controlnets[0].image": folder / "edges.png"}
        asked = replace(asked, request=changed, files=files, nets=(folder / "edges",))
    if kind in ("lora", "all"):
        changed = replace(asked.request, loras=(LoraUse(name="style", scale=0.8),))
        asked = replace(asked, request=changed, loras=(folder / "style.safetensors",))
    expected = rig.oracle(asked)
    assert difference(rig.oracle(request()), expected) > 1
    assert_equal(rig.draw([asked])[0][0], expected)
    assert_equal(rig.draw([*COMPANY, asked], stagger=1)[-1][0], expected)


def test_the_layout_of_kohya_is_read(rig: Rig, folder: Path) -> None:
    half = replace(request(type="lora"), loras=(LoraUse(name="style", scale=0.4),))
    whole = replace(half, loras=(LoraUse(name="kohya", scale=0.8),))
    stability = replace(whole, loras=(LoraUse(name="stability", scale=0.8),))
    theirs = rig.draw([Asked(request=half, loras=(folder / "style.safetensors",))])[0][0]
    ours = rig.draw([Asked(request=whole, loras=(folder / "kohya.safetensors",))])[0][0]
    assert_equal(ours, theirs)
    numbered = rig.draw([Asked(request=stability, loras=(folder / "stability.safetensors",))])[0][0]
    assert_equal(numbered, theirs)


def test_a_kohya_lora_may_adapt_what_lies_outside_of_all_blocks(rig: Rig, tmp_path: Path) -> None:
    names = {
        "conv_in": "input_blocks_0_0",
        "conv_out": "out_2",
        "time_embedding.linear_1": "time_embed_0",
        "time_embedding.linear_2": "time_embed_2",
        "add_embedding.linear_1": "label_emb_0_0",
        "add_embedding.linear_2": "label_emb_0_2",
    }
    tensors = {}
    for ours, theirs in names.items():
        weight = rig.family.unet.get_submodule(ours).weight
        tensors[f"lora_unet_{theirs}.lora_down.weight"] = torch.ones(2, *weight.shape[1:])
        tensors[f"lora_unet_{theirs}.lora_up.weight"] = torch.ones(weight.shape[0], 2, *[1] * (weight.dim() - 2))
    save_file(tensors, tmp_path / "outside.safetensors")
    assert set(rig.family.load_lora(tmp_path / "outside.safetensors").parts["unet"]) == set(names)


def test_a_lora_of_the_pooled_texts_projection_counts_as_in_the_pipeline(
    rig: Rig, folder: Path, tmp_path: Path
) -> None:
    noise = torch.Generator().manual_seed(4)
    down, up = (torch.randn(shape, generator=noise) * 3 for shape in ((4, 32), (24, 4)))
    named = {"text_encoder_2.text_projection.lora_A.weight": down, "text_encoder_2.text_projection.lora_B.weight": up}
    save_file(load_file(folder / "style.safetensors") | named, tmp_path / "pooled.safetensors")
    style, pooled = (
        Asked(request=request(loras=(LoraUse(name=name, scale=0.5),)), loras=(root / f"{name}.safetensors",))
        for name, root in (("style", folder), ("pooled", tmp_path))
    )
    expected = rig.oracle(pooled)
    assert apart(rig.oracle(style), expected) > 3e-3, "the projection changes nothing"
    assert_equal(rig.draw([pooled])[0][0], expected)
    text = pooled.request.prompt + " in the fog by the sea and far from here"
    longer = replace(pooled, request=replace(pooled.request, prompt=text))  # of several windows, the first one counts
    assert_equal(rig.draw([request(), style, longer])[-1][0], rig.draw([longer])[0][0])


# the tiny model's blocks in the numbering of the original code: one resnet a level on the way down, two on the way up
STABILITY = {
    "down_blocks_0_resnets_0": "input_blocks_1_0",
    "down_blocks_0_downsamplers_0_conv": "input_blocks_2_0_op",
    "down_blocks_1_resnets_0": "input_blocks_3_0",
    "down_blocks_1_attentions_0": "input_blocks_3_1",
    "mid_block_resnets_0": "middle_block_0",
    "mid_block_attentions_0": "middle_block_1",
    "mid_block_resnets_1": "middle_block_2",
    "up_blocks_0_resnets_0": "output_blocks_0_0",
    "up_blocks_0_attentions_0": "output_blocks_0_1",
    "up_blocks_0_resnets_1": "output_blocks_1_0",
    "up_blocks_0_attentions_1": "output_blocks_1_1",
    "up_blocks_1_resnets_0": "output_blocks_2_0",
    "up_blocks_1_resnets_1": "output_blocks_3_0",
}


def renumbered(name: str) -> str:
    for ours, theirs in STABILITY.items():
        name = name.replace(f"lora_unet_{ours}_", f"lora_unet_{theirs}_")
    return name.replace("_conv1.", "_in_layers_2.") if "_blocks_" in name else name
