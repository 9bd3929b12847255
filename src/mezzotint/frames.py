"""How a message crosses a socketpair to a child of ours and back. Knows no message.

A frame is two big-endian 32-bit lengths, then a msgpack message of the first, then raw bytes (a picture) of the second.
"""

import socket
import struct
from typing import Any

import msgspec

_HEAD = struct.Struct(">II")
HEAD_BYTES = _HEAD.size
MAX_BLOB_BYTES = 256 << 20


class WireError(Exception):
    """The peer sent what no peer of ours would. The connection is of no use after it."""


def head(body: bytes, blob: bytes) -> bytes:
    """All of a frame but its blob."""
    return _HEAD.pack(len(body), len(blob)) + body


def lengths(raw: bytes, most: int) -> tuple[int, int]:
    """Message and blob length of a frame. Raises WireError for one over `most`, or a blob over its cap."""
    message, blob = _HEAD.unpack(raw)
    if message > most or blob > MAX_BLOB_BYTES:
        raise WireError(f"a frame of {message} and {blob} bytes is over the cap")
    return message, blob


def decode(decoder: msgspec.msgpack.Decoder[Any], body: bytes) -> Any:
    """Raises WireError for what is no message of the decoder's."""
    try:
        return decoder.decode(body)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise WireError(str(error)) from error


def receive(connection: socket.socket, most: int) -> tuple[bytes, bytes] | None:
    """Block for the next message and blob in a child. None: the API process is gone."""
    raw = _exactly(connection, HEAD_BYTES)
    if raw is None:
        return None
    message, blob = lengths(raw, most)
    body, data = _exactly(connection, message), _exactly(connection, blob)
    return None if body is None or data is None else (body, data)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(1 << 20, count - len(parts)))
        if not part:
            return None
        parts += part
    return bytes(parts)
