"""LoRAs in a graph: each row's factors are inputs of it. How a UNet comes to take them, and what it is handed for rows.

For the graphs only (engine/convert.py, engine/executors.py): torch adds them by hooks. A large model's graph that is
handed none takes no longer than one without these inputs (decision 003). Must not read a LoRA's file.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import msgspec
import torch
from torch import Tensor, nn

from mezzotint.families.lora import LoraSet, stack

EVERYWHERE = torch.tensor(1 << 20)  # tokens that count, at most: all there are
NOWHERE = torch.tensor(1)  # one, which stands for all: where nothing is added


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer that takes factors: one tensor down, and one up for each of its `outputs`."""

    name: str  # in the UNet
    inputs: int  # channels
    outputs: tuple[int, ...]  # channels of its output, which are taken apart behind it


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of which all that it makes of texts is made before, side by side with the others'."""

    name: str
    outputs: int


class Layers(msgspec.Struct, frozen=True, kw_only=True):
    """What of a UNet takes factors. Kept beside its graph; neither: nothing of it does."""

    layers: tuple[Layer, ...] = ()  # in the order of their inputs, which follow all others: how many tokens count, then
    # of each down (rows or 1, inputs, rank) and up (rows or 1, rank, outputs or 1)
    texts: tuple[Text, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        return frozenset([one.name for one in self.layers] + [one.name for one in self.texts])


class TakesFactors(nn.Module):
    """Mutates a UNet inside `module`, such that its attentions' layers take factors; `own` inputs of it come before.

    Those of LoRAs on other layers than linear ones, as on its wide convolutions, it does not take.
    """

    def __init__(self, module: nn.Module, unet: nn.Module, own: int, before: Collection[nn.Module]) -> None:
        """`before`: layers of which what they make is an input itself."""
        from diffusers.models.activations import GEGLU
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        super().__init__()
        self._module, self._own = module, own
        self._given: list[list[Tensor]] = []
        self._few = EVERYWHERE
        self.layers: list[Layer] = []
        for outer, block in unet.named_modules():
            if not isinstance(block, Transformer2DModel):
                continue
            for inner, layer in block.named_modules():
                name, changed = f"{outer}.{inner}", cast(Any, layer)
                if isinstance(layer, GEGLU):
                    half = layer.proj.out_features // 2
                    number = self._number(f"{name}.proj", layer.proj.in_features, half, half)
                    changed.forward = self._gated(layer, number)
                elif inner.endswith("net.0.proj") or layer in before:
                    continue
                elif isinstance(layer, nn.Linear):
                    number = self._number(name, layer.in_features, layer.out_features)
                    changed.forward = self._linear(layer.forward, number)
                elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                    number = self._number(name, layer.in_channels, layer.out_channels)
                    changed.forward = self._pointwise(layer, number)

    def forward(self, *inputs: Tensor) -> Any:
        self._few, *given = inputs[self._own :]
        self._given = []
        for layer in self.layers:
            self._given.append(given[: 1 + len(layer.outputs)])
            del given[: 1 + len(layer.outputs)]
        return self._module(*inputs[: self._own])

    def _number(self, name: str, inputs: int, *outputs: int) -> int:
        self.layers.append(Layer(name=name, inputs=inputs, outputs=outputs))
        return len(self.layers) - 1

    def _added(self, number: int, tokens: Tensor) -> list[Tensor]:
        down, *ups = self._given[number]
        low = tokens[: down.shape[0], : self._few] @ down
        return [low @ up for up in ups]

    def _linear(self, plain: Callable[[Tensor], Tensor], number: int) -> Callable[..., Tensor]:
        return lambda tokens: plain(tokens) + self._added(number, tokens)[0]

    def _gated(self, layer: Any, number: int) -> Callable[..., Tensor]:
        """As two layers: to take apart what one has made is to copy it."""
        value, gate = zip(layer.proj.weight.chunk(2), layer.proj.bias.chunk(2), strict=True)

        def forward(tokens: Tensor) -> Tensor:
            for_value, for_gate = self._added(number, tokens)
            opened = layer.gelu(nn.functional.linear(tokens, *gate) + for_gate)
            return opened * (nn.functional.linear(tokens, *value) + for_value)

        return forward

    def _pointwise(self, layer: Any, number: int) -> Callable[..., Tensor]:
        """As a linear layer of the pixels: OpenVINO adds to a convolution only what is as large as its output."""

        def forward(pixels: Tensor) -> Tensor:
            rows, channels, height, width = pixels.shape
            tokens = pixels.permute(0, 2, 3, 1).reshape(rows, height * width, channels)
            output = nn.functional.linear(tokens, layer.weight.flatten(1), layer.bias)
            output = output + self._added(number, tokens)[0]
            return output.reshape(rows, height, width, -1).permute(0, 3, 1, 2)

        return forward


def handed(layers: Layers, rows: Sequence[LoraSet]) -> list[Tensor]:
    """What a graph is handed for rows of these adapters, after all else. No rows: nobody has any."""
    if not layers.layers:
        return []
    given: list[Tensor] = []
    is_any = False
    for layer in layers.layers:
        stacked = stack(rows, "unet", layer.name, torch.float32)
        if stacked is None:
            given += [torch.zeros(1, layer.inputs, 1), *(torch.zeros(1, 1, 1) for _ in layer.outputs)]
            continue
        is_any = True
        down = torch.zeros(len(rows), layer.inputs, stacked.down.shape[1])
        down[stacked.rows] = stacked.down.flatten(2).transpose(1, 2)
        up = torch.zeros(len(rows), stacked.up.shape[2], stacked.up.shape[1])
        up[stacked.rows] = stacked.up.transpose(1, 2)
        given += [down, *(part.contiguous() for part in up.split(layer.outputs, dim=2))]
    return [EVERYWHERE if is_any else NOWHERE, *given]


def add_to_texts(layers: Layers, rows: Sequence[LoraSet], hidden: Tensor, projected: Tensor) -> None:
    """Mutates what was made of texts, (rows, tokens, all outputs): adds what the rows' adapters make of `hidden`."""
    start = 0
    for text in layers.texts:
        if (stacked := stack(rows, "unet", text.name, torch.float32)) is not None:
            low = hidden[stacked.rows] @ stacked.down.transpose(1, 2)
            projected[stacked.rows, :, start : start + text.outputs] += low @ stacked.up.transpose(1, 2)
        start += text.outputs
