"""AUTOMATIC1111's API: what there is, and what is done to single pictures. Must not hold a rule of its own."""

import asyncio
from typing import Any

import psutil
from fastapi import APIRouter, Request

from mezzotint import a1111_names, recipes
from mezzotint.api import a1111_controlnet, a1111_models, a1111_pictures, foreign, foreign_bodies
from mezzotint.api.a1111 import Body
from mezzotint.api.a1111_reading import Fields
from mezzotint.api.a1111_tasks import owner
from mezzotint.api.inference import Ops
from mezzotint.errors import Fault, InvalidRequest
from mezzotint.operations import Operations

router = APIRouter(tags=["AUTOMATIC1111"])
lists = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])


@lists.get("/sd-models")
async def sd_models(ops: Ops) -> list[dict[str, Any]]:
    return a1111_models.checkpoints(ops.facts(), await ops.digests())


@lists.get("/samplers")
async def samplers() -> list[dict[str, Any]]:
    return a1111_models.samplers()


@lists.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    return a1111_models.schedulers()


@lists.get("/upscalers")
async def upscalers() -> list[dict[str, Any]]:
    return a1111_models.upscalers()


@lists.get("/loras")
async def loras(ops: Ops) -> list[dict[str, Any]]:
    return a1111_models.loras(ops.facts())


@lists.get("/embeddings")
async def embeddings(ops: Ops) -> dict[str, Any]:
    """Those that fit the caller's checkpoint, and the others."""
    return a1111_models.embeddings(ops.facts(), await _checkpoint(ops))


@lists.get("/latent-upscale-modes")
async def latent_upscale_modes() -> list[dict[str, Any]]:
    return [{"name": theirs} for theirs, ours in a1111_names.UPSCALERS.items() if ours.startswith("latent")]


@lists.get("/sd-vae")
@lists.get("/hypernetworks")
@lists.get("/face-restorers")
@lists.get("/realesrgan-models")
@lists.get("/prompt-styles")
@lists.get("/extensions")
async def nothing() -> list[Any]:
    """None of these are here."""
    return []


@lists.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    return {}


@lists.get("/scripts")
async def scripts() -> dict[str, list[str]]:
    return {"txt2img": a1111_models.SCRIPTS, "img2img": a1111_models.SCRIPTS}


@lists.get("/script-info")
async def script_info() -> list[dict[str, Any]]:
    return a1111_models.script_info()


@lists.get("/memory")
async def memory(ops: Ops) -> dict[str, Any]:
    """Bytes of the machine and of its first CUDA device."""
    machine = psutil.virtual_memory()
    ram = {"free": machine.available, "used": machine.total - machine.available, "total": machine.total}
    device = next((one for one in await ops.devices() if one["kind"] == "cuda"), None)
    if device is None:
        return {"ram": ram, "cuda": {"error": "there is no CUDA device"}}
    total, free = device["memory"]["total_bytes"], device["memory"]["available_bytes"]
    used = None if total is None or free is None else total - free
    return {"ram": ram, "cuda": {"system": {"free": free, "used": used, "total": total}}}


@lists.post("/refresh-checkpoints")
@lists.post("/refresh-loras")
@lists.post("/refresh-embeddings")
@lists.post("/refresh-vae")
async def refresh(ops: Ops) -> None:
    """Look at the model folders anew."""
    await ops.rescan()


@lists.post("/unload-checkpoint")
async def unload_checkpoint(ops: Ops) -> dict[str, Any]:
    """Let go of the caller's checkpoint. 409 while a session uses it."""
    await ops.unload_model(await _checkpoint(ops))
    return {}


@lists.post("/reload-checkpoint")
async def reload_checkpoint(ops: Ops) -> dict[str, Any]:
    """Answers when the caller's checkpoint is loaded."""
    await ops.load_model(await _checkpoint(ops))
    return {}


async def _checkpoint(ops: Operations) -> str:
    """Id of the one in the caller's options; one that is gone is the default one."""
    kept = (await ops.options(owner())).get("sd_model_checkpoint", "")
    return kept if kept in ops.facts() else ops.checkpoint(None).id


@lists.post("/png-info", openapi_extra=foreign_bodies.PNG_INFO)
async def png_info(request: Request, ops: Ops, sent: Body) -> dict[str, Any]:
    """What a picture's file says of how it was made; empty when it says nothing."""
    fields = Fields(sent)
    text = fields.text("image", "")
    if fields.faults:
        raise InvalidRequest(fields.faults)
    request.state.headers = foreign.ignored(fields.unknown())
    data = ops.read_picture(text, "image")
    return await asyncio.to_thread(recipes.png_info, data)


@lists.post("/extra-single-image", openapi_extra=foreign_bodies.UPSCALE)
async def extra_single_image(request: Request, ops: Ops, sent: Body) -> dict[str, Any]:
    """A picture at another size."""
    fields = Fields(sent)
    made = await a1111_pictures.upscale(ops, fields.get("image"), fields, "image")
    request.state.headers = foreign.ignored(fields.unknown())
    return {"image": made, "html_info": ""}


@lists.post("/extra-batch-images", openapi_extra=foreign_bodies.UPSCALE)
async def extra_batch_images(request: Request, ops: Ops, sent: Body) -> dict[str, Any]:
    """The same for several."""
    fields = Fields(sent)
    pictures = fields.get("imageList")
    if not isinstance(pictures, list) or not 1 <= len(pictures) <= a1111_pictures.MAX_BATCH:
        message = f"imageList must be a list of 1 to {a1111_pictures.MAX_BATCH} pictures"
        raise InvalidRequest([Fault(field="imageList", code="invalid_value", message=message)])
    made: list[str] = []
    unknown: list[str] = []
    for index, one in enumerate(pictures):
        own = Fields(one if isinstance(one, dict) else {}, f"imageList[{index}].")
        made.append(await a1111_pictures.upscale(ops, own.get("data"), fields, f"imageList[{index}].data"))
        own.free("name")
        unknown += own.unknown()
    request.state.headers = foreign.ignored([*fields.unknown(), *unknown])
    return {"images": made, "html_info": ""}


@router.get("/controlnet/version")
async def controlnet_version() -> dict[str, int]:
    return {"version": 2}


@router.get("/controlnet/settings")
async def controlnet_settings() -> dict[str, int]:
    return {"control_net_unit_count": 3}


@router.get("/controlnet/model_list")
async def model_list(ops: Ops) -> dict[str, list[str]]:
    return {"model_list": await _controlnets(ops)}


@router.get("/controlnet/module_list")
async def module_list() -> dict[str, Any]:
    return a1111_controlnet.module_list()


@router.get("/controlnet/control_types")
async def control_types(ops: Ops) -> dict[str, Any]:
    return a1111_controlnet.control_types(await _controlnets(ops))


@router.post("/controlnet/detect", openapi_extra=foreign_bodies.DETECT)
async def detect(request: Request, ops: Ops, sent: Body) -> dict[str, Any]:
    """The control map of each picture."""
    fields = Fields(sent)
    made = await a1111_pictures.detect(ops, fields)
    request.state.headers = foreign.ignored(fields.unknown())
    return made


async def _controlnets(ops: Operations) -> list[str]:
    return a1111_controlnet.model_names(ops.facts().values(), await ops.digests())


router.include_router(lists)
