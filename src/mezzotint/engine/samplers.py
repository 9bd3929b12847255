"""One trajectory's own instance of a diffusers scheduler, so that any mix of samplers shares a model call.

Must not know of batches: it sees one image's latents, (1, channels, height, width), float32 on the CPU.
"""

import inspect
from typing import Any

import diffusers
import torch
from torch import Tensor

from mezzotint.families.table import SCHEDULERS
from mezzotint.request import Request


class Sampler:
    """Wraps a diffusers scheduler with its state. `calls` counts model calls done of `total`."""

    def __init__(self, request: Request, config: dict[str, Any], seed: int) -> None:
        scheduler_class = getattr(diffusers, SCHEDULERS[request.scheduler])
        self._scheduler = scheduler_class.from_config(config, **_options(request, seed))
        self._scheduler.set_timesteps(request.num_inference_steps)
        self._timesteps = self._scheduler.timesteps
        self._generator = torch.Generator("cpu").manual_seed(seed)
        accepted = inspect.signature(self._scheduler.step).parameters
        offered = {"generator": self._generator, "eta": request.eta}
        self._step_options = {name: value for name, value in offered.items() if name in accepted}
        self.steps = request.num_inference_steps
        self.calls = 0
        self.total = len(self._timesteps)

    def noise(self, channels: int, height: int, width: int) -> Tensor:
        """The first latents: seeded normal noise in the scheduler's own scale. Call once, before anything else."""
        shape = (1, channels, height, width)
        drawn = torch.randn(shape, generator=self._generator, device="cpu", dtype=torch.float32)
        return drawn * self._scheduler.init_noise_sigma

    @property
    def done(self) -> bool:
        return self.calls == self.total

    @property
    def step(self) -> int:
        """Requested steps that are done. Samplers with two model calls a step finish one every other call."""
        return self.steps if self.done else min(self.steps - 1, self.calls * self.steps // self.total)

    @property
    def timestep(self) -> Tensor:
        return self._timesteps[self.calls]

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents as the model wants to see them at this timestep."""
        scaled: Tensor = self._scheduler.scale_model_input(latents, self.timestep)
        return scaled

    def advance(self, output: Tensor, latents: Tensor) -> Tensor:
        """Take one model output; returns the next latents."""
        options = dict(self._step_options, return_dict=False)
        moved: Tensor = self._scheduler.step(output, self.timestep, latents, **options)[0]
        self.calls += 1
        return moved


def _options(request: Request, seed: int) -> dict[str, Any]:
    options = {_DIFFUSERS_NAMES.get(name, name): value for name, value in request.scheduler_options.items()}
    if request.scheduler == "pndm":
        options["skip_prk_steps"] = True
    if request.scheduler == "dpm_sde":
        options["noise_sampler_seed"] = seed  # without it the class draws from the global generator
    return options


_DIFFUSERS_NAMES = {name: f"use_{name}" for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas")}
