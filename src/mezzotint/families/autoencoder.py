"""A large autoencoder in float32 on a CPU: its convolutions of large pictures run in NNPACK, which torch comes with.

That is Winograd's filtering (decision 010) with tiles of 6 by 6, worked through in the cache: 64 products where a
convolution takes 324, and less than half of the time. Must not change a module's class, parameters or hooks.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

LEAST_CHANNELS = 128  # of an autoencoder's widest pictures: with fewer, what goes from one kernel's layout of pixels to
# the other's costs what the products save
LEAST_PIXELS = 64 * 64
WORKSPACE_BYTES = 256 << 20  # for the tiles, at most; a thread that has called it keeps what its largest call took
_TILE = 6


def available() -> bool:
    """Also makes it ready: before the first call of this, all others fail."""
    return torch.backends.nnpack.is_available() and hasattr(torch, "_nnpack_spatial_convolution")


def quicken(vae: Any) -> bool:
    """Mutates what its layers run, and says whether it did: not for a small one, nor where this torch has no NNPACK."""
    if min(vae.config.block_out_channels) < LEAST_CHANNELS or not available():
        return False
    for layer in vae.modules():
        if is_filtered(layer) and min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS:
            layer.forward = _convolution(layer, layer.forward)
        elif layer.__class__ is nn.SiLU:
            layer.inplace = True  # what it is given is a norm's, and nobody else's
        elif layer.__class__ is ResnetBlock2D and layer.output_scale_factor == 1:
            layer.forward = _residual(layer)
    return True


def _residual(block: Any) -> Callable[..., Tensor]:
    """Diffusers' own also divides by that factor, and each of its sums is one more piece of memory."""

    def forward(inputs: Tensor, temb: None) -> Tensor:
        hidden: Tensor = block.conv1(block.nonlinearity(block.norm1(inputs)))
        hidden = block.conv2(block.nonlinearity(block.norm2(hidden)))
        hidden += inputs if block.conv_shortcut is None else block.conv_shortcut(inputs)
        return hidden

    return forward


def is_filtered(layer: nn.Module) -> bool:
    """Whether it is a convolution as Winograd's filtering does them."""
    return (
        layer.__class__ is nn.Conv2d
        and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
    )


def _convolution(layer: nn.Conv2d, plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(inputs: Tensor) -> Tensor:
        rows, _, height, width = inputs.shape
        if rows != 1 or height * width < LEAST_PIXELS:
            return plain(inputs)
        across = -(-width // _TILE) * (layer.in_channels + layer.out_channels) * (_TILE + 2) ** 2 * inputs.itemsize
        band = max(1, WORKSPACE_BYTES // across) * _TILE
        if band >= height:
            return _run(inputs, layer, 1)
        output = inputs.new_empty(1, layer.out_channels, height, width)
        for first in range(0, height, band):  # whole tiles, so that the results are the same to the last bit
            last = min(height, first + band)
            part = inputs[:, :, max(0, first - 1) : last + 1]
            part = functional.pad(part, (0, 0, int(first == 0), int(last == height)))
            output[:, :, first:last] = _run(part, layer, 0)
        return output

    return forward


def _run(inputs: Tensor, layer: nn.Conv2d, padding: int) -> Tensor:
    output: Tensor = torch._nnpack_spatial_convolution(inputs, layer.weight, layer.bias, [padding, 1], [1, 1])
    return output
