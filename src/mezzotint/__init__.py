"""Mezzotint's public names."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "InvalidRequest", "Mezzotint", "MezzotintError", "__version__"]

if TYPE_CHECKING:
    from mezzotint.client import AsyncClient, Client
    from mezzotint.errors import InvalidRequest, MezzotintError
    from mezzotint.server import Mezzotint

_HOME = {
    "AsyncClient": "client",
    "Client": "client",
    "InvalidRequest": "errors",
    "Mezzotint": "server",
    "MezzotintError": "errors",
}


def __getattr__(name: str) -> Any:  # lazy, so that the client alone imports in a blink
    from importlib import import_module

    if name in _HOME:
        return getattr(import_module(f"mezzotint.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mezzotint' has no attribute {name!r}")
