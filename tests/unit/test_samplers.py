"""What the torch-free table says of samplers, against diffusers' own schedulers."""

import pytest

from mezzotint.engine.samplers import Sampler
from mezzotint.families.table import SCHEDULERS, calls
from tests.requests import request


@pytest.mark.parametrize("strength", [None, 0.5])
@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_the_model_calls_of_a_request_are_known_ahead(scheduler: str, strength: float | None) -> None:
    asked = request(scheduler=scheduler, num_inference_steps=12, strength=strength)
    config = {"num_train_timesteps": 1000, "clip_sample": False}
    assert calls(scheduler, asked.steps) == Sampler(asked, config, 1).total
