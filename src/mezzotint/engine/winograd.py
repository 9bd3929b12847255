"""Convolutions 3 by 3 with fewer products: Winograd's minimal filtering (Lavin and Gray 2015, arXiv:1509.09308).

A tile of 4 by 4 results takes 36 products for each pair of channels instead of 144, a tile of 2 by 2 takes 16 instead of
36; sums before and after make up for it. For the graphs only (engine/convert.py): torch runs the layers as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Where the polynomials are evaluated, besides at infinity, by the tile's side. Not the integers that the paper takes:
# these sides of 1 lose half as much of bfloat16's few digits.
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}


def save_products(module: nn.Module, *, least: int, smaller: int) -> None:
    """Mutates the convolutions of at least `least` channels in and out: what they run, and their weights, which are
    given up. From `smaller` channels out they take the smaller tile, for the larger one's weights are four times those
    of the layer, which takes memory, and time where a picture has few pixels left."""
    places: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
    for layer in module.modules():
        if _fits(layer) and min(layer.in_channels, layer.out_channels) >= least:
            layer.forward = _filtering(layer, 2 if layer.out_channels >= smaller else 4, places)
            layer.weight = None


def _fits(layer: nn.Module) -> bool:
    return (
        layer.__class__ is nn.Conv2d
        and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
    )


def _filtering(layer: Any, side: int, places: dict[tuple[int, int, int], tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """For inputs of any number of rows and any size, also when it is traced. `places` is shared by a trace's layers."""
    spread, weigh, gather = _transforms(_POINTS[side])
    window = side + 2
    weights = torch.einsum("ai,bj,oxij->abxo", weigh, weigh, layer.weight.double()).flatten(0, 1).float()
    spread, gather = torch.kron(spread, spread).float(), torch.kron(gather, gather).float()
    bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()

    def forward(inputs: Tensor) -> Tensor:
        rows, channels, height, width = inputs.shape
        down, across = (height + side - 1) // side, (width + side - 1) // side
        if (height, width, side) not in places:
            places[height, width, side] = _places(rows, height, width, side)
        taken, put = places[height, width, side]
        framed = functional.pad(
            inputs.permute(0, 2, 3, 1), (0, 0, 1, across * side + 1 - width, 1, down * side + 1 - height)
        )
        windows = framed.reshape(-1, channels)[taken].reshape(window**2, -1)
        products = (spread @ windows).reshape(window**2, -1, channels) @ weights
        tiles = (gather @ products.reshape(window**2, -1)).reshape(-1, layer.out_channels)
        return (tiles[put] + bias).permute(0, 3, 1, 2)

    return forward


def _places(rows: int, height: int, width: int, side: int) -> tuple[Tensor, Tensor]:
    """Where each window's pixels lie in the framed inputs, and where each pixel of the result lies in the tiles."""
    down, across = (height + side - 1) // side, (width + side - 1) // side
    row = torch.arange(rows)
    y = torch.arange(side + 2)[:, None] + side * torch.arange(down)  # of a window's pixel, of a tile
    x = torch.arange(side + 2)[:, None] + side * torch.arange(across)
    in_picture = y[:, None, :, None] * (across * side + 2) + x[None, :, None, :]
    in_rows = row[:, None, None] * ((down * side + 2) * (across * side + 2)) + in_picture[:, :, None]
    y, x = torch.arange(height)[:, None], torch.arange(width)
    in_tile = (y % side) * side + x % side
    tile = (row[:, None, None] * down + y // side) * across + x // side
    return in_rows.flatten(0, 1).flatten(1), in_tile * (rows * down * across) + tile


def _transforms(points: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Of a window, of a filter and of the products, in one dimension, by Toom and Cook."""

    def evaluated(count: int) -> Tensor:
        finite = [[point**power for power in range(count)] for point in points]
        return torch.tensor([*finite, [0.0] * (count - 1) + [1.0]], dtype=torch.float64)

    return torch.linalg.inv(evaluated(len(points) + 1)).T, evaluated(3), evaluated(len(points) - 1).T
