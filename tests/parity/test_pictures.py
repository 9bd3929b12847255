"""Pictures in: img2img, inpainting of both kinds, ControlNets; diffusers' pipelines are the oracle."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from mezzotint.families.control import FADE
from mezzotint.families.table import SCHEDULERS
from mezzotint.request import ControlNetUse, Request
from tests.models import build_controlnet, build_sd
from tests.parity.rig import COMPANY, Asked, Rig, apart, assert_equal, difference
from tests.requests import request

MODES = ("balanced", "prompt", "control")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    build_sd(root / "tiny")
    build_sd(root / "inpainting", seed=1, inpaints=True)
    build_controlnet(root / "edges", root / "tiny", seed=2)
    build_controlnet(root / "poses", root / "tiny", seed=3)
    build_controlnet(root / "shuffle", root / "tiny", seed=4, pools=True)
    noise = np.random.default_rng(5)
    sizes = {"poses": (24, 24), "wide": (24, 16)}
    for name in ("image", "edges", "poses", "wide", "shuffle"):
        big = Image.fromarray(noise.integers(0, 256, (4, 4, 3), dtype=np.uint8), "RGB")
        big.resize(sizes.get(name, (16, 16)), Image.Resampling.NEAREST).save(root / f"{name}.png")
    for name, size in (("mask", (16, 16)), ("wide-mask", (24, 16))):
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).rectangle((5, 4, 11, 10), fill=255)
        mask.save(root / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def rig(folder: Path) -> Rig:
    return Rig(folder / "tiny")


@pytest.fixture(scope="module")
def inpainting(folder: Path) -> Rig:
    return Rig(folder / "inpainting")


def img2img(folder: Path, **changes: Any) -> Asked:
    asked = request(type="img2img", image="asset:i", **{"strength": 0.6, **changes})
    return Asked(request=asked, files={"image": folder / "image.png"})


def inpaint(folder: Path, **changes: Any) -> Asked:
    asked = request(type="inpainting", image="asset:i", mask="asset:m", **{"strength": 0.8, **changes})
    return Asked(request=asked, files={"image": folder / "image.png", "mask": folder / "mask.png"})


def control(folder: Path, *names: str, base: Asked | None = None, **changes: Any) -> Asked:
    use: dict[str, Any] = {"preprocessor": "none", "options": {}, "scale": 0.8, "start": 0.0, "end": 1.0}
    use |= {"resize_mode": "stretch", "control_mode": "balanced", **changes}
    uses = tuple(ControlNetUse(model=name, image=f"asset:{name}", **use) for name in names)
    base = base or Asked(request=request(type="controlnet"))
    return Asked(
        request=replace(base.request, controlnets=uses),
        files=base.files | {f"controlnets[{i}].image": folder / f"{name}.png" for i, name in enumerate(names)},
        nets=tuple(folder / name for name in names),
    )


def mixed(folder: Path) -> list[Asked | Request]:
    """Company of every kind, so that a case shares its calls with rows that have what it lacks."""
    return [*COMPANY, img2img(folder, seed=50), inpaint(folder, seed=51), control(folder, "edges")]


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
@pytest.mark.parametrize("kind", [img2img, inpaint])
def test_a_picture_from_a_picture_equals_the_pipelines(rig: Rig, folder: Path, kind: Any, scheduler: str) -> None:
    asked = kind(folder, scheduler=scheduler)
    expected = rig.oracle(asked)
    assert_equal(rig.draw([asked])[0][0], expected)
    assert_equal(rig.draw([*mixed(folder), asked], stagger=1)[-1][0], expected)
    assert difference(rig.oracle(kind(folder, scheduler=scheduler, seed=8)), expected) > 1, "any picture would pass"


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", [img2img, inpaint])
def test_strength_decides_how_many_steps_run(rig: Rig, folder: Path, kind: Any, strength: float) -> None:
    asked = kind(folder, strength=strength)
    same = kind(folder, strength=max(strength, 0.17))  # diffusers raises an error below one step of six
    assert_equal(rig.draw([asked])[0][0], rig.oracle(same))


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral", "heun", "lcm"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_unet_that_knows_of_masks_equals_the_pipeline(
    inpainting: Rig, folder: Path, scheduler: str, strength: float
) -> None:
    asked = inpaint(folder, scheduler=scheduler, strength=strength)
    expected = inpainting.oracle(asked)
    assert_equal(inpainting.draw([asked])[0][0], expected)
    assert_equal(inpainting.draw([inpaint(folder, seed=3), asked], stagger=1)[1][0], expected)


def test_a_text_alone_is_an_empty_picture_drawn_anew_to_a_unet_that_takes_a_mask(
    inpainting: Rig, folder: Path, tmp_path: Path
) -> None:
    """No caller may ask for it: probes of `models tune` and the practice of a spare worker do."""
    for name, mode, colour in (("image", "RGB", 0), ("mask", "L", 255)):
        Image.new(mode, (16, 16), colour).save(tmp_path / f"{name}.png")
    files = {name: tmp_path / f"{name}.png" for name in ("image", "mask")}
    masked = replace(inpaint(folder, strength=1.0), files=files)
    assert_equal(inpainting.draw([request()])[0][0], inpainting.oracle(masked))


@pytest.mark.parametrize("changes", [{"mask_blur": 2}, {"padding_mask_crop": 2}, {"num_images": 2}], ids=str)
def test_a_field_of_inpainting_means_what_it_means_in_diffusers(
    rig: Rig, folder: Path, changes: dict[str, Any]
) -> None:
    asked = inpaint(folder, **changes)
    for index in range(asked.request.num_images):
        assert_equal(rig.draw([*mixed(folder), asked])[-1][index], rig.oracle(asked, index))


@pytest.mark.parametrize("changes", [{}, {"mask_blur": 1}, {"padding_mask_crop": 3}, {"mask_fill": "fill"}], ids=str)
def test_what_the_mask_keeps_is_the_input_to_the_bit(rig: Rig, folder: Path, changes: dict[str, Any]) -> None:
    drawn = rig.draw([inpaint(folder, **changes)])[0][0].pixels
    image, mask = (Image.open(folder / f"{name}.png") for name in ("image", "mask"))
    kept = np.array(mask.filter(ImageFilter.GaussianBlur(changes.get("mask_blur", 0)))) == 0
    assert kept.sum() > 100
    assert np.array_equal(drawn[kept], np.array(image)[kept])
    assert not np.array_equal(drawn[~kept], np.array(image)[~kept])


@pytest.mark.parametrize("resize_mode", ["stretch", "crop", "pad"])
def test_a_masked_area_of_another_size_is_filled_in_every_way_of_resizing(
    rig: Rig, folder: Path, resize_mode: str
) -> None:
    asked = inpaint(folder, mask_fill="fill", resize_mode=resize_mode, width=32, height=16)
    assert rig.draw([asked])[0][0].pixels.shape == (16, 32, 3)


@pytest.mark.parametrize("scheduler", ["ddim", "heun", "euler_ancestral"])
def test_a_controlnet_equals_the_pipelines(rig: Rig, folder: Path, scheduler: str) -> None:
    asked = control(folder, "edges")
    asked = replace(asked, request=replace(asked.request, scheduler=scheduler))
    expected = rig.oracle(asked)
    assert difference(rig.oracle(request(scheduler=scheduler)), expected) > 1, "the net changes nothing"
    assert_equal(rig.draw([asked])[0][0], expected)
    assert_equal(rig.draw([*mixed(folder), asked], stagger=1)[-1][0], expected)


@pytest.mark.parametrize("changes", [{"scale": 0.3}, {"start": 0.4}, {"end": 0.5}, {"start": 0.3, "end": 0.7}], ids=str)
def test_a_field_of_a_controlnet_means_what_it_means_in_diffusers(
    rig: Rig, folder: Path, changes: dict[str, Any]
) -> None:
    asked = control(folder, "edges", **changes)
    assert_equal(rig.draw([asked, *mixed(folder)])[0][0], rig.oracle(asked))


@pytest.mark.parametrize("mode", ["prompt", "control"])
@pytest.mark.parametrize("nets", [("edges",), ("edges", "poses")], ids=["one", "two"])
def test_a_controlnet_yields_to_the_prompt_as_in_the_pipelines(
    rig: Rig, folder: Path, nets: tuple[str, ...], mode: str
) -> None:
    asked = control(folder, *nets, control_mode=mode)
    expected = rig.oracle(asked)
    others = {other: rig.oracle(control(folder, *nets, control_mode=other)) for other in MODES if other != mode}
    assert all(difference(other, expected) > 1 for other in others.values()), "any mode would pass"
    assert_equal(rig.draw([asked])[0][0], expected)
    assert_equal(rig.draw([*mixed(folder), asked], stagger=1)[-1][0], expected)


def test_over_the_thirteen_skips_of_stable_diffusion_a_net_fades_as_in_diffusers() -> None:
    ours = FADE ** torch.arange(12, -1, -1)
    assert torch.allclose(ours, torch.logspace(-1, 0, 13), atol=1e-3)  # ControlNetModel.forward, guess_mode


def wide(folder: Path, kind: str, resize_mode: str) -> Asked:
    """A picture that is wider than the output."""
    if kind == "control":
        asked = control(folder, "edges", scale=2.0, resize_mode=resize_mode)
        return replace(asked, files={"controlnets[0].image": folder / "wide.png"})
    asked = {"img2img": img2img, "inpaint": inpaint}[kind](folder, resize_mode=resize_mode)
    return replace(asked, files=asked.files | {"image": folder / "wide.png", "mask": folder / "wide-mask.png"})


@pytest.mark.parametrize("kind", ["img2img", "inpaint", "control"])
@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
def test_a_picture_of_another_shape_is_fitted_as_diffusers_does_it(
    rig: Rig, folder: Path, kind: str, mode: str
) -> None:
    expected = rig.oracle(wide(folder, kind, mode))
    others = [rig.oracle(wide(folder, kind, other)) for other in ("stretch", "crop", "pad") if other != mode]
    assert all(apart(other, expected) > 3e-3 for other in others), "any mode would pass"
    assert_equal(rig.draw([wide(folder, kind, mode)])[0][0], expected)
    assert_equal(rig.draw([*mixed(folder), wide(folder, kind, mode)], stagger=1)[-1][0], expected)


def test_a_part_of_a_picture_that_is_left_at_its_size_equals_the_pipelines(rig: Rig, folder: Path) -> None:
    asked = inpaint(folder, resize_mode="original", padding_mask_crop=2)
    asked = replace(asked, files={"image": folder / "wide.png", "mask": folder / "wide-mask.png"})
    expected = rig.oracle(asked)
    assert expected.pixels.shape == (16, 24, 3)
    assert_equal(rig.draw([asked])[0][0], expected)


def test_a_picture_of_sides_that_eight_does_not_divide_equals_the_pipelines(rig: Rig, folder: Path) -> None:
    sides = {"width": 18, "height": 22}
    asked = img2img(folder, **sides)
    assert_equal(rig.draw([asked])[0][0], rig.oracle(asked))
    for other in (inpaint(folder, **sides), control(folder, "edges", base=Asked(request=request(**sides)))):
        assert rig.draw([other])[0][0].pixels.shape == (22, 18, 3)  # diffusers refuses these


def test_several_controlnets_add_up(rig: Rig, folder: Path) -> None:
    asked = control(folder, "edges", "poses")
    assert_equal(rig.draw([asked, *mixed(folder)])[0][0], rig.oracle(asked))


@pytest.mark.parametrize(
    ("nets", "mode"),
    [(("shuffle",), mode) for mode in MODES] + [(("edges", "shuffle"), "control")],  # diffusers runs no other two
    ids=[*MODES, "two"],
)
def test_a_controlnet_that_pools_over_the_picture_equals_the_pipelines(
    rig: Rig, folder: Path, nets: tuple[str, ...], mode: str
) -> None:
    asked = control(folder, *nets, control_mode=mode)
    expected = rig.oracle(asked)
    without = rig.oracle(control(folder, *nets[:-1], control_mode=mode))
    assert difference(without, expected) > 1, "the net changes nothing"
    assert_equal(rig.draw([asked])[0][0], expected)
    assert_equal(rig.draw([*mixed(folder), asked], stagger=1)[-1][0], expected)
    assert_equal(rig.draw([control(folder, *reversed(nets), control_mode=mode)])[0][0], expected)


@pytest.mark.parametrize("kind", [img2img, inpaint])
def test_a_controlnet_beside_a_picture_equals_the_pipelines(rig: Rig, folder: Path, kind: Any) -> None:
    asked = control(folder, "edges", base=kind(folder))
    assert_equal(rig.draw([asked, *mixed(folder)])[0][0], rig.oracle(asked))


def test_what_a_picture_begins_at_lies_in_memory_as_what_a_checkpoint_brings_back(rig: Rig) -> None:
    """Else a deterministic picture would end another way once it was paused."""
    with torch.inference_mode():
        assert all(one.is_contiguous() for one in rig.family.encode_pixels(torch.zeros(1, 3, 48, 64)))


def test_all_kinds_share_one_call(rig: Rig, folder: Path) -> None:
    asked: list[Asked | Request] = [
        request(),
        img2img(folder, strength=1.0),
        inpaint(folder, strength=1.0),
        control(folder, "edges"),
    ]
    rig.draw(asked)
    assert max(rig.calls) == 8
