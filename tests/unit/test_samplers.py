"""What the torch-free table says of samplers, against diffusers' own schedulers."""

import numpy as np
import pytest
import torch

from mezzotint.engine.samplers import Sampler, _Steps
from mezzotint.families.table import SCHEDULER_OPTIONS, SCHEDULER_STEPS, SCHEDULERS, calls
from tests.requests import request


@pytest.mark.parametrize(("steps", "strength"), [(12, None), (12, 0.5), (12, 0.1), (1, None), (2, None), (2, 0.5)])
@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_the_model_calls_of_a_request_are_known_ahead(scheduler: str, steps: int, strength: float | None) -> None:
    asked = request(scheduler=scheduler, num_inference_steps=steps, strength=strength)
    config = {"num_train_timesteps": 1000, "clip_sample": False}
    assert calls(scheduler, asked.steps, steps) == Sampler(asked, config, 1).total


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_samplers_made_alike_share_no_state(scheduler: str) -> None:
    """They come from one template: the second goes as it would have gone without the first."""
    asked, config = request(scheduler=scheduler, num_inference_steps=6), {"num_train_timesteps": 1000}
    longer = request(scheduler=scheduler, num_inference_steps=9)  # at other timesteps
    output, latents = torch.full((1, 4, 4, 4), 0.1), torch.ones(1, 4, 4, 4)

    def step(sampler: Sampler, moved: torch.Tensor) -> torch.Tensor:
        sampler.scaled(moved)
        return sampler.advance(output, moved)

    def drawn(other: Sampler | None) -> torch.Tensor:
        sampler, moved = Sampler(asked, config, 1), latents
        while not sampler.done:
            if other is not None and not other.done:
                step(other, other.draw((1, 4, 4, 4)))
            moved = step(sampler, moved)
        return moved

    waiting = Sampler(asked, config, 3)
    alone = drawn(None)
    assert waiting.state()["scheduler"] == {}, "nothing of it has changed"
    assert torch.equal(drawn(Sampler(longer, config, 2)), alone)
    assert torch.equal(drawn(None), alone)


SPACED = [name for name in SCHEDULERS if "timestep_spacing" in SCHEDULER_OPTIONS[name] and name != "lcm"]


@pytest.mark.parametrize("scheduler", SPACED)
def test_sixty_one_steps_do_not_end_in_noise(scheduler: str) -> None:
    """diffusers adds a timestep -1 there, which is the noisiest."""
    drawn = {steps: denoised(scheduler, steps) for steps in (60, 61, 62)}
    between = (drawn[60].mean() + drawn[62].mean()) / 2
    assert torch.isclose(drawn[61].mean(), between, atol=0.05)


def denoised(scheduler: str, steps: int) -> torch.Tensor:
    """What a model draws that tells noise from a grey which changes as it goes."""
    asked = request(scheduler=scheduler, num_inference_steps=steps)
    config = {"num_train_timesteps": 1000, "timestep_spacing": "trailing", "clip_sample": False}
    sampler = Sampler(asked, config, 1)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)  # of the picture, by timestep
    latents = sampler.pure_noise(sampler.draw((1, 4, 4, 4)))
    while not sampler.done:
        assert sampler.timestep >= 0
        share, grey = kept[int(sampler.timestep)], 1 + float(sampler.timestep) / 1000
        noise = (sampler.scaled(latents) - share.sqrt() * grey) / (1 - share).sqrt()
        latents = sampler.advance(noise, latents)
    assert sampler.calls == calls(scheduler, steps, steps)
    return latents


def test_no_number_of_steps_comes_to_one_more_and_none_is_spaced_otherwise_than_in_diffusers() -> None:
    for steps in range(1, 1001):
        plain, own = (np.arange(1000, 0, -(1000 / divisor)) for divisor in (steps, _Steps(steps)))
        assert len(own) == steps
        assert len(plain) > steps or np.array_equal(own, plain)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("scheduler", ["dpm_multistep", "unipc"])
def test_with_as_many_steps_as_there_are_the_values_stay_finite(scheduler: str, spacing: str) -> None:
    """diffusers comes twice to the last timestep, and divides by the way between the two."""
    options = {"timestep_spacing": spacing}
    asked = request(scheduler=scheduler, num_inference_steps=SCHEDULER_STEPS[scheduler], scheduler_options=options)
    sampler = Sampler(asked, {"num_train_timesteps": 1000, "steps_offset": 1}, 1)
    latents = torch.ones(1, 4, 2, 2)
    while not sampler.done:
        latents = sampler.advance(0.1 * sampler.scaled(latents), latents)
    assert torch.isfinite(latents).all()


def test_a_sampler_begins_at_its_first_sigma_where_two_timesteps_are_equal() -> None:
    """diffusers took the second of them, and ran out of sigmas at the last step."""
    asked = request(scheduler="dpm_multistep", num_inference_steps=50, scheduler_options={"beta_sigmas": True})
    sampler = Sampler(asked, {"num_train_timesteps": 1000}, 1)
    latents = torch.ones(1, 4, 4, 4)
    while not sampler.done:
        latents = sampler.advance(latents * 0.1, latents)
        assert sampler.state()["scheduler"]["_step_index"] == sampler.calls


@pytest.mark.parametrize("own", ["karras", "exponential", "beta"])
def test_the_sigmas_that_a_request_asks_for_outrank_those_of_the_model(own: str) -> None:
    config = {"num_train_timesteps": 1000, f"use_{own}_sigmas": True}
    for name in ("karras", "exponential", "beta"):
        asked = request(scheduler="euler", num_inference_steps=6, scheduler_options={f"{name}_sigmas": True})
        plain = Sampler(asked, {"num_train_timesteps": 1000}, 1)
        assert torch.equal(Sampler(asked, config, 1).timestep, plain.timestep)
