"""Native routes of models, devices and workers, and whether the server is up. Must not hold a rule of its own."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from mezzotint import answers
from mezzotint.api import files
from mezzotint.api.document import CHECKED, takes, tells
from mezzotint.api.inference import Ops
from mezzotint.api.reading import read_json
from mezzotint.inputs import DeviceInput, read
from mezzotint.preferences import DTYPES, FIELDS

_THUMBNAIL = {"Cache-Control": "private, max-age=60", "X-Content-Type-Options": "nosniff"}

router = APIRouter()


def _fields(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


_TYPES: dict[str, dict[str, Any]] = {
    "guidance_scale": {"type": ["number", "null"]},
    "scheduler": {"type": ["string", "null"]},
    "dtype": {"enum": [*DTYPES, None]},
    "vae": {"type": ["string", "null"]},
}
_SETTINGS = takes(_fields({name: _TYPES.get(name, {"type": ["integer", "null"]}) for name in FIELDS}))
_DEVICE = takes(DeviceInput, required=False)


@router.get("/api/models", tags=["models"], **tells(answers.Models))
async def models(ops: Ops) -> dict[str, Any]:
    """Every model on disk, usable or not, with the reason."""
    return {"models": ops.models()}


@router.get("/api/models/{model_id}", tags=["models"], **tells(answers.Model))
async def model(model_id: str, ops: Ops) -> dict[str, Any]:
    return ops.model(model_id)


@router.patch("/api/models/{model_id}", tags=["models"], openapi_extra=_SETTINGS, **tells(answers.Model))
async def set_model(model_id: str, request: Request, ops: Ops) -> dict[str, Any]:
    """Defaults of requests that name none: size, steps, guidance, scheduler, dtype, vae. null takes one back."""
    return await ops.set_model(model_id, read_json(await request.body()))


@router.post("/api/models/rescan", tags=["models"], **tells(answers.Models))
async def rescan(ops: Ops) -> dict[str, Any]:
    """Look at the model folders now; the server does it by itself every few seconds."""
    return {"models": await ops.rescan()}


@router.post("/api/models/{model_id}/load", tags=["models"], openapi_extra=_DEVICE, **tells(answers.Model))
async def load(model_id: str, request: Request, ops: Ops) -> dict[str, Any]:
    """Answers when it is loaded; what runs goes on."""
    return await ops.load_model(model_id, _device(await request.body()))


@router.post("/api/models/{model_id}/unload", tags=["models"], openapi_extra=_DEVICE, **tells(answers.Model))
async def unload(model_id: str, request: Request, ops: Ops) -> dict[str, Any]:
    """409 `model_in_use` while a session in the worker uses it."""
    return await ops.unload_model(model_id, _device(await request.body()))


@router.get("/api/models/{model_id}/thumbnail", tags=["models"], **CHECKED)
async def thumbnail(model_id: str, ops: Ops) -> Response:
    """The PNG that lies beside the model under its name."""
    path = await asyncio.to_thread(ops.model_thumbnail, model_id)
    return files.Opened(path, media_type="image/png", headers=_THUMBNAIL)


@router.get("/api/devices", tags=["devices"], **tells(answers.Devices))
async def devices(ops: Ops) -> dict[str, Any]:
    return {"devices": await ops.devices()}


@router.get("/api/devices/{device_id}", tags=["devices"], **tells(answers.Device))
async def device(device_id: str, ops: Ops) -> dict[str, Any]:
    return await ops.device(device_id)


@router.get("/api/workers", tags=["devices"], **tells(answers.Workers))
async def workers(ops: Ops) -> dict[str, Any]:
    return {"workers": ops.workers()}


@router.get("/livez", tags=["health"])
async def livez() -> Response:
    """The process answers."""
    return Response()


@router.get("/readyz", tags=["health"])
async def readyz(ops: Ops) -> Response:
    """Sessions are accepted: the store is open and the server is not stopping."""
    await ops.check_ready()
    return Response()


def _device(body: bytes) -> str | None:
    """The one field of loading and unloading. An empty body names none. Raises InvalidRequest."""
    return read(read_json(body) if body else {}, DeviceInput).device
