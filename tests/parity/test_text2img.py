"""diffusers' StableDiffusionPipeline is the oracle: same weights, same seed, same picture, alone and in company."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from mezzotint.families.table import SCHEDULER_OPTIONS, SCHEDULERS
from tests.models import build_sd
from tests.parity.rig import COMPANY, Rig, assert_equal, difference
from tests.requests import request


@pytest.fixture(scope="module")
def rig(random_sd: Path) -> Rig:
    return Rig(random_sd / "tiny")


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_a_lone_picture_equals_the_pipelines(rig: Rig, scheduler: str) -> None:
    asked = request(scheduler=scheduler)
    expected = rig.oracle(asked)
    assert_equal(rig.draw([asked])[0][0], expected)
    assert difference(rig.oracle(request(scheduler=scheduler, seed=8)), expected) > 5, "any picture would pass"


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_a_picture_in_company_equals_the_pipelines(rig: Rig, scheduler: str) -> None:
    asked = request(scheduler=scheduler, negative_prompt="blur")
    pictures = rig.draw([COMPANY[0], asked, *COMPANY[1:]], stagger=2)
    assert_equal(pictures[1][0], rig.oracle(asked))


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
    assert_equal(rig.draw([asked, *COMPANY])[0][0], rig.oracle(asked))


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
    assert_equal(rig.draw([asked, *COMPANY])[0][0], expected)
    assert difference(rig.oracle(request(scheduler=scheduler)), expected) > 0.5, "the option changes nothing"


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_the_table_of_options_is_what_diffusers_takes(scheduler: str) -> None:
    taken = inspect.signature(getattr(diffusers, SCHEDULERS[scheduler]).__init__).parameters
    known = set().union(*SCHEDULER_OPTIONS.values())
    assert {name for name in known if name in taken or f"use_{name}" in taken} == SCHEDULER_OPTIONS[scheduler]


def test_image_i_of_a_session_is_the_picture_of_seed_plus_i(rig: Rig) -> None:
    asked = request(num_images=3, seed=40)
    for index, picture in enumerate(rig.draw([asked])[0]):
        assert_equal(picture, rig.oracle(asked, index))


def test_a_small_batch_cap_changes_no_picture(rig: Rig) -> None:
    asked = [request(seed=seed) for seed in range(5)]
    for wide, narrow in zip(rig.draw(asked), rig.draw(asked, max_rows=3), strict=True):
        assert difference(wide[0], narrow[0]) <= 0.5


def test_a_deterministic_picture_is_bit_equal_whatever_runs_beside_it(rig: Rig) -> None:
    asked = request(deterministic=True)
    alone = rig.draw([asked])[0][0]
    assert np.array_equal(rig.draw([*COMPANY, asked], stagger=1)[-1][0].pixels, alone.pixels)


def test_latents_of_no_numbers_are_no_picture(rig: Rig) -> None:
    for value in (torch.nan, torch.inf):
        with pytest.raises(FloatingPointError):
            rig.family.decode(torch.full((1, 4, 8, 8), value))


def test_v_prediction_models_equal_the_pipelines(tmp_path: Path) -> None:
    zero_snr: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    rig = Rig(build_sd(tmp_path / "v", prediction_type="v_prediction", **zero_snr))
    asked = request(scheduler="ddim")
    assert_equal(rig.draw([asked, *COMPANY[:1]])[0][0], rig.oracle(asked))
