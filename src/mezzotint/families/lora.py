"""LoRA adapters that stay apart from the weights: each row of a call adds its own low-rank product. Hu et al. 2021.

Reads the layouts of diffusers, peft and kohya, LyCORIS' and DoRA too. Must not merge anything into a model or know of
sessions.
"""

import json
import math
import re
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from mezzotint.families.dora import MAGNITUDES, Gain, decompose
from mezzotint.families.lycoris import as_plain
from mezzotint.headers import PEFT_CONFIG, lora_file, peft_config

_DOWN = (
    ".lora_A.weight",
    ".lora.down.weight",
    ".lora_down.weight",
    "_lora.down.weight",
    ".lora_linear_layer.down.weight",
)
_UP = (".lora_B.weight", ".lora.up.weight", ".lora_up.weight", "_lora.up.weight", ".lora_linear_layer.up.weight")
_KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
_OTHER_KINDS = ("hada_t1", "oft_diag")
_WITHOUT_EFFECT = (".alpha", "position_ids")  # alphas are read with their factors
_SHOWN = 3  # names of tensors in an error

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Factors:
    """down (r, in) or (r, in, kh, kw), up (out, r), with alpha / rank multiplied in. float32."""

    down: Tensor
    up: Tensor
    gain: Gain | None = None  # of a weight-decomposed one

    @property
    def bytes(self) -> int:
        return self.down.nbytes + self.up.nbytes + (self.gain.channels.nbytes if self.gain else 0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, weakref_slot=True)
class Lora:
    """An adapter as read: the factors of each layer, by part of the pipeline and the layer's name in it."""

    parts: Mapping[str, Mapping[str, Factors]]

    @property
    def bytes(self) -> int:
        return sum(pair.bytes for part in self.parts.values() for pair in part.values())

    def stays_within(self, layers: Container[str]) -> bool:
        """Whether it is a plain one and adapts no other layers of the UNet."""
        return all(name in layers and pair.gain is None for name, pair in self.parts.get("unet", {}).items())


LoraSet = tuple[tuple[Lora, float], ...]  # adapters with their scales


def read_lora(path: Path, modules: Mapping[str, nn.Module], device: torch.device) -> Lora:
    """Fit a file's factors to the layers of `modules` (part -> module). Raises ValueError with the reason.

    A file may leave layers out, but every layer that it names must be there and of its shape, and what it holds beside
    the factors without effect: half an adapter draws something else than its author meant.
    """
    layers = {part: dict(_layers(module)) for part, module in modules.items()}
    depth = int(getattr(modules["unet"], "config", {}).get("layers_per_block", 2))
    tensors, scaling = _read(path)
    parts: dict[str, dict[str, Factors]] = {}
    left = {key for key in tensors if not key.endswith(_WITHOUT_EFFECT)}
    for key, down in tensors.items():
        suffix = next((suffix for suffix in _DOWN if key.endswith(suffix)), None)
        if suffix is None:
            continue
        stem = key.removesuffix(suffix)
        up = tensors.get(stem + _UP[_DOWN.index(suffix)])
        if up is None:
            raise ValueError(f"{stem[:96]} has one factor of two")
        place = _place(stem + ("_lora" if suffix.startswith("_") else ""), layers, depth)
        if place is None:
            continue
        part, name = place
        left -= {key, stem + _UP[_DOWN.index(suffix)]}
        if name in parts.setdefault(part, {}):
            raise ValueError(f"it adapts {name} of the {part} twice")
        down, up = _shaped(down.float(), up.float(), layers[part][name], name)
        scale = scaling.of(stem, part, name, rank=len(down))
        pair = Factors(down.to(device), (up * scale).to(device))
        magnitude = next((stem + end for end in MAGNITUDES if stem + end in tensors), None)
        if magnitude is not None:
            left.remove(magnitude)
            pair = _decomposed(pair, tensors[magnitude], layers[part][name], name, magnitude)
        parts[part][name] = pair
    if left:
        raise ValueError(f"{_few(left)} of its tensors fit nothing in this model")
    if not parts:
        raise ValueError("it holds no LoRA factors of a known layout")
    return Lora(parts=parts)


def _decomposed(pair: Factors, magnitude: Tensor, layer: nn.Module, name: str, key: str) -> Factors:
    of_output = None if key.endswith(MAGNITUDES[0]) else True
    try:
        return Factors(*decompose(pair.down, pair.up, magnitude, cast(Tensor, layer.weight), of_output=of_output))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _few(names: Iterable[str]) -> str:
    """How many, and the first by name."""
    names = sorted(names)
    shown = ", ".join(repr(name[:96]) for name in names[:_SHOWN])
    return f"{len(names)} ({shown}{', ...' if len(names) > _SHOWN else ''})"


class Company(Generic[Made]):
    """What is made of the adapters of rows, once for as long as they stay together. Holds no adapter."""

    def __init__(self, make: Callable[[Sequence[LoraSet]], Made]) -> None:
        self._make = make
        self._made: Made | None = None
        self._rows: list[list[tuple[weakref.ref[Lora], float]]] = []

    def of(self, rows: Sequence[LoraSet]) -> Made:
        wanted = [[(weakref.ref(lora, self._forget), scale) for lora, scale in loras] for loras in rows]
        if self._made is None or wanted != self._rows:
            self._made, self._rows = self._make(rows), wanted
        return self._made

    def _forget(self, _gone: object) -> None:
        """An adapter was let go: so is what was made of it."""
        self._made, self._rows = None, []


class Adapted:
    """A module whose layers can take factors. Outside `using` it computes what it always did."""

    def __init__(self, module: nn.Module, part: str) -> None:
        self._module, self._part = module, part
        self._hooked: set[str] = set()
        self._rows: tuple[LoraSet, ...] = ()  # while `using`
        self._stacked: dict[str, Stacked | None] = {}  # of these rows, by layer
        self._company: Company[dict[str, Stacked | None]] = Company(lambda _: {})

    @contextmanager
    def using(self, rows: Sequence[LoraSet]) -> Iterator[None]:
        """Inside, row i of every call has the adapters `rows[i]`. No rows: nobody has any."""
        if not any(rows):
            yield
            return
        for name in {name for loras in rows for lora, _ in loras for name in lora.parts.get(self._part, {})}:
            if name not in self._hooked:
                self._hooked.add(name)
                self._module.get_submodule(name).register_forward_hook(partial(self._add, name))
        self._rows, self._stacked = tuple(rows), self._company.of(rows)
        try:
            yield
        finally:
            self._rows, self._stacked = (), {}

    def _add(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self._rows:
            return None
        if name not in self._stacked:
            self._stacked[name] = stack(self._rows, self._part, name, output.dtype)
        stacked = self._stacked[name]
        if stacked is None:
            return None
        rows = stacked.rows
        if len(rows) == len(output):
            return output + _addition(layer, inputs[0], output, stacked)
        return output.index_add(0, rows, _addition(layer, inputs[0][rows], output[rows], stacked))


@dataclass(frozen=True, slots=True)
class Stacked:
    """The factors of one layer for the rows that have any, (m,): down (m, r, ...), up (m, out, r), scales within.

    The gains of output and input, (m, out) and (m, in), where an adapter has any.
    """

    rows: Tensor
    down: Tensor
    up: Tensor
    of_output: Tensor | None
    of_input: Tensor | None


def stack(rows: Sequence[LoraSet], part: str, name: str, dtype: torch.dtype) -> Stacked | None:
    """Adapters of a row one after another along the rank, shorter rows padded with zeros."""
    found = {
        row: [(lora.parts[part][name], scale) for lora, scale in loras if scale and name in lora.parts.get(part, {})]
        for row, loras in enumerate(rows)
    }
    found = {row: pairs for row, pairs in found.items() if pairs}
    if not found:
        return None
    downs = [torch.cat([pair.down for pair, _ in pairs]) for pairs in found.values()]
    ups = [torch.cat([pair.up * scale for pair, scale in pairs], dim=1).T for pairs in found.values()]
    down = nn.utils.rnn.pad_sequence(downs, batch_first=True)
    up = nn.utils.rnn.pad_sequence(ups, batch_first=True).transpose(1, 2)
    return Stacked(
        rows=torch.tensor(list(found), device=down.device),
        down=down.to(dtype),
        up=up.to(dtype),
        of_output=_gains([*found.values()], dtype, of_output=True),
        of_input=_gains([*found.values()], dtype, of_output=False),
    )


def _gains(rows: Sequence[Sequence[tuple[Factors, float]]], dtype: torch.dtype, *, of_output: bool) -> Tensor | None:
    """Added up over a row's adapters."""
    wanted = [
        [scale * pair.gain.channels for pair, scale in pairs if pair.gain and pair.gain.of_output is of_output]
        for pairs in rows
    ]
    some = next((gains[0] for gains in wanted if gains), None)
    if some is None:
        return None
    return torch.stack([sum(gains, torch.zeros_like(some)) for gains in wanted]).to(dtype)


def _addition(layer: nn.Module, inputs: Tensor, output: Tensor, stacked: Stacked) -> Tensor:
    """What the adapters add to the layer's output for their rows."""
    added = _product(layer, inputs, stacked)
    if stacked.of_output is not None:
        added = added + _spread(stacked.of_output, layer, output) * _without_bias(layer, output)
    if stacked.of_input is not None:
        # its forward alone: to call the layer would come here again
        added = added + _without_bias(layer, layer.forward(_spread(stacked.of_input, layer, inputs) * inputs))
    return added


def _spread(gains: Tensor, layer: nn.Module, values: Tensor) -> Tensor:
    """(m, channels) over all else that values have: channels are second in a convolution, else last."""
    middle = [1] * (values.dim() - 2)
    shape = (len(gains), -1, *middle) if isinstance(layer, nn.Conv2d) else (len(gains), *middle, -1)
    return gains.reshape(shape)


def _without_bias(layer: nn.Module, output: Tensor) -> Tensor:
    bias = cast("Tensor | None", layer.bias)
    if bias is None:
        return output
    return output - (bias[:, None, None] if isinstance(layer, nn.Conv2d) else bias)


def _product(layer: nn.Module, inputs: Tensor, stacked: Stacked) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        rows, rank = stacked.down.shape[:2]
        low = functional.conv2d(  # a group a row: each is convolved with its own factors
            inputs.flatten(0, 1).unsqueeze(0), stacked.down.flatten(0, 1), None, layer.stride, layer.padding,
            layer.dilation, groups=rows,
        ).squeeze(0).unflatten(0, (rows, rank))  # fmt: skip
        return torch.bmm(stacked.up, low.flatten(2)).unflatten(2, low.shape[2:])
    flat = inputs.flatten(1, -2) if inputs.dim() > 2 else inputs.unsqueeze(1)
    high = torch.bmm(torch.bmm(flat, stacked.down.transpose(1, 2)), stacked.up.transpose(1, 2))
    return high.reshape(*inputs.shape[:-1], high.shape[-1])


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            yield name, layer


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scaling:
    """What a file says of how strong its factors are: kohya's alphas by the key's stem, peft's configs by part.

    `beside`: the config that lies beside it, for parts that the file itself says nothing of.
    """

    alphas: Mapping[str, float]
    configs: Mapping[str, Mapping[str, Any]]
    beside: Mapping[str, Any]

    def of(self, stem: str, part: str, name: str, *, rank: int) -> float:
        """What the product of one layer's factors is multiplied by, as peft reads its config (LoraLayer)."""
        if stem in self.alphas:
            return self.alphas[stem] / rank
        config = self.configs.get(part, self.beside)
        ranks = {self.beside.get("r", rank), *(self.beside.get("rank_pattern") or {}).values()}
        if config is self.beside and rank not in ranks:
            raise ValueError(f"its factors for {name} are of rank {rank}, where {PEFT_CONFIG} says {ranks}")
        names = (name, f"text_model.{name}")  # transformers of before version 5 puts it before every layer
        own = (
            alpha
            for pattern, alpha in (config.get("alpha_pattern") or {}).items()
            if any(_matches(pattern, one) for one in names)
        )
        alpha = float(next(own, config.get("lora_alpha", rank)))
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _matches(pattern: str, name: str) -> bool:
    """Whether a layer's name is what peft's pattern says: the whole name after `^`, else its last parts.

    peft reads regular expressions here. One out of a stranger's file may take for ever, so only plain names are read.
    """
    plain = pattern.removeprefix("^").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", plain):
        raise ValueError(f"its alpha_pattern {pattern[:96]!r} is no plain name of a layer")
    return name == plain or (not pattern.startswith("^") and name.endswith(f".{plain}"))


def _read(path: Path) -> tuple[dict[str, Tensor], _Scaling]:
    """Tensors by key. Raises ValueError for what is no plain LoRA."""
    with safe_open(lora_file(path), framework="pt") as file:
        keys = list(file.keys())
        other = next((kind for kind in _OTHER_KINDS for key in keys if kind in key), None)
        if other is not None:
            raise ValueError(f"it holds {other!r} factors, which are no plain LoRA")
        tensors = as_plain({key: file.get_tensor(key) for key in keys})
        told = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    alphas = {key.removesuffix(".alpha"): float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")}
    configs: dict[str, dict[str, Any]] = {}
    for key, value in told.items():
        part, _, field = key.rpartition(".")  # UNet factors alone: without the part's name
        configs.setdefault(part or "unet", {})[field] = value
    return tensors, _Scaling(alphas=alphas, configs=configs, beside=peft_config(path) or {})


def _place(stem: str, layers: Mapping[str, Mapping[str, nn.Module]], depth: int) -> tuple[str, str] | None:
    """The part and layer that a key means; None when the model has none such."""
    for prefix, part in _KOHYA.items():
        if stem.startswith(prefix):
            flat = _from_stability(stem.removeprefix(prefix).removeprefix("text_model_"), depth)
            return next(((part, name) for name in layers.get(part, {}) if name.replace(".", "_") == flat), None)
    part, _, name = stem.removeprefix("base_model.model.").partition(".")
    if part not in layers:  # UNet factors alone, without the part's name
        part, name = "unet", stem.removeprefix("base_model.model.")
    name = name.removeprefix("text_model.").replace(".processor.", ".").replace(".to_out_lora", ".to_out.0")
    name = name.removesuffix("_lora")
    if part != "unet":  # old files call a text encoder's projections as they call the UNet's
        name = _OLD_PROJECTION.sub(lambda found: _OLD_TEXT[found[1]], name)
    for candidate in (name, f"{name}.0"):  # old files say to_out for to_out.0
        if candidate in layers.get(part, {}):
            return part, candidate
    return None


_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "out_proj"}
_OLD_PROJECTION = re.compile(r"(?<=self_attn\.)(to_q|to_k|to_v|to_out\.0)$")
_STABILITY = re.compile(r"(input_blocks|middle_block|output_blocks)_(\d+)_(?:(\d+)_)?(.*)")
_OUTSIDE = {  # of all blocks
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}


def _from_stability(flat: str, depth: int) -> str:
    """A layer's name in the original code's numbering, as files for SDXL have it, in that of diffusers.

    `depth`: resnets of a level; the levels of the way up have one more.
    """
    found = _STABILITY.fullmatch(flat)
    if found is None or flat in _OUTSIDE:
        return _OUTSIDE.get(flat, flat)
    side, index, inner, rest = found[1], int(found[2]), int(found[3] or 0), found[4]
    if side == "middle_block":
        block, inner, place = "mid_block", index, index // 2
        kind = "attentions" if index == 1 else "resnets"
    else:
        level, place = divmod(index - (side == "input_blocks"), depth + 1)
        block = f"{'down' if side == 'input_blocks' else 'up'}_blocks_{level}"
        kind = "attentions" if inner == 1 and not rest.startswith("conv") else "resnets"
        if side == "input_blocks" and place == depth:
            return f"{block}_downsamplers_0_conv"
        if rest == "conv":
            return f"{block}_upsamplers_0_conv"
    place = 0 if kind == "attentions" and side == "middle_block" else place
    return f"{block}_{kind}_{place}_{_RESNET.get(rest, rest) if kind == 'resnets' else rest}"


def _shaped(down: Tensor, up: Tensor, layer: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Bring the factors to the layer's own form. Raises ValueError when they are of another size."""
    weight = cast(Tensor, layer.weight)
    if isinstance(layer, nn.Linear):
        down, up = down.flatten(1), up.flatten(1)  # linear projections that were 1x1 convolutions, or the reverse
    elif down.dim() == 2 and down.shape[1] == weight[0].numel():
        down = down.unflatten(1, weight.shape[1:])
    up = up.flatten(1)
    fits = down.shape[1:] == weight.shape[1:] and up.shape == (weight.shape[0], len(down))
    if not fits:
        raise ValueError(
            f"its factors for {name} are {tuple(down.shape)} and {tuple(up.shape)}; the layer is {tuple(weight.shape)}"
        )
    return down, up
