"""A trajectory's state as bytes, and back into a trajectory prepared anew: it then goes on at its next model call.

The bytes are msgpack, a tensor in them its numpy type, shape and values. Never a pickle. They hold no text, picture or
weights: those are prepared again, and come out the same. (safetensors takes five times as long between two calls.)
"""

from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from mezzotint.engine.trajectory import Trajectory

_TENSOR = 1  # of msgpack's extension types


class Unreadable(Exception):
    """The bytes are no state of this trajectory. Nothing was changed."""


def take(trajectory: Trajectory) -> bytes:
    """Does not change the trajectory."""
    state = {"latents": trajectory.latents, "sampler": trajectory.sampler.state(), "passed": trajectory.passed}
    return msgspec.msgpack.encode(state, enc_hook=_known)


def put_back(trajectory: Trajectory, data: bytes) -> None:
    """Bring a trajectory at its first step to where the other was. Raises Unreadable."""
    try:
        state = msgspec.msgpack.decode(data, ext_hook=_tensor)
        latents, sampler = state["latents"], state["sampler"]
        second = trajectory.second if state.get("passed") else None
        if bool(state.get("passed")) != (second is not None):
            raise Unreadable("it is of another pass")
        shape = tuple(trajectory.latents.shape)
        if second is not None:
            shape = (*shape[:2], second.key.height, second.key.width)
        if latents.shape != shape or latents.dtype != trajectory.latents.dtype:
            raise Unreadable("it is of another size")
        (second or trajectory).sampler.restore(sampler)
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(str(error)) from error
    if second is not None:
        trajectory.enter_second(latents)
    trajectory.latents = latents


def _known(value: Any) -> Any:
    if isinstance(value, Tensor):
        values = value.numpy()
        body = msgspec.msgpack.encode((values.dtype.str, values.shape, values.tobytes()))
        return msgspec.msgpack.Ext(_TENSOR, body)
    return value.item()  # a number of numpy's; else this is a bug and fails here


def _tensor(_: int, body: memoryview) -> Tensor:
    kind, shape, values = msgspec.msgpack.decode(body)
    return torch.from_numpy(np.frombuffer(values, kind).reshape(shape).copy())
