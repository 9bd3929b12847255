"""What the engine asks of a model architecture, and the values that pass between them. Holds no session's state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A text to encode. Equal prompts have equal encodings, so this is also a cache key."""

    text: str
    syntax: str  # "plain" or "weighted"
    clip_skip: int | None
    windows: int  # encode to at least so many windows, padded with empty ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """An encoded prompt. `hidden` is (tokens, channels); tokens is a multiple of the encoder's window."""

    hidden: Tensor
    windows: int
    cut: bool  # text past the last window was left out


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """One model call. Row i has its own timestep and text; rows do not see one another."""

    latents: Tensor  # (n, channels, height, width), scaled as the row's sampler wants it
    timesteps: Tensor  # (n,)
    hidden: Tensor  # (n, tokens, channels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Executor:
    """What runs a family's modules, in which dtype. `twin` is the same model in torch float32, if this is not it."""

    name: str = "torch"
    dtype: str = "float32"
    twin: "Family | None" = None


PLAIN = Executor()


class Family(Protocol):
    """One model architecture loaded on one device. Called from a single thread; holds no per-session state."""

    latent_channels: int
    vae_factor: int
    scheduler_config: dict[str, Any]
    device: torch.device
    executor: Executor

    def windows(self, text: str, syntax: str) -> int:
        """How many encoder windows a text takes, at least 1, at most MAX_WINDOWS."""

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """May be slow: the engine calls it between steps. Result i depends on prompt i only."""

    def predict(self, rows: Rows) -> Tensor:
        """Raw model output per row, float32, (n, channels, height, width). Guidance is the engine's."""

    def decode(self, latents: Tensor) -> Tensor:
        """(n, channels, h, w) latents to (n, H, W, 3) uint8 pixels on the CPU. Never changes the size."""


MAX_WINDOWS = 8
