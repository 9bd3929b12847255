"""Convolutions 3 by 3 with fewer products: Winograd's minimal filtering (Lavin and Gray 2015, arXiv:1509.09308).

A tile of 4 by 4 results takes 36 products for each pair of channels instead of 144, one of 2 by 2 takes 16 instead of
36; sums before and after make up for it. For the graphs only (engine/convert.py): torch runs the layers as they are.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mezzotint.families.autoencoder import is_filtered

# Channels out that take the larger tile: its weights are four times the layer's, the other's not twice.
LARGE_UNTIL = 640

# Where the polynomials are evaluated, besides at infinity, by a tile's side. The paper takes 2 for 2/3 and 3/2, which
# loses twice as much of bfloat16's few digits.
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}

SPARE = 32  # pixels behind each row's, all zero: what windows have outside; and whole vectors are transposed faster


def save_products(modules: Iterable[nn.Module], *, least: int, larger: Iterable[nn.Module] = ()) -> None:
    """Mutates the convolutions of at least `least` channels in and half as many out: what they run, and their weights,
    which are given up. Those in modules that are `larger` take the larger tile in any case."""
    layer: Any
    worth_it = {*nn.ModuleList(larger).modules()}
    for layer in nn.ModuleList(modules).modules():
        if is_filtered(layer) and min(layer.in_channels, 2 * layer.out_channels) >= least:
            is_large = layer.out_channels <= LARGE_UNTIL or layer in worth_it
            layer.forward = _filtering(layer, 4 if is_large else 2)
            layer.weight = None


def _filtering(layer: Any, side: int) -> Callable[..., Tensor]:
    """For inputs of any size and number of rows, also once it is traced."""
    spread, weigh, gather = _transforms(_POINTS[side])
    window = side + 2  # what a tile's results are made of
    weights = torch.einsum("ai,bj,oxij->abxo", weigh, weigh, layer.weight.double()).flatten(0, 1).float()
    spread, gather = torch.kron(spread, spread).float(), torch.kron(gather, gather).float()
    bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()

    def forward(inputs: Tensor) -> Tensor:
        rows, channels, height, width = inputs.shape
        taken, put = _places(rows, height, width, side)  # OpenVINO finds out where layers have them in common
        pixels = functional.pad(inputs.flatten(2), (0, SPARE)).transpose(1, 2).reshape(-1, channels)
        # a constant by itself would have OpenVINO multiply in float32, with all that it is multiplied with turned first
        one = torch.arange(rows)[:1] + 1.0
        windows = pixels[taken].reshape(window**2, -1)
        products = (spread * one @ windows).reshape(window**2, -1, channels) @ weights
        tiles = (gather * one @ products.reshape(window**2, -1)).reshape(-1, layer.out_channels)
        return (tiles[put] + bias).permute(0, 3, 1, 2)

    return forward


def _tiles(pixels: int, side: int) -> int:
    return (pixels + side - 1) // side


def _places(rows: int, height: int, width: int, side: int) -> tuple[Tensor, Tensor]:
    """(window's pixels, tiles): which of the rows' pixels each window has; (rows, height, width): which of the results,
    (tile's pixels, tiles), each pixel is."""
    down, across = _tiles(height, side), _tiles(width, side)
    row, offset = torch.arange(rows), torch.arange(side + 2)[:, None]
    y, x = offset + side * torch.arange(down), offset + side * torch.arange(across)
    frame = (1, across * side + 1 - width, 1, down * side + 1 - height)
    # what is outside stands before the row's first pixel, where the row before has its spare ones
    framed = functional.pad(torch.arange(height * width).reshape(height, width), frame, value=-1)
    pixel = framed.flatten()[y[:, None, :, None] * (across * side + 2) + x[None, :, None, :]]
    taken = row[:, None, None] * (height * width + SPARE) + pixel[:, :, None]
    y, x = torch.arange(height)[:, None], torch.arange(width)
    result = (y % side) * side + x % side
    tile = (row[:, None, None] * down + y // side) * across + x // side
    return taken.flatten(0, 1).flatten(1), result * (rows * down * across) + tile


def _transforms(points: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Of a window, of a filter and of the products, in one dimension, by Toom and Cook."""

    def evaluated(count: int) -> Tensor:
        finite = [[point**power for power in range(count)] for point in points]
        return torch.tensor([*finite, [0.0] * (count - 1) + [1.0]], dtype=torch.float64)

    return torch.linalg.inv(evaluated(len(points) + 1)).T, evaluated(3), evaluated(len(points) - 1).T
