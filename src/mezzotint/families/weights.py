"""Builds a module from one part of a model: mapped, assigned without a copy. Must not run code from it."""

import math
from pathlib import Path
from typing import Any

import torch

from mezzotint.families.layouts import Layout
from mezzotint.families.table import UNUSED_COMPONENTS
from mezzotint.headers import Unusable, read_header, weight_files


def load_module(module_class: Any, layout: Layout, part: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Raises OSError, TypeError or RuntimeError when config and weights do not fit together."""
    with torch.device("meta"):  # no memory until the file says how much
        module = module_class.from_config(layout.config(part))
    module.load_state_dict(layout.state(part, dtype), assign=True)
    return module.to(device).eval().requires_grad_(False)


def loaded_bytes(path: Path, dtype: torch.dtype) -> int:
    """Memory that the weights of a folder or file take in `dtype`, by their headers; 0 for what is not there or cannot
    be read: its loading says why.
    """
    parts = [path, *sorted(part for part in path.glob("*/") if part.name not in UNUSED_COMPONENTS)]
    files = [path] if path.is_file() else [file for part in parts for file in weight_files(part)]
    try:
        shapes = [shape for file in files for shape in read_header(file).shapes.values()]
    except (Unusable, OSError, LookupError, TypeError, ValueError):
        return 0
    return sum(map(math.prod, shapes)) * dtype.itemsize


def module_bytes(*modules: torch.nn.Module) -> int:
    return sum(parameter.nbytes for module in modules for parameter in module.parameters())
