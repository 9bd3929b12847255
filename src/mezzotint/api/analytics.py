"""Routes of metrics and statistics. Turns HTTP into `Operations` and back; must not hold a rule of its own."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST

from mezzotint import answers
from mezzotint.api.document import tells
from mezzotint.api.inference import Ops
from mezzotint.operations.analytics import DAY_S, MAX_WINDOW_S

router = APIRouter(tags=["analytics"])


@router.get("/metrics")
async def metrics(ops: Ops) -> Response:
    """Prometheus' text format."""
    return Response(ops.metrics(), media_type=CONTENT_TYPE_LATEST)


@router.get("/api/analytics", **tells(answers.Analytics))
async def analytics(
    ops: Ops, window_s: Annotated[float, Query(gt=0, le=MAX_WINDOW_S, allow_inf_nan=False)] = DAY_S
) -> dict[str, Any]:
    """How sessions went that ended within the last `window_s` seconds: percentiles by model and type."""
    return await ops.analytics(window_s)
