"""Every message between the API process and the image child, both ways, and its framing. Must not import a decoder.

A frame is two big-endian 32-bit lengths, then a msgpack message of that length, then raw bytes (a caller's picture) of
the other. The child answers each message once, in order, after its `Hello`.
"""

import socket
import struct
from typing import Any, Literal

import msgspec

MAX_PIXELS = 4096 * 4096
MAX_MESSAGE_BYTES = 64 << 10
MAX_BLOB_BYTES = 256 << 20
_HEAD = struct.Struct(">II")

Role = Literal["image", "mask"]


class WireError(Exception):
    """The peer sent what no peer of ours would. The connection is of no use after it."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", forbid_unknown_fields=True):
    pass


# ---- API process -> child


class Keep(_Message, frozen=True, kw_only=True, tag="keep"):
    """Normalise the picture in the blob and keep it as this asset."""

    asset_id: str
    role: Role


class Preprocess(_Message, frozen=True, kw_only=True, tag="preprocess"):
    """Make a control map of one asset and keep it as another. `options` are complete and in range."""

    asset_id: str
    source_id: str
    preprocessor: str
    options: dict[str, float]


# ---- child -> API process


class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    """Imports are done."""


class Kept(_Message, frozen=True, kw_only=True, tag="kept"):
    """The asset is on disk, fsynced, under its name."""

    width: int
    height: int
    channels: int
    bytes: int
    sha256: str


class Refused(_Message, frozen=True, kw_only=True, tag="refused"):
    """Nothing was kept. `code` is invalid_image, storage_full or internal."""

    code: str
    message: str


ToChild = Keep | Preprocess
FromChild = Hello | Kept | Refused

HEAD_BYTES = _HEAD.size

_encoder = msgspec.msgpack.Encoder()
_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


def file_name(asset_id: str) -> str:
    return f"{asset_id}.png"


def temporary_name(asset_id: str) -> str:
    """Under which an asset is written until it is whole."""
    return f".{asset_id}.tmp"


def head(message: ToChild | FromChild, blob: bytes = b"") -> bytes:
    """All of a frame but its blob, which the caller sends after it."""
    body = _encoder.encode(message)
    return _HEAD.pack(len(body), len(blob)) + body


def lengths(raw: bytes) -> tuple[int, int]:
    """Message and blob length of a frame. Raises WireError when either is over its cap."""
    message, blob = _HEAD.unpack(raw)
    if message > MAX_MESSAGE_BYTES or blob > MAX_BLOB_BYTES:
        raise WireError(f"a frame of {message} and {blob} bytes is over the cap")
    return message, blob


def decode_from_child(body: bytes) -> FromChild:
    message: FromChild = _decode(_from_child, body)
    return message


def receive_to_child(connection: socket.socket) -> tuple[ToChild, bytes] | None:
    """Block for the next message in the child. None: the API process is gone."""
    raw = _exactly(connection, HEAD_BYTES)
    if raw is None:
        return None
    message, blob = lengths(raw)
    body, data = _exactly(connection, message), _exactly(connection, blob)
    return None if body is None or data is None else (_decode(_to_child, body), data)


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
