"""Imports what the families need from diffusers in half the time. Must not change what the imported code does.

Importing one UNet class pulls in every architecture of diffusers: seconds of a worker's start. While the few modules in
use are imported, the packages around them stand empty, so that their submodules are found but their own lists of
imports do not run. The parity tests run the result.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
import types

_BARE = ("diffusers.models.transformers", "diffusers.models.unets", "diffusers.models.autoencoders")
_WANTED = ("diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl")


def import_quickly() -> None:
    """Import torch, the text encoder and diffusers' modules of the families. Call before anything else imports them."""
    if "diffusers" in sys.modules:
        return
    importlib.import_module("torch")
    importlib.import_module("diffusers.models")
    for name in _BARE:
        _stand_empty(name)
    for name in _WANTED:
        importlib.import_module(name)
    for name in _BARE:
        del sys.modules[name]  # whoever asks for the whole package later gets it
    importlib.import_module("mezzotint.families.sd")


def _stand_empty(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        return
    module = types.ModuleType(name)
    module.__path__ = list(spec.submodule_search_locations)
    module.__spec__ = spec
    sys.modules[name] = module

