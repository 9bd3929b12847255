"""Native routes of models, devices and workers, and whether the server is up. Must not hold a rule of its own."""

from typing import Any

from fastapi import APIRouter, Response

from mezzotint.api.inference import Ops

router = APIRouter()


@router.get("/api/models", tags=["models"])
async def models(ops: Ops) -> dict[str, Any]:
    """Every model on disk, usable or not, with the reason."""
    return {"models": ops.models()}


@router.get("/api/models/{model_id}", tags=["models"])
async def model(model_id: str, ops: Ops) -> dict[str, Any]:
    return ops.model(model_id)


@router.get("/api/devices", tags=["devices"])
async def devices(ops: Ops) -> dict[str, Any]:
    return {"devices": ops.devices()}


@router.get("/api/devices/{device_id}", tags=["devices"])
async def device(device_id: str, ops: Ops) -> dict[str, Any]:
    return ops.device(device_id)


@router.get("/api/workers", tags=["devices"])
async def workers(ops: Ops) -> dict[str, Any]:
    return {"workers": ops.workers()}


@router.get("/livez", tags=["health"])
async def livez() -> Response:
    """The process answers."""
    return Response()


@router.get("/readyz", tags=["health"])
async def readyz(ops: Ops) -> Response:
    """Sessions are accepted: the store is open and the server is not stopping."""
    ops.check_ready()
    return Response()
