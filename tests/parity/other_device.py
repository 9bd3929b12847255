"""A device in software for machines that have none: its tensors hold numbers like any, and what would mix them with the
CPU's is refused, as CUDA refuses it. After torch's own example of a backend in Python.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("other")
DEVICE = torch.device("other:0")

_aten = torch.ops.aten
_MOVES = (_aten._to_copy.default, _aten.copy_.default)
_TAKES_AN_INDEX = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)  # CUDA takes one of the CPU's


class There(Tensor):
    """A tensor on it. `held` has the numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "There":
        made: There = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if func not in _MOVES:
            index = func in _TAKES_AN_INDEX
            strangers = [one for one in tensors if not isinstance(one, There) and one.dim() > 0]
            if strangers and not (index and all(one is not args[0] for one in strangers)):
                raise RuntimeError(f"{func} mixes {DEVICE} with the CPU: {[tuple(one.shape) for one in strangers]}")
        device = kwargs.get("device")
        if func is _aten.copy_.default:
            stays = isinstance(args[0], There)
        else:
            stays = device is None or torch.device(device).type == DEVICE.type
        plain, named = tree_map(_held, (args, kwargs))
        output = func(*plain, **named | ({} if device is None else {"device": torch.device("cpu")}))
        known = {id(one.held): one for one in tensors if isinstance(one, There)}

        def wrapped(one: Any) -> Any:
            if not isinstance(one, Tensor):
                return one
            if id(one) in known:
                return known[id(one)]  # changed in place
            return There(one) if stays else one

        return tree_map(wrapped, output)


def _held(one: Any) -> Any:
    return one.held if isinstance(one, There) else one


def _empty(size: Any, dtype: Any = None, *_: Any, **__: Any) -> There:
    return There(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, *_: Any, **__: Any) -> There:
    return There(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _held(target).copy_(_held(source))
    return target


_library = torch.library.Library("aten", "IMPL")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
