"""Does once what a small model on a CPU would do at every call: lays weights out as its kernels want them, and looks
into what an attention takes.

Same kernels, same numbers to the last bits of float32; a step of two small rows takes a fifth less. Must not change a
module's class, parameters or hooks: LoRAs and conversions still find what they look for.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

MAX_BYTES = 512 << 20  # of weights: packed ones are a copy, and large models gain little


def pack(module: nn.Module) -> int:
    """Mutates the layers' `forward`; returns the bytes of their copies. Does nothing where torch has no such kernels,
    or for too large a module."""
    weights = sum(parameter.nbytes for parameter in module.parameters())
    if weights > MAX_BYTES or not torch.backends.mkldnn.is_available():
        return 0
    copied = 0
    for layer in module.modules():
        if layer.__class__ is nn.Conv2d and layer.padding_mode == "zeros":
            layer.forward = _convolution(layer)  # type: ignore[assignment, method-assign]
        elif layer.__class__ is nn.Linear:
            layer.forward = _projection(layer)  # type: ignore[assignment, method-assign]
        elif isinstance(layer, Attention):
            layer.forward = _attention(layer)
            continue
        else:
            continue
        copied += layer.weight.nbytes
    return copied


def _convolution(layer: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    shape = [list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups]
    packed = torch.ops.mkldnn._reorder_convolution_weight(layer.weight.detach(), *shape, [])
    bias, run = layer.bias, torch.ops.mkldnn._convolution_pointwise

    def forward(inputs: Tensor) -> Tensor:
        output: Tensor = run(inputs, packed, bias, *shape, "none", [], "")
        return output

    return forward


def _projection(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
    bias, run = layer.bias, torch.ops.mkldnn._linear_pointwise

    def forward(inputs: Tensor) -> Tensor:
        output: Tensor = run(inputs, packed, bias, "none", [], "")
        return output

    return forward


def _attention(layer: Attention) -> Callable[..., Tensor]:
    """Diffusers takes its processor's signature apart at every call, to leave out what that does not know."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        attended: Tensor = layer.processor(layer, *args, **kwargs)
        return attended

    return forward


_ROWS = 64  # a hint: how many the kernel is chosen for
