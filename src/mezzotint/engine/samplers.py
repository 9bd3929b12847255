"""One trajectory's own instance of a diffusers scheduler, so that any mix of samplers shares a model call.

Must not know of batches: it sees one image's latents, (1, channels, height, width), float32 on the CPU.
"""

import copy
import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor

from mezzotint.families.table import SCHEDULERS
from mezzotint.request import Request


class Sampler:
    """Wraps a diffusers scheduler with its state. `calls` counts model calls done of `total`."""

    def __init__(self, request: Request, config: dict[str, Any], seed: int) -> None:
        self._scheduler = _scheduler(request, config, seed)
        self._scheduler.set_timesteps(_Steps(request.num_inference_steps))
        skipped = (request.num_inference_steps - request.steps) * self._scheduler.order  # by `strength`
        timesteps: Tensor = self._scheduler.timesteps[skipped:]
        self._timesteps = tuple(timesteps)
        self._moments: list[float] = timesteps.to(torch.float32).tolist()
        if hasattr(self._scheduler, "set_begin_index"):  # else it looks for a timestep that may be there twice
            self._scheduler.set_begin_index(skipped)
        self._generator = torch.Generator("cpu").manual_seed(seed)
        accepted = _accepted(type(self._scheduler).step)
        offered = {"generator": self._generator, "eta": request.eta}
        self._step_options = {name: value for name, value in offered.items() if name in accepted}
        whole = accepted["timestep"].annotation is int  # then numbers do, and take less than tensors
        self._stepped = timesteps.tolist() if whole else self._timesteps
        self.steps = request.steps
        self.calls = 0
        self.total = len(self._timesteps)
        self._first = {name: _copy(value) for name, value in vars(self._scheduler).items()}

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Seeded normal noise. The order of draws decides the picture: it is the pipelines' own."""
        return torch.randn(shape, generator=self._generator, device="cpu", dtype=torch.float32)

    def pure_noise(self, noise: Tensor) -> Tensor:
        """The first latents when nothing but noise stands there, in the scheduler's own scale."""
        return noise * self._scheduler.init_noise_sigma

    def noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Clean latents as noisy as they would be at the next timestep; clean ones after the last."""
        if self.done:
            return clean
        noisy: Tensor = self._scheduler.add_noise(clean, noise, self.timestep.reshape(1))
        return noisy

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

    @property
    def moment(self) -> float:
        """The timestep as the model is told it."""
        return self._moments[self.calls]

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents as the model wants to see them at this timestep."""
        scaled: Tensor = self._scheduler.scale_model_input(latents, self.timestep)
        return scaled

    def clean(self, output: Tensor, latents: Tensor) -> Tensor:
        """What the latents would be without their noise, as far as the model's output for them tells."""
        config, seen = self._scheduler.config, self.scaled(latents)
        alphas = self._scheduler.alphas_cumprod
        share = alphas[
            min(max(int(self.timestep.round()), 0), len(alphas) - 1)
        ]  # of the picture in what the model sees
        picture, noise = share.sqrt(), (1 - share).sqrt()
        if config.prediction_type == "sample":
            return output
        if config.prediction_type == "v_prediction":
            return picture * seen - noise * output
        return (seen - noise * output) / picture

    def advance(self, output: Tensor, latents: Tensor) -> Tensor:
        """Take one model output; returns the next latents."""
        options = dict(self._step_options, return_dict=False)
        moved: Tensor = self._scheduler.step(output, self._stepped[self.calls], latents, **options)[0]
        self.calls += 1
        return moved

    def state(self) -> dict[str, Any]:
        """All that has changed since it was made, as numbers, lists and tensors; `restore` of one made alike."""
        now = vars(self._scheduler)
        changed = {
            name: _copy(value) for name, value in now.items() if not _same(value, self._first.get(name, _ABSENT))
        }
        for name in _REBUILT:
            changed.pop(name, None)
        return {
            "kind": type(self._scheduler).__name__,
            "calls": self.calls,
            "generator": self._generator.get_state(),
            "scheduler": changed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for what is no state of such a sampler; then nothing has changed."""
        calls, generator, changed = state["calls"], state["generator"], state["scheduler"]
        if state["kind"] != type(self._scheduler).__name__ or not 0 <= calls <= self.total:
            raise ValueError("it is of another sampler")
        try:
            self._generator.set_state(generator)
        except RuntimeError as error:
            raise ValueError("it is no state of a generator") from error
        vars(self._scheduler).update(changed)
        self.calls = calls


class _Steps(int):
    """A number of steps, by which diffusers divides for `trailing` timesteps. It then counts down in floats, and where
    the quotient was rounded down, such as at 61, it comes to one step more, at -1: it is read as the noisiest of all,
    and undoes the picture. Here the quotient is rounded up there.
    """

    def __rtruediv__(self, timesteps: float) -> float:
        each = timesteps / int(self)
        return math.nextafter(each, math.inf) if timesteps / each > self else each


# A tree of noise, grown from its seed: it gives the same noise wherever it is asked first.
_REBUILT = ("noise_sampler",)
_ABSENT = object()


def _copy(value: Any) -> Any:
    """As it is now: schedulers write into their lists, never into their tensors."""
    return list(value) if isinstance(value, list) else value


def _same(value: Any, first: Any) -> bool:
    if isinstance(value, list) and isinstance(first, list):
        return len(value) == len(first) and all(map(_same, value, first))
    return value is first or (isinstance(value, int | float | str) and type(value) is type(first) and value == first)


def _scheduler(request: Request, config: dict[str, Any], seed: int) -> Any:
    """One of its own: a copy, since to make one from its configuration takes ten times as long."""
    options = _options(request, config, seed)
    scheduler = copy.copy(_made(SCHEDULERS[request.scheduler], json.dumps(config), json.dumps(options)))
    for name, value in vars(scheduler).items():
        setattr(scheduler, name, _copy(value))
    return scheduler


@functools.lru_cache(maxsize=64)
def _made(class_name: str, config: str, options: str) -> Any:
    return getattr(diffusers, class_name).from_config(json.loads(config), **json.loads(options))


@functools.cache
def _accepted(step: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(step).parameters


def _options(request: Request, config: dict[str, Any], seed: int) -> dict[str, Any]:
    options = {_DIFFUSERS_NAMES.get(name, name): value for name, value in request.scheduler_options.items()}
    if any(options.get(name) for name in _DIFFUSERS_NAMES.values()):  # of which only one may be on
        options = dict.fromkeys(_DIFFUSERS_NAMES.values(), False) | options
    if request.scheduler == "pndm":
        options["skip_prk_steps"] = True
    if request.scheduler == "dpm_sde":
        options["noise_sampler_seed"] = seed  # without it the class draws from the global generator
    laid_out = request.num_inference_steps + (request.scheduler in _LAY_OUT_ONE_MORE)
    if laid_out == config.get("num_train_timesteps", 1000) and config.get("steps_offset"):
        options["steps_offset"] = 0  # every timestep is used: an offset would lead past the last
    return options


_LAY_OUT_ONE_MORE = ("dpm_multistep", "unipc")
_DIFFUSERS_NAMES = {name: f"use_{name}" for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas")}
