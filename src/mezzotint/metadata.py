"""What a picture file says of how it was made: its text, found without touching a pixel. Must not import a decoder.

Bad input gives less, never an error: chunks that cannot be read are left out. At most MAX_TEXT_BYTES are read.
"""

import codecs
import contextlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

MAX_TEXT_BYTES = 1 << 20
MAX_CHUNKS = 10_000
MAX_BAD_CHUNKS = 16  # each may have taken the inflating of MAX_TEXT_BYTES
MAX_IFD_ENTRIES = 256
MAX_LEVELS = 32  # of JSON

_PNG = b"\x89PNG\r\n\x1a\n"
_IMAGE_DESCRIPTION, _MODEL, _EXIF_IFD, _USER_COMMENT = 0x010E, 0x0110, 0x8769, 0x9286
_READ = frozenset({_IMAGE_DESCRIPTION, _MODEL, _EXIF_IFD, _USER_COMMENT})
_OWN = "mezzotint:"


def texts(data: bytes) -> dict[str, str]:
    """The text chunks of a PNG; of a JPEG or WebP what its EXIF holds, under the names that a PNG would use."""
    if data.startswith(_PNG):
        return _png(data)
    exif = _jpeg_exif(data) if data.startswith(b"\xff\xd8\xff") else _webp_exif(data)
    return _exif_texts(exif[:MAX_TEXT_BYTES])


# ---- PNG


def _png(data: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    left, bad = MAX_TEXT_BYTES, 0
    for kind, body in _png_chunks(data):
        reader = {b"tEXt": _text, b"zTXt": _packed, b"iTXt": _international}.get(kind)
        name = body.partition(b"\0")[0].decode("latin-1")
        if reader is None or name in found:
            continue
        try:
            text = reader(body, left)
        except (ValueError, zlib.error, IndexError):  # UnicodeDecodeError is a ValueError
            bad += 1
            if bad == MAX_BAD_CHUNKS:
                break
            continue
        if len(text) <= left:
            found[name] = text
            left -= len(text)
    return found


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG)
    for _ in range(MAX_CHUNKS):
        if at + 12 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"tEXt", b"zTXt", b"iTXt") and at + 12 + length <= len(data) and length <= MAX_TEXT_BYTES:
            yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


def _text(body: bytes, _left: int) -> str:
    return body.partition(b"\0")[2].decode("latin-1")


def _packed(body: bytes, left: int) -> str:
    return _inflated(body.partition(b"\0")[2][1:], left).decode("latin-1")


def _international(body: bytes, left: int) -> str:
    _name, _, rest = body.partition(b"\0")
    is_packed = rest[0] == 1
    _language, _, rest = rest[2:].partition(b"\0")
    _translated, _, text = rest.partition(b"\0")
    return (_inflated(text, left) if is_packed else text).decode()


def _inflated(data: bytes, left: int) -> bytes:
    """Raises ValueError when there is more of it than may be read."""
    inflater = zlib.decompressobj()
    found = inflater.decompress(data, left + 1)
    if len(found) > left:
        raise ValueError("too long")
    return found


# ---- EXIF


def _jpeg_exif(data: bytes) -> bytes:
    at = 2
    for _ in range(MAX_CHUNKS):
        if at + 4 > len(data) or data[at] != 0xFF:
            return b""
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0xDA, 0xD9) or length < 2:  # the pixels begin
            return b""
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 10 : at + 2 + length]
        at += 2 + length
    return b""


def _webp_exif(data: bytes) -> bytes:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return b""
    at = 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return b""
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"EXIF":
            return data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
        at += 8 + length + length % 2
    return b""


def _exif_texts(exif: bytes) -> dict[str, str]:
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return {}
    found: dict[str, str] = {}
    with contextlib.suppress(struct.error, ValueError):
        tags = _ifd(exif, order, struct.unpack_from(order + "I", exif, 4)[0])
        comment = _user_comment(_ifd(exif, order, _pointer(tags, order)).get(_USER_COMMENT, b""))
        if comment:
            found["parameters"] = comment
        for tag in (_IMAGE_DESCRIPTION, _MODEL):
            text = tags.get(tag, b"").rstrip(b"\0").decode("utf-8", "replace")
            if text.startswith(_OWN):
                found["mezzotint"] = text.removeprefix(_OWN)
            for name in ("prompt", "workflow"):
                if text.lower().startswith(f"{name}:"):
                    found[name] = text[len(name) + 1 :]
    return found


def _ifd(exif: bytes, order: str, at: int) -> dict[int, bytes]:
    """Of the tags that are read values of text and of undefined kind; pointers as their four bytes."""
    if not 0 < at <= len(exif) - 2:
        return {}
    found: dict[int, bytes] = {}
    (count,) = struct.unpack_from(order + "H", exif, at)
    for index in range(min(count, MAX_IFD_ENTRIES)):
        tag, kind, length = struct.unpack_from(order + "HHI", exif, at + 2 + 12 * index)
        inline = exif[at + 10 + 12 * index : at + 14 + 12 * index]
        if tag not in _READ or tag in found:  # each may be of any length, all at one place
            continue
        if kind in (1, 2, 7):  # writers differ in what they call bytes
            start = struct.unpack(order + "I", inline)[0]
            found[tag] = inline[:length] if length <= 4 else exif[start : start + length]
        elif kind == 4:
            found[tag] = inline
    return found


def _pointer(tags: Mapping[int, bytes], order: str) -> int:
    value: int = struct.unpack(order + "I", tags.get(_EXIF_IFD, b"\0\0\0\0"))[0]
    return value


def _user_comment(value: bytes) -> str:
    """By its eight bytes of encoding."""
    kind, text = value[:8], value[8:]
    if kind.startswith(b"UNICODE"):
        return _utf16(text).rstrip("\0")
    return (text if kind.startswith(b"ASCII") else value).rstrip(b"\0").decode("utf-8", "replace")


def _utf16(data: bytes) -> str:
    """In the byte order that it says, else in the one that shows parameters, else by where plain letters have zeros.

    Writers differ in the order.
    """
    if data.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF16_LE)):
        return data.decode("utf-16", "replace")
    big, little = data.decode("utf-16-be", "replace"), data.decode("utf-16-le", "replace")
    if (shows := "Steps: " in big) != ("Steps: " in little):
        return big if shows else little
    return big if data[::2].count(0) >= data[1::2].count(0) else little


def shallow_json(text: str) -> Any:
    """Decoded; NaN is taken, for ComfyUI writes it, and half of a surrogate pair, which no answer can hold, is a
    question mark. Raises ValueError, also for more than MAX_LEVELS."""
    depth = deepest = 0
    in_text = escaped = False
    for mark in text:
        if in_text:
            escaped, in_text = (False, True) if escaped else (mark == "\\", mark != '"')
        elif mark == '"':
            in_text = True
        elif mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    if deepest > MAX_LEVELS:
        raise ValueError("nested too deeply")
    found = json.loads(text)
    if "\\u" in text:
        found = json.loads(json.dumps(found, ensure_ascii=False).encode(errors="replace"))
    return found
