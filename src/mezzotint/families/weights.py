"""Loads a module's weights from a diffusers folder: mapped, assigned without a copy. Must not run code from it."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mezzotint.catalog import weight_files
from mezzotint.families.table import UNUSED_COMPONENTS

# Attention blocks of older autoencoders, as diffusers renames them.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")


def load_module(module_class: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Raises OSError, TypeError or RuntimeError when config and weights do not fit together."""
    with torch.device("meta"):  # no memory until the file says how much
        module = module_class.from_config(module_class.load_config(folder))
    module.load_state_dict(read_state(folder, dtype), assign=True)
    return module.to(device).eval().requires_grad_(False)


def read_state(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors by name; those already of `dtype` stay mapped to the file."""
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        state |= load_file(file)
    return {
        _OLD_NAME.sub(lambda m: f"{m[1]}.{_OLD_ATTENTION[m[2]]}.", name): tensor.to(dtype)
        for name, tensor in state.items()
    }


def loaded_bytes(path: Path, dtype: torch.dtype) -> int:
    """Memory that the weights of a folder or file take in `dtype`, by their headers; 0 for what is not there."""
    parts = [path, *sorted(part for part in path.glob("*/") if part.name not in UNUSED_COMPONENTS)]
    files = [path] if path.is_file() else [file for part in parts for file in weight_files(part)]
    count = 0
    for file in files:
        with safe_open(file, framework="pt") as opened:
            count += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    return count * dtype.itemsize


def module_bytes(*modules: torch.nn.Module) -> int:
    return sum(parameter.nbytes for module in modules for parameter in module.parameters())
