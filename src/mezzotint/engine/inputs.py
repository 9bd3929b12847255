"""Pictures in: a session's normalised files to tensors of the output's size, and the kept area back onto the result.

Resizing, blurring and cropping are diffusers' own, so that results equal its pipelines'. Must not decode what a caller
sent: the files were written by the image child.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from mezzotint.request import Request

Box = tuple[int, int, int, int]

_MODES = {"stretch": "default", "crop": "crop", "pad": "fill"}
# factor 1: a request's sizes are those of its model already, and diffusers would make them multiples of eight
_IMAGES = VaeImageProcessor(vae_scale_factor=1)
_MASKS = VaeImageProcessor(vae_scale_factor=1, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
_CONTROLS = VaeImageProcessor(vae_scale_factor=1, do_normalize=False, do_convert_rgb=True)
_FILL_RADII = (256, 64, 16, 4, 2)  # px, from far to near


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pictures:
    """A session's input pictures, ready for the model."""

    image: Tensor | None = None  # (1, 3, H, W) in -1..1
    mask: Tensor | None = None  # (1, 1, H, W), 1 where it is drawn anew
    controls: tuple[Tensor, ...] = ()  # (3, H, W) in 0..1, in the order of the request
    original: Image.Image | None = None  # with a mask: what is kept, at the output's size
    soft_mask: Image.Image | None = None
    crop: Box | None = None  # only this part of the original was drawn, at the output's size

    def paste(self, pixels: Tensor) -> Tensor:
        """The drawn pixels (H, W, 3) uint8, with the original back where the blurred mask is black, exactly."""
        if self.original is None or self.soft_mask is None:
            return pixels
        drawn = Image.fromarray(pixels.numpy(), "RGB")
        if self.crop is None and drawn.size != self.original.size:  # nothing to repaint in a picture left at its size
            drawn = drawn.resize(self.original.size)
        pasted = _IMAGES.apply_overlay(self.soft_mask, self.original, drawn, self.crop)
        return torch.from_numpy(np.array(pasted))


def read(request: Request, files: Mapping[str, str]) -> Pictures:
    """`files`: the field's path in the request -> a PNG. Raises OSError when one cannot be read."""
    size = (request.width, request.height)
    found = Pictures()
    if request.image is not None:
        image = _sized(_open(files["image"], "RGB"), size, request.resize_mode)
        if request.mask is None:
            found = replace(found, image=_IMAGES.preprocess(image))
        else:
            mask = _sized(_open(files["mask"], "L"), size, request.resize_mode)
            found = _masked(request, image, mask)
    mode = "stretch" if found.crop is None else "pad"
    whole = found.original.size if found.original is not None else size  # what a crop's box counts in
    controls = []
    for index, control in enumerate(request.controlnets):
        picture = _sized(_open(files[f"controlnets[{index}].image"], "RGB"), whole, control.resize_mode)
        controls.append(_pixels(_CONTROLS, picture, size, found.crop, mode)[0])
    return replace(found, controls=tuple(controls))


def _masked(request: Request, image: Image.Image, mask: Image.Image) -> Pictures:
    size = (request.width, request.height)
    if request.mask_blur:
        mask = _MASKS.blur(mask, request.mask_blur)
    crop: Box | None = None
    if request.padding_mask_crop is not None and mask.getbbox() is not None:
        crop = _MASKS.get_crop_region(mask, *size, pad=request.padding_mask_crop)
    start = _filled(image, mask) if request.mask_fill == "fill" else image
    mode = "stretch" if crop is None else "pad"
    return Pictures(
        image=_pixels(_IMAGES, start, size, crop, mode),
        mask=_pixels(_MASKS, mask, size, crop, mode),
        original=image,
        soft_mask=mask,
        crop=crop,
    )


def _open(path: str, mode: str) -> Image.Image:
    with Image.open(path) as file:
        return file.convert(mode)


def _sized(image: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    width, height = size
    if image.size == size or mode == "original":
        return image
    sized: Image.Image = _IMAGES.resize(image, height, width, _MODES[mode]).convert(image.mode)  # a mask comes as RGB
    return sized


def _pixels(processor: Any, image: Image.Image, size: tuple[int, int], crop: Box | None, mode: str) -> Tensor:
    pixels: Tensor = processor.preprocess(
        image, height=size[1], width=size[0], crops_coords=crop, resize_mode=_MODES[mode]
    )
    return pixels


def _filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The masked area in the colours around it: ever nearer surroundings, blurred, laid over one another."""
    kept = image.convert("RGBA")
    kept.putalpha(ImageOps.invert(mask.point(lambda value: 255 if value else 0)))
    filled = Image.new("RGBA", image.size, (*_mean(kept), 255))
    premultiplied = kept.convert("RGBa")
    for radius in _FILL_RADII:
        near = premultiplied.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        near.putalpha(near.getchannel("A").point(lambda value: min(255, 4 * value)))
        filled.alpha_composite(near)
    filled.alpha_composite(kept)
    return filled.convert("RGB")


def _mean(kept: Image.Image) -> tuple[int, int, int]:
    pixels = np.asarray(kept, dtype=np.float64).reshape(-1, 4)
    weight = pixels[:, 3:]
    mean = (pixels[:, :3] * weight).sum(0) / max(1.0, float(weight.sum()))
    return int(mean[0]), int(mean[1]), int(mean[2])
