"""Draws pictures a little differently each time: mirrored, moved, resized, tinted. Knows no captions and no model."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Range:
    """How far a variant may go: moved by a part of the side, resized by a factor, tinted by an exponent's logarithm."""

    moved: float
    smallest: float
    largest: float
    tinted: float


SEEDS = Range(moved=1 / 32, smallest=0.93, largest=1.04, tinted=0.2)  # what a seed changes; nearest pictures stay so
SHAPES = Range(moved=3 / 32, smallest=0.75, largest=1.1, tinted=0.0)  # more shapes than there are pictures


def vary(pictures: Tensor, mirrored: Tensor, by: Range, generator: torch.Generator) -> Tensor:
    """Pictures (n, 3, h, w) in -1 to 1, each moved, resized and tinted on white; half of those in `mirrored` (n) too.

    A tint leaves black and white what they are.
    """
    n, device = len(pictures), pictures.device
    turned = mirrored & (torch.rand(n, generator=generator, device=device) < 0.5)
    pictures = torch.where(turned[:, None, None, None], pictures.flip(-1), pictures)
    scale = by.smallest + (by.largest - by.smallest) * torch.rand(n, generator=generator, device=device)
    places = torch.zeros(n, 2, 3, device=device)
    places[:, 0, 0] = places[:, 1, 1] = 1 / scale
    places[:, :, 2] = _between(n, 2, generator=generator, device=device) * 2 * by.moved / scale[:, None]
    grid = torch.nn.functional.affine_grid(places, list(pictures.shape), align_corners=False)
    # white is 0 here, and so is what lies outside
    drawn = torch.nn.functional.grid_sample(pictures - 1, grid, align_corners=False)
    exponent = (by.tinted * _between(n, 3, 1, 1, generator=generator, device=device)).exp()
    return (drawn / 2 + 1).clamp(0, 1).pow(exponent) * 2 - 1


def _between(*shape: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Even draws between -1 and 1."""
    return torch.rand(*shape, generator=generator, device=device) * 2 - 1
