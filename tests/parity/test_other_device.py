"""What a GPU would refuse: every type of request on a device of its own, where nothing may be mixed with the CPU's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mezzotint.request import ControlNetUse, Hires, LoraUse, PreviewUse
from tests.models import build_controlnet, build_lora, build_sd, build_sdxl
from tests.parity.other_device import DEVICE
from tests.parity.rig import Asked, Rig, assert_equal, difference, save_pictures
from tests.requests import request

FAMILIES: dict[str, Callable[[Path], Path]] = {"sd": build_sd, "sdxl": build_sdxl}


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param](root / "tiny")
    build_controlnet(root / "edges", root / "tiny", seed=2)
    build_lora(root / "style.safetensors", root / "tiny", seed=3)
    save_pictures(root)
    return root


@pytest.fixture(autouse=True)
def _no_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of a device in software have no views there."""
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)


def everything(folder: Path) -> list[Asked]:
    image, mask = {"image": folder / "image.png"}, {"mask": folder / "mask.png"}
    use = ControlNetUse(
        model="edges", image="asset:e", preprocessor="none", options={}, scale=0.8, start=0.0, end=0.7,
        resize_mode="stretch", control_mode="balanced",
    )  # fmt: skip
    edges = {"controlnets[0].image": folder / "edges.png"}
    begun = request(type="img2img", image="asset:i", strength=0.7)
    larger = Hires(width=32, height=32, upscaler="lanczos", strength=0.6, steps=5)
    return [
        Asked(request=request(negative_prompt="blur", preview=PreviewUse(every_steps=1, at_steps=(), max_px=16))),
        Asked(request=request(guidance_scale=1.0, scheduler="euler_ancestral")),
        Asked(request=request(prompt="a (red:1.3) boat " + "far away " * 60, prompt_syntax="weighted")),
        Asked(request=begun, files=image),
        Asked(request=replace(begun, type="inpainting", mask="asset:m"), files=image | mask),
        Asked(request=request(controlnets=(use,)), files=edges, nets=(folder / "edges",)),
        Asked(
            request=request(controlnets=(replace(use, control_mode="control"),)),
            files=edges,
            nets=(folder / "edges",),
        ),
        Asked(request=request(loras=(LoraUse(name="style", scale=0.8),)), loras=(folder / "style.safetensors",)),
        Asked(request=request(hires=larger)),
    ]


def test_mixing_devices_is_refused_there() -> None:
    there, here = torch.ones(2, device=DEVICE), torch.ones(2)
    assert (there + there).cpu().tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="mixes other:0 with the CPU"):
        there + here


@pytest.mark.parametrize(
    ("dtype", "apart"), [(torch.float32, 0.0), (torch.float16, 1.0), (torch.bfloat16, 4.0)], ids=str
)
def test_every_type_draws_on_a_device_of_its_own_what_it_draws_on_the_cpu(
    folder: Path, dtype: torch.dtype, apart: float
) -> None:
    expected = Rig(folder / "tiny").draw(everything(folder))
    there = Rig(folder / "tiny", device=DEVICE, dtype=dtype)
    assert next(there.family.unet.parameters()).device == DEVICE
    for ours, theirs in zip(there.draw(everything(folder)), expected, strict=True):
        if apart:
            assert difference(ours[0], theirs[0]) <= apart
        else:
            assert_equal(ours[0], theirs[0])
