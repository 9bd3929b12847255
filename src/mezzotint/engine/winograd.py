"""Convolutions 3 by 3 with fewer products: Winograd's minimal filtering (Lavin and Gray 2015, arXiv:1509.09308).

A tile of 4 by 4 results takes 36 products for each pair of channels instead of 144; sums before and after make up for
it. For the graphs only (engine/convert.py): torch runs the layers as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST = 640  # channels out: its weights are four times the layer's, and wider layers have too few pixels to pay for that

_SIDE = 4  # of a tile
_WINDOW = _SIDE + 2  # what a tile's results are made of
# Where the polynomials are evaluated, besides at infinity. Not the integers that the paper takes: with these half as
# much is lost of bfloat16's few digits.
_POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)

Places = tuple[Tensor, Tensor]


def save_products(module: nn.Module, *, least: int) -> None:
    """Mutates the convolutions of at least `least` channels in and out, and of at most MOST out: what they run, and
    their weights, which are given up."""
    known: dict[tuple[int, int], Places] = {}
    layer: Any
    for layer in module.modules():
        if _fits(layer) and least <= min(layer.in_channels, layer.out_channels) and layer.out_channels <= MOST:
            layer.forward = _filtering(layer, known)
            layer.weight = None


def _fits(layer: nn.Module) -> bool:
    return (
        layer.__class__ is nn.Conv2d
        and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
    )


def _filtering(layer: Any, known: dict[tuple[int, int], Places]) -> Callable[..., Tensor]:
    """For inputs of any size and number of rows once it is traced. In a trace its layers share what is `known`."""
    spread, weigh, gather = _transforms()
    weights = torch.einsum("ai,bj,oxij->abxo", weigh, weigh, layer.weight.double()).flatten(0, 1).float()
    spread, gather = torch.kron(spread, spread).float(), torch.kron(gather, gather).float()
    bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()

    def forward(inputs: Tensor) -> Tensor:
        rows, channels, height, width = inputs.shape
        if (height, width) not in known:
            known[height, width] = _places(rows, height, width)
        taken, put = known[height, width]
        right, bottom = _tiles(width) * _SIDE + 1 - width, _tiles(height) * _SIDE + 1 - height
        framed = functional.pad(inputs.permute(0, 2, 3, 1), (0, 0, 1, right, 1, bottom))
        windows = framed.reshape(-1, channels)[taken].reshape(_WINDOW**2, -1)
        products = (spread @ windows).reshape(_WINDOW**2, -1, channels) @ weights
        tiles = (gather @ products.reshape(_WINDOW**2, -1)).reshape(-1, layer.out_channels)
        return (tiles[put] + bias).permute(0, 3, 1, 2)

    return forward


def _tiles(pixels: int) -> int:
    return (pixels + _SIDE - 1) // _SIDE


def _places(rows: int, height: int, width: int) -> Places:
    """(36, tiles): which of the framed inputs' pixels each window has; (rows, height, width): which of the tiles'
    results, (16, tiles), each pixel is."""
    down, across = _tiles(height), _tiles(width)
    row, offset = torch.arange(rows), torch.arange(_WINDOW)[:, None]
    y, x = offset + _SIDE * torch.arange(down), offset + _SIDE * torch.arange(across)
    framed_height, framed_width = down * _SIDE + 2, across * _SIDE + 2
    pixel = y[:, None, :, None] * framed_width + x[None, :, None, :]
    taken = row[:, None, None] * (framed_height * framed_width) + pixel[:, :, None]
    y, x = torch.arange(height)[:, None], torch.arange(width)
    result = (y % _SIDE) * _SIDE + x % _SIDE
    tile = (row[:, None, None] * down + y // _SIDE) * across + x // _SIDE
    return taken.flatten(0, 1).flatten(1), result * (rows * down * across) + tile


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Of a window, of a filter and of the products, in one dimension, by Toom and Cook."""

    def evaluated(count: int) -> Tensor:
        finite = [[point**power for power in range(count)] for point in _POINTS]
        return torch.tensor([*finite, [0.0] * (count - 1) + [1.0]], dtype=torch.float64)

    return torch.linalg.inv(evaluated(_WINDOW)).T, evaluated(3), evaluated(_SIDE).T
