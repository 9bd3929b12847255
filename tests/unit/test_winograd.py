"""Convolutions with fewer products give what the layers give, of any size and number of rows, also once traced."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.engine import winograd
from mezzotint.engine.winograd import save_products


@pytest.fixture(params=[2, 4])
def side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the tiles that all layers take."""
    monkeypatch.setattr(winograd, "LARGE_UNTIL", {2: 0, 4: 640}[request.param])
    return int(request.param)


def saving(layer: nn.Module) -> nn.Sequential:
    module = nn.Sequential(copy.deepcopy(layer))
    save_products([module], least=1)
    return module


def products(layer: nn.Module, inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counted:
        layer(inputs)
    return int(counted.get_total_flops())


@pytest.mark.usefixtures("side")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 4, 4), (3, 1, 1), (2, 5, 3), (1, 7, 18), (5, 2, 9)])
def test_the_results_are_those_of_the_layer(bias: bool, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(7, 5, 3, padding=1, bias=bias)
    rows, height, width = shape
    inputs = torch.randn(rows, 7, height, width)
    made = saving(layer)
    assert torch.allclose(made(inputs), layer(inputs), atol=2e-6)
    assert made[0].weight is None


@torch.no_grad()
@pytest.mark.usefixtures("side")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_trace_of_one_size_serves_all_others() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1))
    traced = torch.jit.trace(saving(layers), torch.randn(2, 4, 9, 7), check_trace=False)  # type: ignore[no-untyped-call]
    for shape in ((1, 4, 16, 16), (3, 4, 8, 5), (2, 4, 3, 2)):
        inputs = torch.randn(shape)
        assert torch.allclose(traced(inputs), layers(inputs), atol=2e-6)


def test_there_are_fewer_products(side: int) -> None:
    layer = nn.Conv2d(256, 256, 3, padding=1)
    inputs = torch.randn(1, 256, 16, 16)
    least, most = {2: (16 / 36, 0.49), 4: (36 / 144, 0.31)}[side]
    assert least < products(saving(layer), inputs) / products(layer, inputs) < most


@torch.no_grad()
def test_bfloat16_loses_less_than_with_whole_points(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(64, 64, 3, padding=1, bias=False), torch.randn(1, 64, 32, 32)
    expected, product = layer(inputs), Tensor.__matmul__

    def rounded(one: Tensor, other: Tensor) -> Tensor:
        """As a graph in bfloat16 takes and gives its products."""
        return product(one.bfloat16().float(), other.bfloat16().float()).bfloat16().float()

    def lost() -> float:
        made = saving(layer)
        with monkeypatch.context() as patched:
            patched.setattr(Tensor, "__matmul__", rounded)
            return float((made(inputs) - expected).abs().mean())

    ours = lost()
    monkeypatch.setattr("mezzotint.engine.winograd._POINTS", {4: (0.0, 1.0, -1.0, 2.0, -2.0)})
    assert 0 < ours < 0.7 * lost()


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
        nn.Conv2d(8, 3, 3, padding=1),
        nn.Conv2d(7, 8, 3, padding=1),
        nn.Linear(8, 8),
    ],
    ids=str,
)
def test_what_it_does_not_fit_stays_as_it_is(layer: nn.Module) -> None:
    save_products([layer], least=8)
    assert layer.weight is not None
    assert "forward" not in vars(layer)
