"""Rows of a model call that nobody asked for: to trace a UNet with and to time it by. Must not run it."""

import torch
from torch import Tensor

from mezzotint.families.base import Family, Prompt, Rows

SEED = 0


def rows(family: Family, count: int, height: int, width: int, *, windows: int = 1) -> Rows:
    """So many, of latents (height, width): noise at different times, an empty text and another in turns, with all that
    the family's UNet takes. The same at every call."""
    generator = torch.Generator().manual_seed(SEED)
    texts = family.encode([Prompt(text=text, syntax="plain", clip_skip=None, windows=windows) for text in ("", "boat")])
    told = [texts[row % 2] for row in range(count)]
    pooled = [one.pooled for one in told if one.pooled is not None]
    channels = family.latent_channels
    return Rows(
        latents=torch.randn(count, channels, height, width, generator=generator),
        timesteps=torch.linspace(1, 999, count),
        hidden=torch.stack([one.hidden for one in told]),
        pooled=torch.stack(pooled) if pooled else None,
        extra=torch.randn(count, 1 + channels, height, width, generator=generator) if family.inpaints else None,
    )


def paired(rows: Tensor) -> Tensor:
    """Each second one like the one before, as a picture's two rows with guidance are."""
    return rows[::2].repeat_interleave(2, dim=0)
