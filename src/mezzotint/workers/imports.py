"""Imports what the families need from diffusers in a fraction of the time. Must not change what the imported code does.

Importing one UNet class pulls in every architecture of diffusers, transformers and torch's compiler: seconds of a
worker's start. While the few modules in use are imported, the packages around them stand empty, so that their
submodules are found but their own lists of imports do not run, and what a worker never calls is out of sight. All of it
is back in place afterwards. The parity tests run the result.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_BARE = ("diffusers.models.transformers", "diffusers.models.unets", "diffusers.models.autoencoders")
_WANTED = ("diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl")
_OUT_OF_SIGHT = ("transformers", "peft", "torchvision")  # diffusers uses each only if it can be found


def import_quickly() -> None:
    """Import torch and diffusers' modules of the families. Call before anything else imports them."""
    if "diffusers" in sys.modules:
        return
    torch = importlib.import_module("torch")
    with _hidden(_OUT_OF_SIGHT), _without_compiler(torch):
        importlib.import_module("diffusers.models")
        for name in _BARE:
            _stand_empty(name)
        for name in _WANTED:
            importlib.import_module(name)
    for name in _BARE:
        del sys.modules[name]  # whoever asks for the whole package later gets it
    importlib.import_module("mezzotint.families.sd")


@contextmanager
def _hidden(names: Iterable[str]) -> Iterator[None]:
    absent = [name for name in names if name not in sys.modules]
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(absent))  # None means "not found" to the import system
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextmanager
def _without_compiler(torch: Any) -> Iterator[None]:
    """diffusers marks functions for torch.compile, which a worker never calls; here the marks do nothing."""

    def unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
        return function if function is not None else unmarked

    if "torch._dynamo" in sys.modules:
        yield
        return
    stand_in = types.ModuleType("torch._dynamo")
    stand_in.allow_in_graph = stand_in.disable = unmarked  # type: ignore[attr-defined]
    sys.modules["torch._dynamo"] = torch._dynamo = stand_in
    try:
        yield
    finally:
        del sys.modules["torch._dynamo"], torch._dynamo


def _stand_empty(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        return
    module = types.ModuleType(name)
    module.__path__ = list(spec.submodule_search_locations)
    module.__spec__ = spec
    sys.modules[name] = module
