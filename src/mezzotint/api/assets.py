"""Native routes of assets: the pictures that requests refer to. Must not hold a rule of its own."""

from typing import Annotated, get_args

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile

from mezzotint import answers, bodies
from mezzotint.api import files
from mezzotint.api.document import CHECKED, tells
from mezzotint.api.inference import Ops
from mezzotint.errors import Fault, InvalidRequest
from mezzotint.image_wire import Role

router = APIRouter(prefix="/api/assets", tags=["assets"])

ROLES = get_args(Role)
_FIELDS = ("file", "role")
_FILE = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": _FILE, "role": {"type": "string", "enum": list(ROLES), "default": "image"}},
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            **{f"image/{name}": {"schema": _FILE} for name in ("png", "jpeg", "webp")},
        },
    }
}


@router.post("", status_code=201, openapi_extra=_BODY, **tells(answers.Asset, 201))
async def add(request: Request, ops: Ops, role: Annotated[str, Query(max_length=64)] = "image") -> Response:
    """Keep a picture for requests to name as `asset:{id}`: PNG, JPEG or WebP, as a form's `file` or as the body."""
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        data, role = await _form(request, role)
    else:
        data = await request.body()
    asset = await ops.add_asset(data, role)
    headers = {"Location": f"{bodies.ASSETS}/{asset.id}", "Cache-Control": "no-store"}
    return JSONResponse(bodies.asset(asset), 201, headers)


@router.get("/{asset_id}", **CHECKED)
async def get(asset_id: str, request: Request, ops: Ops) -> Response:
    """The picture as it was kept: an upright PNG without metadata."""
    asset, path = await ops.asset(asset_id)
    return await files.kept(request, path, sha256=asset.sha256, media_type="image/png", filename=path.name)


async def _form(request: Request, role: str) -> tuple[bytes, str]:
    async with request.form(max_files=1, max_fields=1, max_part_size=64) as form:
        faults = [
            Fault(field=name, code="unknown_field", message=f"{name!r} is not a field of this form; file, role")
            for name in {name[:64] for name in form} - set(_FIELDS)
        ]
        file, given = form.get("file"), form.get("role", role)
        if not isinstance(file, UploadFile):
            faults.append(_fault("file", "the form needs a part `file` that has a file name"))
        if not isinstance(given, str):
            faults.append(_fault("role", f"role must be text, one of {', '.join(ROLES)}"))
        if faults or not isinstance(file, UploadFile):
            raise InvalidRequest(faults)
        return await file.read(), str(given)


def _fault(field: str, message: str) -> Fault:
    return Fault(field=field, code="invalid_value", message=message)
