"""Pictures to send, made here: no binary files in the repository."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from PIL import Image

SIZE = (24, 16)


def pixels(size: tuple[int, int] = SIZE, channels: int = 3, seed: int = 1) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Smooth and colourful, unlike noise, so that lossy formats keep it and edges are found."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    planes = [Image.fromarray(small[:, :, c], "L").resize(size, Image.Resampling.BICUBIC) for c in range(channels)]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def picture(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(pixels(size)[:, :, 0].astype(np.uint16) * 257)
    if mode in ("RGBA", "CMYK"):
        return Image.fromarray(pixels(size, 4), mode)
    if mode == "LA":
        return Image.fromarray(pixels(size, 2), "LA")
    return Image.fromarray(pixels(size), "RGB").convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png16(channels: int, clear: tuple[int, ...] = ()) -> bytes:
    """A PNG with 16 bits a channel, which Pillow cannot write; `clear` is its transparent colour."""
    wide = pixels(channels=channels).astype(np.uint16) * 256 + 77
    data = cv2.imencode(".png", wide)[1].tobytes()
    return data[:33] + (png_chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b"") + data[33:]


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    made[0x010E] = "a secret place"
    return made


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with hardly any pixels behind it."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + png_chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(picture(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    """An extended WebP with a canvas of that size and a small picture in it."""
    data = encoded(picture("RGBA"), "WEBP", exif=exif(1))
    assert data[12:16] == b"VP8X"
    return data[:24] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + data[30:]
