"""Every message between the API process and a worker, both ways, and how it is framed. Must not import torch or pickle.

A frame is two big-endian 32-bit lengths, then a msgpack message of that length, then raw bytes (a picture) of the
other. Each side knows the other's exact version: `Hello` carries it first.
"""

import socket
import struct
from typing import Any

import msgspec

from mezzotint.errors import ErrorInfo
from mezzotint.request import Request
from mezzotint.session import Usage

VERSION = 2
MAX_MESSAGE_BYTES = 8 << 20
MAX_BLOB_BYTES = 256 << 20
_HEAD = struct.Struct(">II")


class WireError(Exception):
    """The peer sent what no peer of ours would. The connection is of no use after it."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", forbid_unknown_fields=True):
    pass


# ---- API process -> worker


class ModelRef(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model, ControlNet or LoRA lies, what it is and what is to run it; the worker opens nothing else but a
    session's inputs."""

    id: str
    kind: str
    family: str
    path: str
    bytes: int
    sha256: str
    executor: str = "torch"
    dtype: str = "float32"
    graphs: str = ""  # folder, for an executor that needs converted ones


class Submit(_Message, frozen=True, kw_only=True, tag="submit"):
    session_id: str
    attempt: int
    request: Request
    model: ModelRef
    controlnets: tuple[ModelRef, ...] = ()  # in the order of the request's
    loras: tuple[ModelRef, ...] = ()
    inputs: dict[str, str] = {}  # a picture's field, such as "controlnets[0].image" -> its normalised PNG


class Cancel(_Message, frozen=True, kw_only=True, tag="cancel"):
    session_id: str
    attempt: int


class Load(_Message, frozen=True, kw_only=True, tag="load"):
    """Load a model now, in place of the same one under another executor. Sent to an idle worker."""

    model: ModelRef


class Stop(_Message, frozen=True, kw_only=True, tag="stop"):
    """Leave now; running sessions are somebody else's from here on."""


# ---- worker -> API process


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    kind: str
    name: str
    memory_total_bytes: int
    dtypes: tuple[str, ...]
    driver: str | None
    threads: int


class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    """The worker's first message: imports are done, it can take sessions."""

    version: int
    pid: int
    device: DeviceFacts


class Heartbeat(_Message, frozen=True, kw_only=True, tag="heartbeat"):
    """Each second, from a thread of its own, whatever the loop does."""

    phase: str | None  # what the loop is in, None: idle
    since_s: float  # how long it has been in it, or since its last step
    memory_bytes: int
    resident: tuple[str, ...]
    refused: dict[str, str] = {}  # resident models that torch float32 serves though another was wanted: why


class Phase(_Message, frozen=True, kw_only=True, tag="phase"):
    """A session enters a phase. Time up to `at_s`, on this machine's monotonic clock, belonged to the one before."""

    session_id: str
    attempt: int
    phase: str
    at_s: float


class Progress(_Message, frozen=True, kw_only=True, tag="progress"):
    """After a step. Steps are requested steps of the lowest unfinished image; done and total count all images."""

    session_id: str
    attempt: int
    image_index: int
    step: int
    steps: int
    done: int
    total: int


class ImageDone(_Message, frozen=True, kw_only=True, tag="image"):
    """One finished picture; its encoded bytes are the frame's blob."""

    session_id: str
    attempt: int
    index: int
    seed: int
    width: int
    height: int
    format: str


class Warned(_Message, frozen=True, kw_only=True, tag="warned"):
    session_id: str
    attempt: int
    code: str
    message: str
    field: str | None


class Ended(_Message, frozen=True, kw_only=True, tag="ended"):
    """The last message of an attempt. `outcome` is succeeded, failed or cancelled."""

    session_id: str
    attempt: int
    outcome: str
    usage: Usage
    error: ErrorInfo | None


class DeviceFailed(_Message, frozen=True, kw_only=True, tag="device_failed"):
    """The worker cannot go on and exits after this."""

    message: str


ToWorker = Submit | Cancel | Load | Stop
FromWorker = Hello | Heartbeat | Phase | Progress | ImageDone | Warned | Ended | DeviceFailed

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)

HEAD_BYTES = _HEAD.size


def frame(message: ToWorker | FromWorker, blob: bytes = b"") -> bytes:
    body = _encoder.encode(message)
    return _HEAD.pack(len(body), len(blob)) + body + blob


def lengths(head: bytes) -> tuple[int, int]:
    """Message and blob length of a frame. Raises WireError when either is over its cap."""
    message, blob = _HEAD.unpack(head)
    if message > MAX_MESSAGE_BYTES or blob > MAX_BLOB_BYTES:
        raise WireError(f"a frame of {message} and {blob} bytes is over the cap")
    return message, blob


def decode_from_worker(body: bytes) -> FromWorker:
    message: FromWorker = _decode(_from_worker, body)
    return message


def receive_to_worker(connection: socket.socket) -> ToWorker | None:
    """Block for the next message in a worker. None: the API process is gone."""
    head = _exactly(connection, HEAD_BYTES)
    if head is None:
        return None
    message, blob = lengths(head)
    body = _exactly(connection, message + blob)
    return None if body is None else _decode(_to_worker, body[:message])


def _decode(decoder: msgspec.msgpack.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise WireError(str(error)) from error


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(1 << 20, count - len(parts)))
        if not part:
            return None
        parts += part
    return bytes(parts)
