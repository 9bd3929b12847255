"""The image child: decodes every picture that callers send, in a process that may die of it. Must not import torch.

It opens no network connection, writes only into the folder it was given, and does not outlive the API process.
"""

import argparse
import contextlib
import hashlib
import io
import logging
import os
import re
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from mezzotint import image_wire as wire
from mezzotint.disk import sync_folder, write_new
from mezzotint.errors import not_taken
from mezzotint.workers.limits import limit_myself

log = logging.getLogger("mezzotint.image_child")

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

MEMORY_BYTES = 1 << 30  # of address space; the largest picture takes 710 MiB of it, measured
FILE_BYTES = 256 << 20

_DECODERS = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
# What else a caller may have sent, to call it by its name.
_FOREIGN = (
    (0, b"GIF8", "a GIF"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (0, b"BM", "a BMP"),
    (0, b"%PDF", "a PDF"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\0\0\1\0", "an ICO"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (4, b"ftypavi", "an AVIF"),
    (4, b"ftyphei", "a HEIC"),
    (4, b"ftypmif", "a HEIC"),
)
MAX_SCANS = 100  # of a JPEG, each of which goes over all of its pixels; ten are usual
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # but those that stand alone within pixels
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(Exception):
    """The picture cannot be taken; the text is for its caller."""


def main() -> None:
    args = _arguments()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    limit_myself()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    cv2.setNumThreads(1)
    Image.MAX_IMAGE_PIXELS = None  # `decode` has its own, lower cap
    connection = socket.socket(fileno=args.fd)
    connection.sendall(wire.head(wire.Hello()))
    while (received := wire.receive_to_child(connection)) is not None:
        connection.sendall(wire.head(answer(*received, args.folder)))


def answer(message: wire.ToChild, blob: bytes, folder: Path) -> wire.FromChild:
    """Do what is asked. Never raises: what goes wrong is the answer."""
    try:
        return _keep(_made(message, blob, folder), message.asset_id, folder)
    except Unreadable as error:
        return wire.Refused(code="invalid_image", message=str(error))
    except MemoryError:
        message_text = "decoding it takes more memory than a picture may; send a smaller one"
        return wire.Refused(code="invalid_image", message=message_text)
    except OSError as error:
        log.exception("a picture could not be kept")
        if error.errno is not None:  # else it is not the disk's
            told = not_taken("pictures", error)
            return wire.Refused(code=told.code, message=told.message)
    except Exception:
        log.exception("a picture could not be kept")
    return wire.Refused(code="internal", message="the picture could not be kept; the server's log says why")


def _made(message: wire.ToChild, blob: bytes, folder: Path) -> Image.Image:
    if isinstance(message, wire.Keep):
        return _as_asked(normalise(blob, message.role), message)
    with open(folder / wire.file_name(message.source_id), "rb", opener=_no_link) as file:
        source = normalise(file.read(), "image")
    return _preprocess(message, source) if isinstance(message, wire.Preprocess) else _upscale(message, source)


def _as_asked(image: Image.Image, message: wire.Keep) -> Image.Image:
    if message.size is not None and image.size != message.size:
        image = image.resize(message.size, Image.Resampling.LANCZOS)
    if message.rounded:
        image = image.point(lambda value: 255 if value >= 128 else 0)
    return ImageOps.invert(image) if message.inverted else image


def _upscale(message: wire.Upscale, source: Image.Image) -> Image.Image:
    methods = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
    width, height = message.size
    factor = max(width / source.width, height / source.height)
    size = (max(width, round(source.width * factor)), max(height, round(source.height * factor)))
    made = source.resize(size, methods[message.method])
    if message.share:
        made = Image.blend(made, source.resize(size, methods[message.second]), message.share)
    if not message.crops or made.size == message.size:
        return made
    left, top = (made.width - width) // 2, (made.height - height) // 2
    return made.crop((left, top, left + width, top + height))


def normalise(data: bytes, role: wire.Role) -> Image.Image:
    """Any PNG, JPEG or WebP as upright RGB, alpha laid over white; a mask as L, white where its role says repaint.

    Of an animated picture the first frame. 16-bit channels keep their high byte. Raises Unreadable.
    """
    image, orientation = decode(data)
    with _blaming(_format(data)):
        flat = _flat(image, background=255).convert("RGB") if role == "image" else _mask(image, role)
    turned = flat.transpose(_TURNS[orientation]) if orientation in _TURNS else flat
    turned.info = {}  # else colour profiles and the like would be written again
    return turned


def decode(data: bytes) -> tuple[Image.Image, int]:
    """The picture as its file has it, and its EXIF orientation (1 to 8). Sizes are checked before pixels are decoded.

    Raises Unreadable.
    """
    name = _format(data)
    with _blaming(name):
        if name == "WEBP":
            _check_size(*_webp_size(data))  # its decoder allocates as it opens
        if name == "JPEG":
            _check_scans(data)
        image = _DECODERS[name](io.BytesIO(data))
        _check_size(*image.size)
        image.load()
    return image, _orientation(image)


def _mask(image: Image.Image, role: wire.Role) -> Image.Image:
    if role == "mask" or (role == "stencil" and not image.has_transparency_data):
        return _flat(image, background=0).convert("L")
    if not image.has_transparency_data:
        raise Unreadable("the mask has no transparency, and fully transparent pixels are what is drawn anew")
    alpha = image.convert("RGBA").getchannel("A")
    if role == "hole":
        return alpha.point(lambda value: 0 if value else 255)
    if alpha.getextrema()[0] == 255:  # a channel that says nothing
        return image.convert("RGB").convert("L")
    return alpha


def canny(pixels: Pixels, low_threshold: float, high_threshold: float) -> Pixels:
    """J. Canny, 1986: white edges on black, of RGB as ControlNets were trained on."""
    edges = cv2.Canny(pixels, low_threshold, high_threshold)
    return np.repeat(edges[:, :, None], 3, axis=2).astype(np.uint8)


def invert(pixels: Pixels) -> Pixels:
    return 255 - pixels


def blur_gaussian(pixels: Pixels, sigma: float) -> Pixels:
    return cv2.GaussianBlur(pixels, (0, 0), sigma).astype(np.uint8)


PREPROCESSORS: dict[str, Callable[..., Pixels]] = {"canny": canny, "invert": invert, "blur_gaussian": blur_gaussian}


def _preprocess(message: wire.Preprocess, source: Image.Image) -> Image.Image:
    options = dict(message.options)
    short = int(options.pop("resolution", 0))
    if short:
        size = wire.brought_to(source.size, short)
        _check_size(*size)
        source = source.resize(size, Image.Resampling.LANCZOS)
    return Image.fromarray(PREPROCESSORS[message.preprocessor](np.asarray(source), **options), "RGB")


def _format(data: bytes) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if not data:
        raise Unreadable("the picture is empty; send a PNG, JPEG or WebP")
    shown = next((shown for at, magic, shown in _FOREIGN if data[at:].startswith(magic)), None)
    if data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        shown = "an SVG"
    what = f"it is {shown}" if shown else "its first bytes are of no picture known here"
    raise Unreadable(f"{what}; send a PNG, JPEG or WebP")


@contextlib.contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Whatever a decoder raises on hostile bytes is one fault of the picture. Its own text goes to nobody."""
    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        shown = "WebP" if name == "WEBP" else name
        message = f"the {shown} is damaged or cut short; send the whole file, or save it anew"
        raise Unreadable(message) from error


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise Unreadable(f"the picture is {width} x {height} and has no pixels; send one that has")
    if width * height > wire.MAX_PIXELS:
        message = f"the picture is {width} x {height}; at most {wire.MAX_PIXELS} pixels are taken, send a smaller one"
        raise Unreadable(message)


def _check_scans(data: bytes) -> None:
    """Raises Unreadable for a JPEG of more scans than any program writes, which could be decoded for minutes."""
    at, scans = 2, 0
    while (found := _JPEG_MARKER.search(data, at)) is not None and found[0] != b"\xff\xd9":
        scans += found[0] == b"\xff\xda"
        if scans > MAX_SCANS:
            raise Unreadable(f"the JPEG has too many scans; at most {MAX_SCANS} scans are taken, save it anew")
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas, by https://developers.google.com/speed/webp/docs/riff_container."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise ValueError("too short")
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise ValueError("no picture in it")


def _orientation(image: Image.Image) -> int:
    with contextlib.suppress(Exception):  # viewers show a picture with broken EXIF, so it is taken upright
        return int(image.getexif().get(0x0112, 1))
    return 1


def _flat(image: Image.Image, background: int) -> Image.Image:
    """Without alpha and at 8 bits."""
    if image.mode.startswith("I"):
        values, clear = np.asarray(image), image.info.get("transparency")
        levels = (values >> 8).astype(np.uint8)
        if isinstance(clear, int):
            levels[values == clear] = background
        return Image.fromarray(levels, "L")
    if not image.has_transparency_data:
        return image
    clear = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in clear)  # of a PNG with 16 bits, as its pixels
    under = Image.new("RGBA", image.size, (background, background, background, 255))
    return Image.alpha_composite(under, image.convert("RGBA"))


def _keep(image: Image.Image, asset_id: str, folder: Path) -> wire.Kept:
    """Once this returns, it would survive a power cut."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    data = buffer.getbuffer()
    temporary = folder / wire.temporary_name(asset_id)
    try:
        write_new(temporary, data)
        temporary.rename(folder / wire.file_name(asset_id))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    return wire.Kept(
        width=image.width,
        height=image.height,
        channels=len(image.getbands()),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mezzotint-image-child")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
