"""Imports what the families need from diffusers in a fraction of the time. Must not change what the imported code does.

Importing one UNet class pulls in every architecture of diffusers, transformers and torch's compiler: seconds of a
worker's start. While the few modules in use are imported, the packages around them stand empty, so that their
submodules are found but their own lists of imports do not run, and what a worker never calls is out of sight. All of it
is back in place afterwards. The parity tests run the result.
"""

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_BARE = tuple(f"diffusers.models.{name}" for name in ("transformers", "unets", "autoencoders", "controlnets"))
_WANTED = (
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.controlnets.controlnet",
)
_OUT_OF_SIGHT = ("transformers", "accelerate", "peft", "torchvision")  # diffusers uses each only if it can be found
_TRACING, _TRIED = ("torch._meta_registrations", "torch.export"), "2.13."  # a quarter of all the time
_LATE = ("scipy.stats", "scipy.integrate")  # a quarter of all the time, for the sigmas that few requests ask for


def import_quickly() -> None:
    """Import torch and diffusers' modules of the families. Call before anything else imports them."""
    if "diffusers" in sys.modules:
        return
    torch = _import_torch()
    for name in _LATE:
        _stand(name, _Late)
    with _hidden(_OUT_OF_SIGHT), _without_compiler(torch), _without_a_map_of_packages():
        importlib.import_module("diffusers.models")
        for name in _BARE:
            _stand(name, types.ModuleType)
        for name in _WANTED:
            importlib.import_module(name)
    for name in _BARE:
        del sys.modules[name]  # whoever asks for the whole package later gets it
    importlib.import_module("mezzotint.families.sd")


def _import_torch() -> Any:
    """Without what only tracing needs, where the version is the one that this was tried with. Who traces programs
    imports torch before."""
    if "torch" in sys.modules or not importlib.metadata.version("torch").startswith(_TRIED):
        return importlib.import_module("torch")
    sys.modules.update({name: types.ModuleType(name) for name in _TRACING})
    torch = importlib.import_module("torch")
    for name in _TRACING:
        del sys.modules[name]  # whoever asks for it later gets it
        delattr(torch, name.removeprefix("torch."))
    # Generators want their metaclass, which else one of those sets.
    torch._C._set_generator_metaclass(importlib.import_module("torch._opaque_base").OpaqueBaseMeta)
    return torch


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


@contextmanager
def _without_a_map_of_packages() -> Iterator[None]:
    """diffusers reads every file list of every package that is installed, for the names of three that nobody has."""
    read = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = dict
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = read


class _Late(types.ModuleType):
    """Stands for a module until something of it is used. Not `LazyLoader`, whose every `hasattr` is a use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _stand(name: str, kind: type[types.ModuleType]) -> None:
    """An empty module in the place of one that is not loaded."""
    spec = importlib.util.find_spec(name)
    if name in sys.modules or spec is None or spec.submodule_search_locations is None:
        return
    module = kind(name)
    module.__file__ = spec.origin
    module.__path__ = list(spec.submodule_search_locations)
    module.__spec__ = spec
    sys.modules[name] = module
