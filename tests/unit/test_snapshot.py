"""A trajectory put away after any step and put back into a new one goes on as if nothing had been."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mezzotint.engine import snapshot
from mezzotint.engine.samplers import Sampler
from mezzotint.engine.trajectory import BatchKey, Kept, Trajectory
from mezzotint.families.base import Conditioning
from mezzotint.families.table import SCHEDULERS
from mezzotint.request import Request
from tests.requests import request

CONFIG: dict[str, Any] = {"num_train_timesteps": 1000, "clip_sample": False}
SHAPE = (1, 4, 4, 4)


def trajectory(asked: Request, *, inpaints: bool = False) -> Trajectory:
    sampler = Sampler(asked, CONFIG, asked.seed)
    noise = sampler.draw(SHAPE)
    kept = Kept(mask=torch.ones(1, 1, 4, 4).tril(), latents=torch.ones(SHAPE), noise=noise) if inpaints else None
    return Trajectory(
        key=BatchKey(model="m", height=4, width=4, windows=1, alone=""),
        family=None,  # type: ignore[arg-type]  # the model is played by `output`
        index=0,
        seed=asked.seed,
        sampler=sampler,
        latents=sampler.pure_noise(noise),
        text=Conditioning(hidden=torch.ones(1, 2), windows=1, cut=False),
        negative=None,
        guidance_scale=1.0,
        priority=5,
        kept=kept,
    )


def output(one: Trajectory) -> Tensor:
    """What a model might say, of all that it sees."""
    return torch.sin(one.sampler.scaled(one.latents) * 3.0) + one.sampler.timestep.float() / 5000


def run(one: Trajectory) -> Tensor:
    while not one.sampler.done:
        one.advance(output(one))
    return one.latents


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_state_taken_at_any_step_leads_to_the_same_latents(scheduler: str) -> None:
    every_state_leads_to_the_same_latents(request(scheduler=scheduler, num_inference_steps=5, eta=0.5, seed=2**62))


@pytest.mark.parametrize("scheduler", ["dpm_sde", "euler_ancestral", "unipc"])
def test_a_state_of_a_picture_drawn_anew_behind_a_mask_leads_to_the_same_latents(scheduler: str) -> None:
    asked = request(scheduler=scheduler, num_inference_steps=6, strength=0.7)
    every_state_leads_to_the_same_latents(asked, inpaints=True)


def every_state_leads_to_the_same_latents(asked: Request, *, inpaints: bool = False) -> None:
    undisturbed = run(trajectory(asked, inpaints=inpaints))
    going = trajectory(asked, inpaints=inpaints)
    states = [snapshot.take(going)]
    while not going.sampler.done:
        going.advance(output(going))
        states.append(snapshot.take(going))
    assert torch.equal(going.latents, undisturbed), "taking a state changes nothing"
    assert len(states) == going.sampler.total + 1
    for calls, state in enumerate(states):
        again = trajectory(asked, inpaints=inpaints)
        snapshot.put_back(again, state)
        assert again.sampler.calls == calls
        assert torch.equal(run(again), undisturbed), f"resumed after call {calls}"


def test_a_state_of_a_state_is_the_same_one() -> None:
    asked = request(scheduler="dpm_multistep")
    going = trajectory(asked)
    for _ in range(3):
        going.advance(output(going))
    again = trajectory(asked)
    snapshot.put_back(again, snapshot.take(going))
    assert snapshot.take(again) == snapshot.take(going)


@pytest.mark.parametrize("cut", [0, 1, 100, -1], ids=["empty", "one byte", "head", "last byte"])
def test_what_is_cut_short_is_refused_and_changes_nothing(cut: int) -> None:
    going = trajectory(request())
    going.advance(output(going))
    fresh = trajectory(request())
    before = snapshot.take(fresh)
    with pytest.raises(snapshot.Unreadable):
        snapshot.put_back(fresh, snapshot.take(going)[:cut])
    assert snapshot.take(fresh) == before


def test_the_state_of_another_sampler_or_size_is_refused() -> None:
    going = trajectory(request(scheduler="unipc"))
    going.advance(output(going))
    state = snapshot.take(going)
    with pytest.raises(snapshot.Unreadable):
        snapshot.put_back(trajectory(request(scheduler="ddim")), state)
    larger = trajectory(request(scheduler="unipc"))
    larger.latents = torch.zeros(1, 4, 8, 4)
    with pytest.raises(snapshot.Unreadable):
        snapshot.put_back(larger, state)


def test_a_state_is_small() -> None:
    going = trajectory(request(num_inference_steps=50))
    run(going)
    assert len(snapshot.take(going)) < 8_000, "latents, a generator's 5 KB, a few numbers; no tables"
