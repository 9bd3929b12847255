"""A large autoencoder's layers in NNPACK give what they give in torch, whole or in bands."""

import copy

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from mezzotint.families import autoencoder

pytestmark = pytest.mark.skipif(not autoencoder.available(), reason="this torch has no NNPACK, and stays as it is")


def vae(*channels: int) -> AutoencoderKL:
    torch.manual_seed(0)
    count = len(channels)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
    ).eval()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what NNPACK was given."""
    shapes: list[tuple[int, ...]] = []
    run = torch._nnpack_spatial_convolution

    def noted(inputs: Tensor, *rest: object) -> Tensor:
        shapes.append(tuple(inputs.shape))
        return run(inputs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "_nnpack_spatial_convolution", noted)
    return shapes


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(32, 36), (33, 41)])
def test_pictures_come_out_as_before(calls: list[tuple[int, ...]], height: int, width: int) -> None:
    plain = vae(128, 160)
    quick = copy.deepcopy(plain)
    assert autoencoder.quicken(quick)
    latents, picture = torch.randn(1, 4, height, width), torch.randn(1, 3, 2 * height, 2 * width)
    assert torch.allclose(quick.decode(latents).sample, plain.decode(latents).sample, atol=1e-4)
    decoded = len(calls)
    assert torch.allclose(quick.encode(picture).latent_dist.mean, plain.encode(picture).latent_dist.mean, atol=1e-4)
    assert 0 < decoded < len(calls), "both ways"
    assert all(shape[2] * shape[3] >= autoencoder.LEAST_PIXELS for shape in calls)


@torch.no_grad()
def test_what_it_takes_of_memory_is_limited_and_changes_no_bit(
    calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = vae(128, 128)
    autoencoder.quicken(quick)
    latents = torch.randn(1, 4, 33, 35)
    whole = quick.decode(latents).sample
    layers = len(calls)
    monkeypatch.setattr(autoencoder, "WORKSPACE_BYTES", 3 * 12 * 256 * 64 * 4)  # three rows of twelve tiles
    assert torch.equal(quick.decode(latents).sample, whole)
    assert len(calls) == layers + 4 * layers, "66 rows of pixels in bands of 18"


@torch.no_grad()
def test_several_pictures_at_once_and_small_ones_run_as_before(calls: list[tuple[int, ...]]) -> None:
    plain = vae(128, 128)
    quick = copy.deepcopy(plain)
    autoencoder.quicken(quick)
    for latents in (torch.randn(2, 4, 32, 32), torch.randn(1, 4, 16, 16)):
        assert torch.allclose(quick.decode(latents).sample, plain.decode(latents).sample, atol=1e-5)
    assert not calls


def test_a_small_autoencoder_is_left_alone() -> None:
    small = vae(64, 128)
    assert not autoencoder.quicken(small)
    assert all("forward" not in vars(layer) for layer in small.modules() if isinstance(layer, nn.Conv2d))
