"""Weight-decomposed adapters (DoRA) as what each adds to a layer's output. Liu et al. 2024, arXiv:2402.09353. Must not
know of files or rows.

Such a file holds, beside a layer's factors, how long each column of the adapted weight is: of an output channel, as in
the paper, peft and newer LyCORIS files, or of an input channel, as in older ones. With g = trained / actual length, the
layer computes g (W x + B A x), or W (g x) + B A (g x). Less W x, both are a product of factors, into which g went, and
a gain on what the layer itself computes; a scale multiplies that difference, as in AUTOMATIC1111 and ComfyUI.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MAGNITUDES = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")


@dataclass(frozen=True, slots=True)
class Gain:
    """What a layer adds of itself: `channels` (out,) times its output without bias, or its output, without bias, for
    `channels` (in,) times its input."""

    channels: Tensor
    of_output: bool


def decompose(
    down: Tensor, up: Tensor, magnitude: Tensor, weight: Tensor, *, of_output: bool | None
) -> tuple[Tensor, Tensor, Gain]:
    """down (r, in, ...), up (out, r) and a layer's weight (out, in, ...) to the factors and the gain that it adds.

    `of_output` None: by the magnitude's shape, (out, 1, ...) or (1, in, ...). Raises ValueError for another size.
    """
    whole = weight.float() + torch.tensordot(up, down, 1)
    if of_output is None:
        of_output = magnitude.shape[0] == len(whole)
    columns = whole if of_output else whole.transpose(0, 1)
    if magnitude.numel() != len(columns):
        raise ValueError(f"its magnitudes are {tuple(magnitude.shape)}; the layer is {tuple(weight.shape)}")
    lengths = columns.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    gain = magnitude.to(lengths).flatten() / lengths
    if of_output:
        return down, up * gain[:, None], Gain(gain - 1, of_output=True)
    return down * gain.reshape(-1, *[1] * (down.dim() - 2)), up, Gain(gain - 1, of_output=False)
