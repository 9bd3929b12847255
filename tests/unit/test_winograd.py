"""Convolutions with fewer products give what the layers give, of any size and number of rows, also once traced."""

import copy
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.engine.winograd import save_products

SMALLER = {4: sys.maxsize, 2: 1}  # by the tile's side


def both(layer: nn.Module, side: int) -> tuple[nn.Module, nn.Module]:
    saving = nn.Sequential(copy.deepcopy(layer))
    save_products(saving, least=1, smaller=SMALLER[side])
    return layer, saving


def products(layer: nn.Module, inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counted:
        layer(inputs)
    return int(counted.get_total_flops())


@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 4, 4), (3, 1, 1), (2, 5, 3), (1, 7, 18), (5, 2, 9)])
def test_the_results_are_those_of_the_layer(side: int, bias: bool, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    layer, saving = both(nn.Conv2d(7, 5, 3, padding=1, bias=bias), side)
    rows, height, width = shape
    inputs = torch.randn(rows, 7, height, width)
    assert torch.allclose(saving(inputs), layer(inputs), atol=2e-6)


@pytest.mark.parametrize("side", [2, 4])
@torch.no_grad()
def test_a_trace_of_one_size_serves_all_others(side: int) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1))
    plain, saving = both(layers, side)
    traced = torch.jit.trace(saving, torch.randn(2, 4, 9, 7), check_trace=False)
    for shape in ((1, 4, 16, 16), (3, 4, 8, 5), (2, 4, 3, 2)):
        inputs = torch.randn(shape)
        assert torch.allclose(traced(inputs), plain(inputs), atol=2e-6)


@pytest.mark.parametrize(("side", "share"), [(4, 0.30), (2, 0.48)])
def test_there_are_fewer_products(side: int, share: float) -> None:
    layer, saving = both(nn.Conv2d(256, 256, 3, padding=1), side)
    inputs = torch.randn(1, 256, 16, 16)
    assert products(saving, inputs) < share * products(layer, inputs)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 5, padding=2),
        nn.Conv2d(8, 7, 3, padding=1),
        nn.Conv2d(7, 8, 3, padding=1),
        nn.Linear(8, 8),
    ],
)
def test_what_it_does_not_fit_stays_as_it_is(layer: nn.Module) -> None:
    save_products(layer, least=8, smaller=16)
    assert layer.weight is not None
    assert "forward" not in vars(layer)
