"""What the engine asks of a model architecture, and the values that pass between them. Holds no session's state."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mezzotint.families.embedding import Embedding, EmbeddingSet
from mezzotint.families.lora import Lora, LoraSet

MAX_WINDOWS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A text to encode. Equal prompts have equal encodings, so this is also a cache key."""

    text: str
    syntax: str  # "plain" or "weighted"
    clip_skip: int | None
    windows: int = 1  # encode to at least so many windows, padded with empty ones
    negative: bool = False  # some architectures read an empty one as "nothing" instead of as a text
    loras: LoraSet = ()
    embeddings: EmbeddingSet = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """An encoded prompt. `hidden` is (tokens, channels); tokens is a multiple of the encoder's window."""

    hidden: Tensor
    windows: int
    cut: bool  # text past the last window was left out
    pooled: Tensor | None = None  # (channels,), of architectures that want it


class ControlNet(Protocol):
    """A loaded ControlNet. Called from a single thread; holds no per-session state."""

    pools: bool  # what it adds is the same all over the picture: for the prompt's row alone, never faded

    @property
    def bytes(self) -> int:
        """Memory of its weights."""

    def residuals(self, rows: "Rows", images: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        """What it adds to the UNet for the rows `chosen` (indices, (m,)), of which row j has `images[j]`: one tensor
        (m, channels, h, w) for each of the UNet's skips, the middle's last."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Control:
    """One ControlNet at work on one row of one call."""

    net: ControlNet
    image: Tensor  # (3, H, W) in 0..1
    scale: float
    fade: bool  # weaker in the outer skips, by 0.825 a skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """One model call. Row i has its own timestep, text, adapters; rows do not see one another."""

    latents: Tensor  # (n, channels, height, width), scaled as the row's sampler wants it
    timesteps: Tensor  # (n,)
    hidden: Tensor  # (n, tokens, channels)
    pooled: Tensor | None = None  # (n, channels)
    extra: Tensor | None = None  # (n, 5, height, width): mask and masked latents, of inpainting UNets
    loras: tuple[LoraSet, ...] = ()  # by row; empty: none has any
    controls: tuple[tuple[Control, ...], ...] = ()  # by row; empty: none has any


@dataclass(frozen=True, kw_only=True, slots=True)
class Executor:
    """What runs a family's modules, in which dtype. `twin` is the same model in torch float32, beside the graphs of
    another executor, which cannot do all that torch does: of LoRAs, those that stay within the layers `adapts`."""

    name: str = "torch"
    dtype: str = "float32"
    twin: "Family | None" = None
    adapts: frozenset[str] = frozenset()


class Family(Protocol):
    """One model architecture loaded on one device. Called from a single thread; holds no per-session state."""

    latent_channels: int
    vae_factor: int
    scheduler_config: dict[str, Any]
    device: torch.device
    inpaints: bool  # its UNet takes mask and masked latents beside the latents
    executor: Executor

    @property
    def bytes(self) -> int:
        """Memory of all its weights as they are loaded, every copy counted."""

    def pack(self) -> None:
        """Spend some load time and memory on faster calls. Changes results by the last bits of float32 at most."""

    def windows(self, prompt: Prompt) -> int:
        """How many encoder windows its text takes, at least 1, at most MAX_WINDOWS."""

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """May be slow: the engine calls it between steps. Result i depends on prompt i only."""

    def predict(self, rows: Rows) -> Tensor:
        """Raw model output per row, float32, (n, channels, height, width). Guidance is the engine's."""

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, H, W) in -1..1 to mean and deviation of its latents, (1, channels, h, w), scaled, float32, CPU."""

    def decode(self, latents: Tensor) -> Tensor:
        """(n, channels, h, w) latents to (n, H, W, 3) uint8 pixels on the CPU. Never changes the size."""

    def load_lora(self, path: Path) -> Lora:
        """Read an adapter for this model. Raises ValueError when it does not fit."""

    def load_embedding(self, path: Path) -> Embedding:
        """Read an embedding for this model's text encoders. Raises ValueError when it does not fit."""

    def load_controlnet(self, path: Path) -> ControlNet:
        """Read a ControlNet for this model. Raises OSError, ValueError or RuntimeError when it does not fit."""
