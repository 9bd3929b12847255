"""The second pass: diffusers' text2img, enlarged by torch or Pillow, and its img2img after it are the oracle."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from mezzotint.engine.engine import Engine
from mezzotint.engine.meter import HostMeter
from mezzotint.request import ControlNetUse, Hires, Request
from mezzotint.workers import wire
from tests.models import build_controlnet, build_sd
from tests.parity.rig import COMPANY, Asked, Drawn, Rig, assert_equal, difference
from tests.requests import request

MODES = {
    "latent": {"mode": "bilinear"},
    "latent_antialiased": {"mode": "bilinear", "antialias": True},
    "latent_bicubic": {"mode": "bicubic"},
    "latent_bicubic_antialiased": {"mode": "bicubic", "antialias": True},
    "latent_nearest": {"mode": "nearest"},
    "latent_nearest_exact": {"mode": "nearest-exact"},
}
PIXELS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    root = tmp_path_factory.mktemp("hires")
    build_sd(root / "tiny")
    build_controlnet(root / "edges", root / "tiny", seed=2)
    noise = np.random.default_rng(5).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise, "RGB").resize((40, 40), Image.Resampling.NEAREST).save(root / "edges.png")
    return Rig(root / "tiny")


def hires(upscaler: str = "latent", **changes: Any) -> Request:
    asked = Hires(width=32, height=32, upscaler=upscaler, strength=0.6, steps=5)
    return request(hires=replace(asked, **{k: changes.pop(k) for k in list(changes) if hasattr(asked, k)}), **changes)


def oracle(rig: Rig, asked: Asked, tmp_path: Path, index: int = 0) -> Drawn:
    first, second = asked.request.passes
    drawn = rig.oracle(replace(asked, request=first), index)
    size, upscaler = (second.width, second.height), asked.request.hires.upscaler  # type: ignore[union-attr]
    after = replace(asked, request=replace(second, image="asset:i"))
    if upscaler in MODES:
        grid = (second.height // 2, second.width // 2)
        latents = functional.interpolate(drawn.latents[None], size=grid, **MODES[upscaler])  # type: ignore[arg-type]
        return rig.oracle(replace(after, latents=latents), index)
    file = tmp_path / "enlarged.png"
    Image.fromarray(drawn.pixels, "RGB").resize(size, PIXELS[upscaler]).save(file)
    return rig.oracle(replace(after, files=asked.files | {"image": file}), index)


@pytest.mark.parametrize("upscaler", [*MODES, *PIXELS])
def test_a_second_pass_equals_the_pipelines(rig: Rig, tmp_path: Path, upscaler: str) -> None:
    asked = Asked(request=hires(upscaler))
    expected = oracle(rig, asked, tmp_path)
    assert expected.pixels.shape == (32, 32, 3)
    assert_equal(rig.draw([asked])[0][0], expected)
    assert_equal(rig.draw([*COMPANY, asked], stagger=1)[-1][0], expected)
    other = Asked(request=hires(upscaler, seed=9))
    assert difference(oracle(rig, other, tmp_path), expected) > 1, "any picture would pass"


@pytest.mark.parametrize("scheduler", ["euler_ancestral", "heun", "dpm_sde"])
def test_both_passes_run_the_sampler_asked_for(rig: Rig, tmp_path: Path, scheduler: str) -> None:
    asked = Asked(request=hires(scheduler=scheduler, num_images=2))
    drawn = rig.draw([*COMPANY, asked], stagger=1)[-1]
    for index in (0, 1):
        assert_equal(drawn[index], oracle(rig, asked, tmp_path, index))


def test_a_controlnet_follows_into_the_second_pass_at_its_size(rig: Rig, tmp_path: Path) -> None:
    use = ControlNetUse(
        model="edges", image="asset:e", preprocessor="none", options={}, scale=0.8, start=0.0, end=1.0,
        resize_mode="stretch", control_mode="balanced",
    )  # fmt: skip
    root = rig.path.parent
    files, nets = {"controlnets[0].image": root / "edges.png"}, (root / "edges",)
    asked = Asked(request=hires(controlnets=(use,)), files=files, nets=nets)
    expected = oracle(rig, asked, tmp_path)
    assert difference(oracle(rig, Asked(request=hires()), tmp_path), expected) > 1, "the net changes nothing"
    assert_equal(rig.draw([asked])[0][0], expected)


def test_another_shape_is_covered_and_cut_in_the_middle(rig: Rig) -> None:
    wide = rig.draw([hires(width=32, height=16, strength=0.0)])[0][0].pixels
    whole = rig.draw([hires(width=32, height=32, strength=0.0)])[0][0].pixels
    assert wide.shape == (16, 32, 3)
    assert np.abs(wide.astype(int) - whole[8:24].astype(int)).mean() < 40, "not the middle of the covering picture"


def test_a_state_of_either_pass_is_gone_on_from(rig: Rig) -> None:
    """After any step the state leads to the same picture, and says how many steps it has."""
    asked = hires("lanczos", scheduler="euler_ancestral")
    told, undisturbed = _run(rig, asked, None)
    assert [message.step for message, _ in told] == list(range(1, asked.steps + 1))
    assert asked.steps == asked.passes[0].steps + asked.passes[1].steps == 6 + 3
    for _, state in told:
        assert torch.equal(_run(rig, asked, state)[1], undisturbed)


def _run(rig: Rig, asked: Request, state: bytes | None) -> tuple[list[tuple[wire.Checkpoint, bytes]], torch.Tensor]:
    drawn: list[torch.Tensor] = []
    ticks = itertools.count()
    model = wire.ModelRef(id="m", path=str(rig.path), family="sd", kind="checkpoint", sha256="0" * 64, bytes=1)

    def keep(pixels: torch.Tensor, _submit: wire.Submit, _index: int) -> tuple[bytes, bytes]:
        drawn.append(pixels)
        return b"-", b""

    engine = Engine(lambda _: rig.family, keep, lambda: float(next(ticks)), meter=HostMeter(), budget_bytes=1 << 30)
    engine.submit(
        wire.Submit(session_id="s", attempt=1, request=asked, model=model), {} if state is None else {0: state}
    )
    told: list[tuple[wire.Checkpoint, bytes]] = []
    while not engine.idle:
        told += [(message, blob) for message, blob in engine.step() if isinstance(message, wire.Checkpoint)]
    return told, drawn[0]
