"""What the torch-free table says of samplers, against diffusers' own schedulers."""

import pytest
import torch

from mezzotint.engine.samplers import Sampler
from mezzotint.families.table import SCHEDULERS, calls
from tests.requests import request


@pytest.mark.parametrize("strength", [None, 0.5])
@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_the_model_calls_of_a_request_are_known_ahead(scheduler: str, strength: float | None) -> None:
    asked = request(scheduler=scheduler, num_inference_steps=12, strength=strength)
    config = {"num_train_timesteps": 1000, "clip_sample": False}
    assert calls(scheduler, asked.steps) == Sampler(asked, config, 1).total


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


@pytest.mark.parametrize(
    "scheduler", ["ddim", "ddpm", "dpm_multistep", "euler", "euler_ancestral", "heun", "lms", "unipc"]
)
def test_sixty_one_steps_do_not_end_in_noise(scheduler: str) -> None:
    """diffusers adds a timestep -1 there, which is the noisiest."""
    asked = request(scheduler=scheduler, num_inference_steps=61)
    sampler = Sampler(asked, {"num_train_timesteps": 1000, "timestep_spacing": "trailing"}, 1)
    latents = torch.ones(1, 4, 4, 4)
    while not sampler.done:
        assert sampler.timestep >= 0
        latents = sampler.advance(0.1 * sampler.scaled(latents), latents)
    assert sampler.calls == calls(scheduler, 61)
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
