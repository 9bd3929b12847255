"""Pictures out: pixels to PNG, JPEG or WebP, with the parameters that made them. Must not run in the API process.

What is written holds only what determines the picture, so that equal pixels give equal files: no ids, times, paths.
"""

import io
import json
import zlib
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mezzotint import infotext
from mezzotint.request import Output, Request

MAX_METADATA_BYTES = 64 * 1024
THUMBNAIL_PX = 256
# Of drawn pictures little repeats but runs: to look for more takes half as long again, and their files come out larger.
_PNG = {"compress_level": 1, "compress_type": zlib.Z_RLE}
_MAX_EXIF_BYTES = 60 * 1024
_MAX_JPEG_EXIF_BYTES = 65_533  # of one segment; a WebP's has no end

# Fields that say who asked or how to run it, not what is drawn.
_NOT_THE_PICTURE = frozenset(
    {
        "metadata",
        "priority",
        "timeout_s",
        "expires_s",
        "device",
        "output",
        "num_images",
        "seed",
        "image",
        "mask",
        "webhook",
        "preview",
        "cancel_on_disconnect",
    }
)


def encode(
    pixels: "np.ndarray[Any, np.dtype[np.uint8]]",
    request: Request,
    seed: int,
    made_with: dict[str, Any],
    hashes: infotext.Hashes,
    vae: tuple[str, str] = ("", ""),
    own_spacing: str = "",
) -> bytes:
    """(H, W, 3) uint8 to a file of `request.output.format`.

    `made_with` holds model, loras, controlnets and embeddings with their digests, versions, device_kind, dtype and
    executor; `vae` the file name of another autoencoder than the model's own and its SHA-256, each empty where there
    is none; `own_spacing` how the model's own scheduler lays out its timesteps.
    """
    output, image, file = request.output, Image.fromarray(pixels, "RGB"), io.BytesIO()
    text = infotext.write(request, seed, made_with, hashes, vae, own_spacing) if output.embed_metadata else ""
    record = json.dumps(metadata(request, seed, made_with), separators=(",", ":")) if output.embed_metadata else ""
    if len(record) > MAX_METADATA_BYTES:
        record = ""
    if output.format == "png":
        image.save(file, "PNG", pnginfo=_png_text(text, record), **_PNG)
    else:
        exif = _exif(text, record)
        if output.format == "jpeg" and len(exif) > _MAX_JPEG_EXIF_BYTES:
            exif = b""  # rather than no picture; advice.py has warned
        image.save(file, output.format.upper(), quality=output.quality, **({"exif": exif} if exif else {}))
    return file.getvalue()


def thumbnail(pixels: "np.ndarray[Any, np.dtype[np.uint8]]") -> bytes:
    """(H, W, 3) uint8 to a WebP of THUMBNAIL_PX on its longer side; empty for a picture that is no larger."""
    if max(pixels.shape[:2]) <= THUMBNAIL_PX:
        return b""
    image, file = Image.fromarray(pixels, "RGB"), io.BytesIO()
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    image.save(file, "WEBP", quality=80)
    return file.getvalue()


def preview(pixels: "np.ndarray[Any, np.dtype[np.uint8]]", output: Output, max_px: int) -> tuple[bytes, int, int]:
    """(H, W, 3) uint8 to a small file of the output's format, without parameters, with its width and height."""
    image, file = Image.fromarray(pixels, "RGB"), io.BytesIO()
    image.thumbnail((max_px, max_px))
    options = _PNG if output.format == "png" else {"quality": output.quality}
    image.save(file, output.format.upper(), **options)
    return file.getvalue(), image.width, image.height


def metadata(request: Request, seed: int, made_with: dict[str, Any]) -> dict[str, Any]:
    """The `mezzotint` chunk: enough to draw the same picture again."""
    told = msgspec.to_builtins(_drawn(request))
    fields = {name: value for name, value in told.items() if name not in _NOT_THE_PICTURE}
    for control in fields["controlnets"]:
        del control["image"]
    return {"v": 1, "seed": seed, "request": fields, **made_with}


def _drawn(request: Request) -> Request:
    """The same without what has no effect, as advice.py warns, and its type by what goes in, whatever it was called."""
    given = {
        "inpainting": request.mask,
        "img2img": request.image,
        "controlnet": request.controlnets,
        "lora": request.loras,
    }
    return replace(
        request,
        type=next((kind for kind, one in given.items() if one), "text2img"),
        eta=request.eta if request.scheduler == "ddim" else 0.0,
        resize_mode="stretch" if request.image is None else request.resize_mode,
    )


def _png_text(text: str, record: str) -> PngInfo | None:
    if not text:
        return None
    info = PngInfo()
    try:
        text.encode("latin-1")
        info.add_text("parameters", text)
    except UnicodeEncodeError:
        info.add_itxt("parameters", text)
    if record:
        info.add_itxt("mezzotint", record)
    return info


def _exif(text: str, record: str) -> bytes:
    if not text:
        return b""
    exif = Image.Exif()
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    if record and len(comment) + len(record) <= _MAX_EXIF_BYTES:
        exif[0x010E] = "mezzotint:" + record
    exif.get_ifd(0x8769)[0x9286] = comment
    return exif.tobytes()
