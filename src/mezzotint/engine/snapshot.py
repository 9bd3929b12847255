"""A trajectory's state as bytes, and back into a trajectory prepared anew: it then goes on at its next model call.

The bytes are a safetensors file: its tensors, and beside them msgpack of all that is no tensor. Never a pickle. They
hold no text, picture or weights: those are prepared again, and come out the same.
"""

from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mezzotint.engine.trajectory import Trajectory

_TENSOR = 1  # of msgpack's extension types: the name of a tensor


class Unreadable(Exception):
    """The bytes are no state of this trajectory. Nothing was changed."""


def take(trajectory: Trajectory) -> bytes:
    """Does not change the trajectory."""
    tensors: dict[str, Tensor] = {}

    def as_known(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value.detach().clone().contiguous()  # safetensors refuses what shares memory
            return msgspec.msgpack.Ext(_TENSOR, name.encode())
        return value.item()  # a number of numpy's; else this is a bug and fails here

    state = {"latents": trajectory.latents, "sampler": trajectory.sampler.state(), "passed": trajectory.passed}
    body = msgspec.msgpack.encode(state, enc_hook=as_known)
    tensors["state"] = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    return save(tensors)


def put_back(trajectory: Trajectory, data: bytes) -> None:
    """Bring a trajectory at its first step to where the other was. Raises Unreadable."""
    try:
        tensors = load(data)
        body = bytes(tensors.pop("state").numpy())
        decoder = msgspec.msgpack.Decoder(ext_hook=lambda _, name: tensors[bytes(name).decode()])
        state = decoder.decode(body)
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
    except (SafetensorError, msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(str(error)) from error
    if second is not None:
        trajectory.enter_second(latents)
    trajectory.latents = latents
