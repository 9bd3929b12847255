"""Pictures in and out of AUTOMATIC1111's calls: kept as assets, and back as bare base64. Must not decode one."""

import base64
from typing import Any

from mezzotint.api import a1111_controlnet, a1111_models
from mezzotint.api.a1111_fields import Asked
from mezzotint.api.a1111_reading import Fields
from mezzotint.errors import Fault, InvalidRequest
from mezzotint.image_wire import MAX_PIXELS
from mezzotint.operations import Operations

MAX_BATCH = 64  # pictures of one call
_PLAIN_RESOLUTION = 512


async def keep(ops: Operations, asked: Asked) -> dict[str, Any]:
    """The fields of a request that are pictures, kept. Raises InvalidRequest."""
    body: dict[str, Any] = {}
    image = None
    if asked.image is not None:
        data = ops.read_picture(asked.image, "init_images[0]")
        image = await ops.add_asset(data, "image", field="init_images[0]")
        body["image"] = f"asset:{image.id}"
        if asked.mask is not None:
            mask = await ops.add_mask(
                ops.read_picture(asked.mask, "mask"),
                (image.width, image.height),
                inverted=asked.inverts_mask,
                rounded=asked.rounds_mask,
                field="mask",
            )
            body["mask"] = f"asset:{mask.id}"
    nets = []
    for unit in asked.units:
        kept = image
        if unit.image is not None:
            field = f"{unit.path}image"
            kept = await ops.add_asset(ops.read_picture(unit.image, field), "image", field=field)
        if kept is None:
            message = f"{unit.path}image is missing: txt2img has no picture to follow"
            raise InvalidRequest([Fault(field=f"{unit.path}image", code="invalid_value", message=message)])
        target = (asked.body["width"], asked.body["height"])
        options = unit.options_for((kept.width, kept.height), target)
        nets.append(unit.body | {"image": f"asset:{kept.id}", "options": options})
    if nets:
        body["controlnets"] = nets
    return body


async def detect(ops: Operations, fields: Fields) -> dict[str, Any]:
    """A control map of each picture, a mask's too, which clients send as one more. Raises InvalidRequest."""
    module = fields.text("controlnet_module", "none")
    preprocessor = "none" if module.lower() in ("", "none") else module
    pictures = fields.get("controlnet_input_images", "controlnet_images")
    is_list = isinstance(pictures, list) and all(isinstance(one, str) for one in pictures)
    if not is_list or not 1 <= len(pictures) <= MAX_BATCH:
        fields.wrong("controlnet_input_images", f"must be a list of 1 to {MAX_BATCH} pictures as base64")
    thresholds = a1111_controlnet.options(preprocessor, fields, "controlnet_threshold_a", "controlnet_threshold_b")
    resolution = fields.whole("controlnet_processor_res", _PLAIN_RESOLUTION, -1, 2048)
    fields.free("low_vram")
    fields.idle("controlnet_masks")
    if fields.faults:
        raise InvalidRequest(fields.faults)
    options: dict[str, Any] = dict(thresholds)
    if preprocessor != "none":
        options["resolution"] = resolution if resolution > 0 else _PLAIN_RESOLUTION
    made = []
    for text in pictures:
        data = ops.read_picture(text, "controlnet_input_images")
        kept = await ops.add_asset(data, "image", field="controlnet_input_images")
        made.append(await ops.preprocessed(kept, preprocessor, options))
    return {"images": [encoded(await ops.asset_bytes(one)) for one in made], "info": "Success"}


async def upscale(ops: Operations, text: Any, fields: Fields, field: str) -> str:
    """One picture of the extras, at the size that the fields say. Raises InvalidRequest."""
    mode = fields.whole("resize_mode", 0, 0, 1)
    factor = fields.number("upscaling_resize", 2.0, 0.05, 16)
    wanted = fields.whole("upscaling_resize_w", 512, 1, 16_384), fields.whole("upscaling_resize_h", 512, 1, 16_384)
    crops = fields.flag("upscaling_crop", True)
    first, second = (_upscaler(fields, name) for name in ("upscaler_1", "upscaler_2"))
    share = fields.number("extras_upscaler_2_visibility", 0.0, 0, 1)
    fields.neutral(
        ("gfpgan_visibility", "codeformer_visibility"), lambda value: value == 0, "faces are not restored here; send 0"
    )
    fields.free("codeformer_weight", "upscale_first", "show_extras_results")
    if not isinstance(text, str):
        fields.wrong(field, "must be a picture as base64")
    if fields.faults:
        raise InvalidRequest(fields.faults)
    source = await ops.add_asset(ops.read_picture(text, field), "image", field=field)
    if first == "None":
        return encoded(await ops.asset_bytes(source))
    size = wanted if mode else (max(1, round(source.width * factor)), max(1, round(source.height * factor)))
    if max(size[0] / source.width, size[1] / source.height) ** 2 * source.width * source.height > MAX_PIXELS:
        message = f"{size[0]}x{size[1]} is too large; at most {MAX_PIXELS} pixels are made"
        raise InvalidRequest([Fault(field="upscaling_resize", code="invalid_value", message=message)])
    both = (first, second if second != "None" else first)
    made = await ops.upscaled(
        source, size, crops=crops and mode == 1, methods=both, share=share if second != "None" else 0.0
    )
    return encoded(await ops.asset_bytes(made))


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _upscaler(fields: Fields, name: str) -> str:
    value = fields.text(name, "None") or "None"
    if value not in a1111_models.UPSCALERS:
        rule = f"{value[:64]!r} is not here; {', '.join(a1111_models.UPSCALERS)}"
        fields.wrong(name, rule, "upscaler_not_found")
        return "None"
    return value
