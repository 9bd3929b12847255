"""What a picture's two rows have in common until they first look at a text is computed once, in graphs.

With guidance a UNet sees the same latents at the same time under two texts. Of Stable Diffusion 1.5 that is what comes
before its first look at a text, the largest attention among it. Where the text also goes into the time (SDXL) it is
nothing. For the graphs only (engine/convert.py, engine/executors.py).
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn


def shared(latents: Tensor, timesteps: Tensor, *, differ: bool) -> tuple[Tensor, Tensor]:
    """Of rows those to compute (m,), and which of these each one is (n,); all of them if they `differ` in more."""
    if differ:
        every = torch.arange(len(latents), dtype=torch.int32)
        return every, every
    is_old = (latents[1:] == latents[:-1]).flatten(1).all(dim=1) & (timesteps[1:] == timesteps[:-1])
    is_new = torch.cat([torch.tensor([True]), ~is_old])
    return is_new.nonzero().flatten().to(torch.int32), (is_new.cumsum(0) - 1).to(torch.int32)


class SharesRows(nn.Module):
    """Mutates a UNet inside `module`, such that its first layers run for some rows only: what `shared` says, two
    inputs behind latents, times and texts."""

    def __init__(self, module: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._computed, self._which = torch.empty(0), torch.empty(0)
        for layer in _before_texts(unet):
            cast(Any, layer).forward = self._once(layer.forward)

    def forward(self, *inputs: Tensor) -> Any:
        latents, times, texts, self._computed, self._which, *others = inputs
        return self._module(latents, times, texts, *others)

    def _once(self, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(*rows: Tensor, **others: Any) -> Tensor:
            return plain(*(one.index_select(0, self._computed) for one in rows), **others).index_select(0, self._which)

        return forward


def _before_texts(unet: Any) -> Iterator[nn.Module]:
    """Layers of rows alone, on the way down to the first attention to a text."""
    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            yield resnet
            if isinstance(attention, Transformer2DModel) and not attention.transformer_blocks[0].only_cross_attention:
                yield attention.transformer_blocks[0].attn1
            if attention is not None:
                return
        yield from block.downsamplers or ()
