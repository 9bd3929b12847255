"""Native routes of batches and of operations in one envelope. Must not hold a rule of its own."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from mezzotint import answers, bodies
from mezzotint.api.document import takes, tells
from mezzotint.api.inference import Ops, leaving
from mezzotint.api.reading import IdempotencyKey, read_json
from mezzotint.errors import STATUS
from mezzotint.inputs import BatchInput, EnvelopeInput, ReasonInput, read

router = APIRouter(prefix="/api/inference")


@router.post(
    "/batches",
    status_code=202,
    tags=["batches"],
    openapi_extra=takes(BatchInput),
    **tells(answers.Batch, 202),
)
async def create(request: Request, ops: Ops, idempotency_key: IdempotencyKey = None) -> Response:
    """Accept many requests, all or none; with `skip_invalid` those that are valid. On disk before this answers."""
    batch = await ops.create_batch(read_json(await request.body()), idempotency_key)
    headers = {"Location": f"{bodies.BATCHES}/{batch['id']}", "Cache-Control": "no-store"}
    return JSONResponse(batch, 202, headers)


@router.get("/batches/{batch_id}", tags=["batches"], **tells(answers.Batch))
async def get(batch_id: str, ops: Ops) -> dict[str, Any]:
    """How it stands: counts by state, and each request's session."""
    return await ops.batch(batch_id)


@router.post(
    "/batches/{batch_id}/cancel",
    tags=["batches"],
    openapi_extra=takes(ReasonInput, required=False),
    **tells(answers.Batch),
)
async def cancel(batch_id: str, request: Request, ops: Ops) -> dict[str, Any]:
    """Cancel what has not ended. The reason is not kept."""
    body = await request.body()
    read(read_json(body) if body else {}, ReasonInput)
    return await ops.cancel_batch(batch_id)


@router.post(
    "/operations",
    tags=["operations"],
    openapi_extra=takes(EnvelopeInput),
    **tells(answers.Envelope),
)
async def operations(request: Request, ops: Ops, idempotency_key: IdempotencyKey = None) -> Response:
    """Any operation by name. What goes wrong comes in the same envelope, with the code's status.

    The same `Idempotency-Key` and data again answer the first session or batch.
    """
    body = read_json(await request.body())
    with leaving(request) as left:
        told = await ops.handle(body, idempotency_key, left)
    headers = {"Cache-Control": "no-store"}
    if told["success"]:
        return JSONResponse(told, 200, headers)
    if (wait_s := told["error"].get("retry_after_s")) is not None:
        headers["Retry-After"] = str(wait_s)
    return JSONResponse(told, STATUS[told["error"]["code"]], headers)
