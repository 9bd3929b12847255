"""Native routes that tell what could be done: capabilities, types, a dry run. Must not hold a rule of its own."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from mezzotint import answers
from mezzotint.api import files
from mezzotint.api.document import tells
from mezzotint.api.inference import REQUEST, Ops
from mezzotint.api.reading import read_json

router = APIRouter(prefix="/api/inference", tags=["capabilities"])


@router.get("/capabilities", **tells(answers.Capabilities))
async def capabilities(request: Request, ops: Ops) -> Response:
    """What this server can do now. The ETag stands for all but what lives from moment to moment."""
    return files.current(request, await ops.capabilities())


@router.get("/capabilities/{device_id}", **tells(answers.Capabilities))
async def capabilities_of(device_id: str, request: Request, ops: Ops) -> Response:
    """The same with one device alone."""
    return files.current(request, await ops.capabilities(device_id))


@router.get("/supported-types", **tells(answers.SupportedTypes))
async def types(request: Request, ops: Ops) -> Response:
    """The types that a model on disk can run now, and what is missing for the others."""
    return files.current(request, await ops.supported_types())


@router.get("/supported-types/{device_id}", **tells(answers.SupportedTypes))
async def types_of(device_id: str, request: Request, ops: Ops) -> Response:
    """The same with one device alone."""
    return files.current(request, await ops.supported_types(device_id))


@router.post("/validate", openapi_extra=REQUEST, **tells(answers.Validation))
async def validate(request: Request, ops: Ops) -> Response:
    """A dry run by the rules of acceptance. 200, valid or not; nothing is kept, pictures neither."""
    told: dict[str, Any] = await ops.validate(read_json(await request.body()))
    return JSONResponse(told, headers={"Cache-Control": "no-store"})
