"""diffusers' StableDiffusionPipeline is the oracle: same weights, same seed, same picture, alone and in company."""

import inspect
import itertools
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from mezzotint.engine.engine import Engine
from mezzotint.families.base import Family
from mezzotint.families.sd import StableDiffusion
from mezzotint.families.table import SCHEDULER_OPTIONS, SCHEDULERS
from mezzotint.request import Request
from mezzotint.workers import wire
from tests.models import build_sd
from tests.requests import request

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

COMPANY = [
    request(prompt="a blue house on a hill by the sea", seed=100, num_inference_steps=3, scheduler="euler"),
    request(prompt="", seed=101, num_inference_steps=9, guidance_scale=1.0, scheduler="dpm_multistep"),
    request(prompt="fog", negative_prompt="sun", seed=102, num_inference_steps=5, scheduler="heun", num_images=2),
]


class Rig:
    """An engine over one model folder, with what it drew kept as pixels and latents."""

    def __init__(self, path: Path) -> None:
        torch.set_num_threads(1)  # the model is too small for more
        self.family = StableDiffusion(path, torch.device("cpu"), torch.float32)
        self.pipeline = StableDiffusionPipeline.from_pretrained(path, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.config = dict(self.pipeline.scheduler.config)

    def draw(self, requests: list[Request], *, stagger: int = 0, max_rows: int = 16) -> list[list[Pixels]]:
        """Run requests through one engine, a new one joining every `stagger` steps (0: all at once)."""
        drawn: dict[tuple[str, int], Pixels] = {}

        def keep(pixels: Tensor, submit: wire.Submit, index: int) -> bytes:
            drawn[submit.session_id, index] = pixels.numpy()
            return b"-"

        def load(model: wire.ModelRef) -> Family:
            return self.family

        ticks = itertools.count()
        engine = Engine(load, keep, lambda: float(next(ticks)), max_rows=max_rows)
        model = wire.ModelRef(id="tiny", family="sd", path="", sha256="0" * 64)
        waiting = list(enumerate(requests))
        steps = 0
        while waiting or not engine.idle:
            while waiting and (not stagger or steps >= waiting[0][0] * stagger):
                number, asked = waiting.pop(0)
                engine.submit(wire.Submit(session_id=str(number), attempt=1, request=asked, model=model))
            for message, _ in engine.step():
                assert not (isinstance(message, wire.Ended) and message.outcome != "succeeded"), message
            steps += 1
        return [[drawn[str(i), k] for k in range(asked.num_images)] for i, asked in enumerate(requests)]

    def oracle(self, asked: Request, index: int = 0) -> Pixels:
        seed = asked.seed + index
        scheduler = getattr(diffusers, SCHEDULERS[asked.scheduler])
        names = {name: f"use_{name}" for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas")}
        extra: dict[str, Any] = {names.get(name, name): value for name, value in asked.scheduler_options.items()}
        if asked.scheduler == "pndm":
            extra["skip_prk_steps"] = True
        if asked.scheduler == "dpm_sde":
            extra["noise_sampler_seed"] = seed
        self.pipeline.scheduler = scheduler.from_config(self.config, **extra)
        encoded = self._skipped(asked.prompt, asked.clip_skip) if asked.clip_skip else None
        out = self.pipeline(
            None if asked.clip_skip else asked.prompt,
            prompt_embeds=encoded,
            negative_prompt=asked.negative_prompt,
            width=asked.width,
            height=asked.height,
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            eta=asked.eta,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="np",
        ).images[0]
        return (out * 255).round().astype(np.uint8)

    def _skipped(self, prompt: str, clip_skip: int) -> Tensor:
        """What the pipeline's `clip_skip` does; with this transformers it looks for a `text_model` that is gone."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        length = tokenizer.model_max_length
        ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            hidden = encoder(ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
            skipped: Tensor = encoder.final_layer_norm(hidden)
        return skipped


@pytest.fixture(scope="module")
def rig(random_sd: Path) -> Rig:
    return Rig(random_sd / "tiny")


def difference(a: Pixels, b: Pixels) -> float:
    """Mean absolute difference of pixels, of 255."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_a_lone_picture_equals_the_pipelines(rig: Rig, scheduler: str) -> None:
    asked = request(scheduler=scheduler)
    expected = rig.oracle(asked)
    assert expected.std() >= 20, "the oracle's picture says too little to compare with"
    assert difference(rig.draw([asked])[0][0], expected) <= 0.5
    assert difference(rig.oracle(request(scheduler=scheduler, seed=8)), expected) > 5, "any picture would pass"


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_a_picture_in_company_equals_the_pipelines(rig: Rig, scheduler: str) -> None:
    asked = request(scheduler=scheduler, negative_prompt="blur")
    pictures = rig.draw([COMPANY[0], asked, *COMPANY[1:]], stagger=2)
    assert difference(pictures[1][0], rig.oracle(asked)) <= 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0},
        {"width": 24, "height": 32},
        {"clip_skip": 1},
        {"eta": 0.7},
        {"num_inference_steps": 1},
        {"prompt": ""},
    ],
    ids=str,
)
def test_a_field_means_what_it_means_in_diffusers(rig: Rig, changes: dict[str, Any]) -> None:
    asked = request(**changes)
    assert difference(rig.draw([asked, *COMPANY])[0][0], rig.oracle(asked)) <= 0.5


OPTIONS = [
    ("euler", {"karras_sigmas": True}),
    ("euler", {"exponential_sigmas": True, "timestep_spacing": "trailing"}),
    ("heun", {"beta_sigmas": True}),
    ("dpm_multistep", {"karras_sigmas": True, "algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    ("dpm_multistep", {"solver_order": 3, "timestep_spacing": "leading"}),
    ("dpm_singlestep", {"solver_order": 1}),
    ("unipc", {"solver_order": 1, "karras_sigmas": True}),
    ("ddim", {"timestep_spacing": "trailing"}),
]


@pytest.mark.parametrize(("scheduler", "options"), OPTIONS, ids=str)
def test_options_of_a_scheduler_mean_what_they_mean_in_diffusers(
    rig: Rig, scheduler: str, options: dict[str, Any]
) -> None:
    asked = request(scheduler=scheduler, scheduler_options=options)
    expected = rig.oracle(asked)
    assert difference(rig.draw([asked, *COMPANY])[0][0], expected) <= 0.5
    assert difference(rig.oracle(request(scheduler=scheduler)), expected) > 0.5, "the option changes nothing"


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_the_table_of_options_is_what_diffusers_takes(scheduler: str) -> None:
    taken = inspect.signature(getattr(diffusers, SCHEDULERS[scheduler]).__init__).parameters
    known = set().union(*SCHEDULER_OPTIONS.values())
    assert {name for name in known if name in taken or f"use_{name}" in taken} == SCHEDULER_OPTIONS[scheduler]


def test_image_i_of_a_session_is_the_picture_of_seed_plus_i(rig: Rig) -> None:
    asked = request(num_images=3, seed=40)
    for index, picture in enumerate(rig.draw([asked])[0]):
        assert difference(picture, rig.oracle(asked, index)) <= 0.5


def test_a_small_batch_cap_changes_no_picture(rig: Rig) -> None:
    asked = [request(seed=seed) for seed in range(5)]
    for wide, narrow in zip(rig.draw(asked), rig.draw(asked, max_rows=3), strict=True):
        assert difference(wide[0], narrow[0]) <= 0.5


def test_a_deterministic_picture_is_bit_equal_whatever_runs_beside_it(rig: Rig) -> None:
    asked = request(deterministic=True)
    alone = rig.draw([asked])[0][0]
    assert np.array_equal(rig.draw([*COMPANY, asked], stagger=1)[-1][0], alone)


def test_v_prediction_models_equal_the_pipelines(tmp_path: Path) -> None:
    zero_snr: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    rig = Rig(build_sd(tmp_path / "v", prediction_type="v_prediction", **zero_snr))
    asked = request(scheduler="ddim")
    assert difference(rig.draw([asked, *COMPANY[:1]])[0][0], rig.oracle(asked)) <= 0.5
