"""Every message between the API process and the image child, both ways. Must not import a decoder.

The child answers each message once, in order, after its `Hello`. A frame's blob is a caller's picture.
"""

import socket
from typing import Literal

import msgspec

from mezzotint import frames
from mezzotint.frames import HEAD_BYTES as HEAD_BYTES
from mezzotint.frames import WireError as WireError

MAX_PIXELS = 4096 * 4096
MAX_MESSAGE_BYTES = 64 << 10

# image: RGB. The others are masks, kept with white = repaint. mask: white, by luminance, transparent is black;
# hole: fully transparent; stencil: white, or with any transparency in the file, opaque.
Role = Literal["image", "mask", "hole", "stencil"]


def brought_to(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Width and height of a picture whose short side becomes so many px."""
    width, height = (max(1, round(side * short / min(size))) for side in size)
    return width, height


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", forbid_unknown_fields=True):
    pass


# ---- API process -> child


class Keep(_Message, frozen=True, kw_only=True, tag="keep"):
    """Normalise the picture in the blob and keep it as this asset."""

    asset_id: str
    role: Role
    size: tuple[int, int] | None = None  # what a mask is brought to
    inverted: bool = False
    rounded: bool = False  # a mask's greys become black or white, at 128


class Preprocess(_Message, frozen=True, kw_only=True, tag="preprocess"):
    """Make a control map of one asset and keep it as another. `options` are complete and in range."""

    asset_id: str
    source_id: str
    preprocessor: str
    options: dict[str, float]


class Upscale(_Message, frozen=True, kw_only=True, tag="upscale"):
    """Bring one asset to another size and keep it as another. Both methods are Lanczos or Nearest."""

    asset_id: str
    source_id: str
    size: tuple[int, int]
    crops: bool  # fill the size and cut what is over, else keep the ratio: no side shorter than asked
    method: str
    second: str
    share: float  # of the second method, 0 to 1


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
    """Nothing was kept. `code` is invalid_image, storage_full, not_ready or internal."""

    code: str
    message: str


ToChild = Keep | Preprocess | Upscale
FromChild = Hello | Kept | Refused

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
    return frames.head(_encoder.encode(message), blob)


def lengths(raw: bytes) -> tuple[int, int]:
    return frames.lengths(raw, MAX_MESSAGE_BYTES)


def decode_from_child(body: bytes) -> FromChild:
    message: FromChild = frames.decode(_from_child, body)
    return message


def receive_to_child(connection: socket.socket) -> tuple[ToChild, bytes] | None:
    """Block for the next message in the child. None: the API process is gone."""
    received = frames.receive(connection, MAX_MESSAGE_BYTES)
    return None if received is None else (frames.decode(_to_child, received[0]), received[1])
