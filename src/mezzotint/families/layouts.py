"""Where a model's parts lie on disk: in a diffusers folder, or all in one file of the original layout.

Each layout hands out configs as diffusers writes them and tensors by diffusers' names. Must not run code from a model.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from diffusers.loaders import single_file_utils
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mezzotint import single_file
from mezzotint.headers import beside, read_header, weight_files

State = dict[str, Tensor]

# Attention blocks of older autoencoders, as diffusers renames them.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")


class Layout(Protocol):
    """The parts of one model by their names in a diffusers folder; "" is a model of a single part."""

    def config(self, part: str) -> dict[str, Any]:
        """Raises OSError, KeyError or ValueError when there is none."""

    def state(self, part: str, dtype: torch.dtype) -> State:
        """Tensors by name; those already of `dtype` may stay mapped to the file."""

    def vocabulary(self, part: str) -> tuple[Path, dict[str, Any]]:
        """The folder of a tokenizer's files, and what else is known of it."""


def layout_of(path: Path) -> Layout:
    return SingleFile(path) if path.is_file() else Folder(path)


class Folder:
    """As diffusers' `save_pretrained` writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = beside(path)

    def config(self, part: str) -> dict[str, Any]:
        names = {"scheduler": "scheduler_config.json"}
        file = self._path / "model_index.json" if part == "model_index" else self._path / part / "config.json"
        read = _json(file.with_name(names.get(part, file.name)))
        if part == "scheduler" and "prediction_type" in self._told:
            read["prediction_type"] = self._told["prediction_type"]
        return read

    def state(self, part: str, dtype: torch.dtype) -> State:
        found: State = {}
        for file in weight_files(self._path / part):
            found |= load_file(file)
        return {
            _OLD_NAME.sub(lambda m: f"{m[1]}.{_OLD_ATTENTION[m[2]]}.", name): tensor.to(dtype)
            for name, tensor in found.items()
        }

    def vocabulary(self, part: str) -> tuple[Path, dict[str, Any]]:
        return self._path / part, {"max_position_embeddings": self.config(_encoder(part))["max_position_embeddings"]}


class SingleFile:
    """As the authors of Stable Diffusion and of ControlNet wrote it; diffusers' own functions rename the tensors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        header = read_header(path)
        self._names = list(header.shapes)
        self._configs: Mapping[str, dict[str, Any]]
        match single_file.kind_of(header.shapes):
            case "checkpoint":
                self._configs = single_file.checkpoint_configs(header, beside(path))
            case "controlnet":
                self._configs = {"": single_file.controlnet_config(header.shapes)}
            case _:
                self._configs = {"": single_file.vae_config(header.shapes, 1.0)}

    def config(self, part: str) -> dict[str, Any]:
        return {} if part == "model_index" else dict(self._configs[part])

    def state(self, part: str, dtype: torch.dtype) -> State:
        config = self._configs[part]
        convert = _CONVERT[str(config.get("_class_name", part))]
        prefixes = _PREFIXES[part or str(config["_class_name"])]
        with safe_open(self._path, framework="pt") as file:
            kept = {name: file.get_tensor(name) for name in self._names if name.startswith(prefixes)}
        return {name: tensor.to(dtype).contiguous() for name, tensor in convert(kept, config).items()}

    def vocabulary(self, part: str) -> tuple[Path, dict[str, Any]]:
        config = self._configs[_encoder(part)]
        told = dict.fromkeys(("model_max_length", "max_position_embeddings"), config["max_position_embeddings"])
        return single_file.VOCABULARY, told | ({"pad_token": config["pad_token"]} if "pad_token" in config else {})


_PREFIXES: dict[str, tuple[str, ...]] = {
    "unet": (single_file.UNET,),
    "vae": (single_file.VAE,),
    "text_encoder": (single_file.CLIP_1, single_file.CLIP_XL, single_file.OPEN_CLIP_2),
    "text_encoder_2": (single_file.OPEN_CLIP_XL,),
    "ControlNetModel": ("",),
    "AutoencoderKL": ("",),
}


def _unet(state: State, config: Mapping[str, Any]) -> State:
    found: State = single_file_utils.convert_ldm_unet_checkpoint(state, config)
    return found


def _vae(state: State, config: Mapping[str, Any]) -> State:
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(("loss.", "model_ema."))}
    found: State = single_file_utils.convert_ldm_vae_checkpoint(kept, config)
    return found


def _controlnet(state: State, config: Mapping[str, Any]) -> State:
    found: State = single_file_utils.convert_controlnet_checkpoint(state, config)
    return found


def _text(state: State, config: Mapping[str, Any]) -> State:
    prefix = next(
        (one for one in (single_file.OPEN_CLIP_2, single_file.OPEN_CLIP_XL) if any(n.startswith(one) for n in state)),
        None,
    )
    found: State
    if prefix is None:
        found = single_file_utils.convert_ldm_clip_checkpoint(state)
        return found
    layers = int(config["num_hidden_layers"])  # what is beyond is never read
    beyond = re.compile(rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.")
    kept = {n: t for n, t in state.items() if (at := beyond.match(n)) is None or int(at[1]) < layers}
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    kept.pop(f"{prefix}logit_scale", None)
    projection = kept.pop(f"{prefix}text_projection", None)
    found = single_file_utils.convert_open_clip_checkpoint(model, kept, prefix)
    if projection is not None and prefix == single_file.OPEN_CLIP_XL:
        found["text_projection.weight"] = projection.T
    return found


_CONVERT: dict[str, Callable[[State, Mapping[str, Any]], State]] = {
    "UNet2DConditionModel": _unet,
    "AutoencoderKL": _vae,
    "ControlNetModel": _controlnet,
    "text_encoder": _text,
    "text_encoder_2": _text,
}


def _encoder(tokenizer: str) -> str:
    return tokenizer.replace("tokenizer", "text_encoder")


def _json(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read
