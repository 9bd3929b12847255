"""OpenAI's Images API: generations, edits, models. Turns its words into `Operations` and back; must not hold a rule."""

import asyncio
import base64
import hashlib
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from mezzotint.api import events, files, foreign, foreign_bodies, openai_fields, openai_forms, openai_stream
from mezzotint.api.inference import Ops, leaving
from mezzotint.api.openai_fields import Asked
from mezzotint.api.reading import IdempotencyKey, read_json
from mezzotint.catalog import Model
from mezzotint.errors import CallerError, NotFound
from mezzotint.operations import Foreign, Operations
from mezzotint.session import ImageRecord, Session

router = APIRouter(prefix="/v1", tags=["OpenAI Images"])

URL_S = 3600
_MODEL_SUFFIX = "{model_id:path}"  # ids hold no slash, but what is asked for may


@router.post("/images/generations", openapi_extra=foreign_bodies.GENERATIONS)
async def generate(request: Request, ops: Ops, idempotency_key: IdempotencyKey = None) -> Response:
    """Pictures of a prompt; fields as OpenAI has them, and ours beside them. Answers when they are done."""
    sent = read_json(await request.body())
    if not isinstance(sent, dict):
        raise CallerError("the body must be a JSON object", code="invalid_value")
    fields = foreign.without_nulls(sent)
    asked = openai_fields.translate(fields, ops.own_steps(_model(fields), fields))
    if asked.stream:
        events.check_room()
    noted = Foreign(route="/v1/images/generations", compared=fields)
    session = await foreign.accept(request, ops, asked.body, noted, idempotency_key)
    return await _answer(request, ops, session, asked, "image_generation")


@router.post("/images/edits", openapi_extra=foreign_bodies.EDITS)
async def edit(request: Request, ops: Ops, idempotency_key: IdempotencyKey = None) -> Response:
    """Pictures that begin at one, and with a mask change only what is transparent in it. multipart/form-data."""
    form = await openai_forms.read(request, ops.max_upload_bytes)
    fields = foreign.without_nulls(form.fields)
    own_steps = ops.own_steps(_model(fields), fields)
    asked = openai_fields.translate(fields, own_steps, is_edit=True, has_mask=form.mask is not None)
    if asked.stream:
        events.check_room()
    kept = await ops.add_asset(form.images[0], "image", field="image")
    pictures = {"image": f"asset:{kept.id}"}
    digests = {"image": _digest(form.images[0])}
    if form.mask is not None:
        pictures["mask"] = f"asset:{(await ops.add_asset(form.mask, 'hole', field='mask')).id}"
        digests["mask"] = _digest(form.mask)
    noted = Foreign(route="/v1/images/edits", compared=fields | {"files": digests})
    session = await foreign.accept(request, ops, asked.body | pictures, noted, idempotency_key)
    return await _answer(request, ops, session, asked, "image_edit")


@router.get("/models")
async def models(ops: Ops) -> dict[str, Any]:
    """The checkpoints that can be used."""
    usable = [one for one in ops.facts().values() if one.kind == "checkpoint" and one.state == "ready"]
    return {"object": "list", "data": [_told(model, ops) for model in usable]}


@router.get(f"/models/{_MODEL_SUFFIX}")
async def model(model_id: str, ops: Ops) -> dict[str, Any]:
    found = ops.facts().get(model_id)
    if found is None or found.kind != "checkpoint" or found.state != "ready":
        raise NotFound(f"model {model_id[:64]!r} is not here; GET /v1/models lists them", code="model_not_found")
    return _told(found, ops)


@router.get("/images/files/{session_id}/{index}")
async def file(
    session_id: str,
    index: int,
    request: Request,
    ops: Ops,
    until: Annotated[int, Query(ge=0, le=2**40)],
    signature: Annotated[str, Query(max_length=64)],
) -> Response:
    """A picture by the link of an answer in the form `url`, good for an hour without a key."""
    if not ops.is_signed(session_id, index, until, signature, time.time()):
        raise NotFound("this link is not one of ours, or its hour is over", code="image_not_found")
    record, path = await ops.image(session_id, index)
    return await files.kept(request, path, sha256=record.sha256, media_type=f"image/{record.format}")


async def _answer(request: Request, ops: Operations, session: Session, asked: Asked, kind: str) -> Response:
    if asked.stream:
        return openai_stream.stream(ops, session, asked, kind)
    with leaving(request) as left:
        session = await ops.wait(session, leaving=left)
    if not session.ended:
        return Response()  # to nobody: the caller has left
    if not session.images:
        raise foreign.failure(session)
    data = [await _datum(request, ops, session, image, asked.response_format) for image in session.images]
    first = session.images[0]
    body: dict[str, Any] = {
        "created": int(session.created_at),
        "data": data,
        "size": f"{first.width}x{first.height}",
        "quality": asked.quality,
        "output_format": first.format,
        "background": "opaque",
        "id": session.id,
        "seed": session.request.seed,
        "warnings": foreign.warnings(session),
    }
    if asked.safety_identifier is not None:
        body["safety_identifier"] = asked.safety_identifier
    return JSONResponse(body, headers={"Cache-Control": "no-store"})


async def _datum(request: Request, ops: Operations, session: Session, image: ImageRecord, form: str) -> dict[str, Any]:
    facts = {"seed": image.seed, "width": image.width, "height": image.height}
    if form == "b64_json":
        _, path = await ops.image(session.id, image.index)
        return {"b64_json": base64.b64encode(await asyncio.to_thread(path.read_bytes)).decode(), **facts}
    until = int(time.time()) + URL_S
    link = request.url_for("file", session_id=session.id, index=image.index)
    signature = ops.signature(session.id, image.index, until)
    return {"url": str(link.include_query_params(until=until, signature=signature)), **facts}


def _told(model: Model, ops: Operations) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": ops.file_time(model),
        "owned_by": "mezzotint",
        "family": model.family,
        "types": list(model.types),
    }


def _model(fields: Mapping[str, Any]) -> str | None:
    """The id asked for. What is no text is left to our own reading, which says so."""
    asked = fields.get("model")
    return asked if isinstance(asked, str) else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
