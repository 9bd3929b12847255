"""Our values as the JSON bodies of the public contract. Must not fetch anything: it shapes what it is handed."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import msgspec

from mezzotint import batches
from mezzotint.assets import Asset
from mezzotint.batches import Batch, Item, Standing
from mezzotint.catalog import Model
from mezzotint.errors import Fault, InvalidRequest, MezzotintError, TryLater
from mezzotint.events import Event
from mezzotint.session import FINAL, SPANS, ImageRecord, Session, State
from mezzotint.store.rows import Attempt

SESSIONS = "/api/inference/sessions"
ASSETS = "/api/assets"
MODELS = "/api/models"
BATCHES = "/api/inference/batches"


def session(value: Session) -> dict[str, Any]:
    request = msgspec.to_builtins(value.request)
    metadata = request.pop("metadata")
    usage = msgspec.to_builtins(value.usage)
    del usage["reached"]  # `progress` tells it
    path = f"{SESSIONS}/{value.id}"
    return {
        "id": value.id,
        "state": str(value.state),
        "type": value.request.type,
        "model": value.request.model,
        "device": value.device,
        "attempt": value.attempt,
        "priority": value.request.priority,
        "queue_position": value.queue_position,
        "batch_id": value.batch_id,
        "request": request,
        "progress": msgspec.to_builtins(value.progress),
        "timing": {
            "created_at": time(value.created_at),
            "started_at": time(value.started_at),
            "ended_at": time(value.ended_at),
            **{f"{name}_s": round(value.spans.get(name, 0.0), 6) for name in SPANS},
            "total_s": round(sum(value.spans.values()), 6),
        },
        "usage": usage,
        "images": [image(value.id, one) for one in value.images],
        "error": msgspec.to_builtins(value.error) if value.error else None,
        "warnings": list(value.warnings),
        "cancel_requested": value.cancel_requested,
        "pause_requested": value.pause_requested,
        "metadata": metadata,
        "links": {"self": path, "events": f"{path}/events", "cancel": f"{path}/cancel", "trace": f"{path}/trace"},
    }


def image(session_id: str, value: ImageRecord) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(value)
    return body | {"url": f"{SESSIONS}/{session_id}/images/{value.index}"}


def batch(value: Batch, sessions: Mapping[str, Standing]) -> dict[str, Any]:
    """A batch, and each of its requests. An item whose session was removed has a state of null."""
    path = f"{BATCHES}/{value.id}"
    items = [_item(one, batches.standing(one, sessions)) for one in value.items]
    states = [one["state"] for one in items if one["state"] is not None]
    done = len(items) - sum(state not in FINAL for state in states)
    return {
        "id": value.id,
        "state": batches.state(value, sessions),
        "counts": {str(state): states.count(state) for state in State if state in states},
        "progress": {"done": done, "total": len(items), "fraction": round(done / len(items), 6)},
        "created_at": time(value.created_at),
        "stop_on_first_error": value.stop_on_first_error,
        "items": items,
        "metadata": value.metadata,
        "links": {"self": path, "cancel": f"{path}/cancel", "sessions": f"{SESSIONS}?batch={value.id}"},
    }


def _item(value: Item, standing: Standing | None) -> dict[str, Any]:
    error = standing.error if standing else None
    return {
        "index": value.index,
        "session_id": value.session_id,
        "state": standing.state if standing else None,
        "error": msgspec.to_builtins(error) if error else None,
    }


def operation_error(error: MezzotintError) -> dict[str, Any]:
    """An error inside the envelope of operations."""
    body: dict[str, Any] = {"code": error.code, "message": error.message, "field": error.field}
    if isinstance(error, InvalidRequest):
        body["errors"] = [fault(one) for one in error.faults]
    if isinstance(error, TryLater):
        body["retry_after_s"] = error.retry_after_s
    return body


def asset(value: Asset) -> dict[str, Any]:
    return {name: getattr(value, name) for name in ("id", "width", "height", "bytes", "sha256")}


def trace(value: Session, attempts: list[Attempt]) -> dict[str, Any]:
    """Where a session's time went. `batch_rows` counts its model calls by the rows that shared them, its own too."""
    usage = value.usage
    told = {
        "batch_rows": usage.batch_rows or None,
        "executor": usage.executor,
        "dtype": usage.dtype,
        "device_s": usage.device_s,
    }
    why = "told when the attempt ends" if not value.ended else "no step of it ran to an end that its worker told"
    return {
        "id": value.id,
        "state": value.state,
        "spans": {f"{name}_s": round(value.spans.get(name, 0.0), 6) for name in SPANS},
        "attempts": [
            {
                "number": one.number,
                "device": one.device,
                "steps_resumed": one.steps_resumed,
                "started_at": time(one.started_at),
                "ended_at": time(one.ended_at),
                "ended_as": one.ended_as,
                "cause": one.cause,
            }
            for one in attempts
        ],
        **told,
        "unknown": {name: why for name, known in told.items() if known is None},
    }


def event(session_id: str, value: Event) -> dict[str, Any]:
    if isinstance(value.data, Session):
        return session(value.data)
    if isinstance(value.data, ImageRecord):
        return image(session_id, value.data)
    body: dict[str, Any] = msgspec.to_builtins(value.data)
    return body


def model(
    value: Model,
    resident_on: list[str],
    fits: list[str],
    executors: dict[str, Any],
    settings: Mapping[str, Any] | None = None,
    shown: bool = False,
) -> dict[str, Any]:
    """`fits`: for adapters, the ids of the checkpoints that they can go with. `settings`: what was set for it here.

    `shown`: its thumbnail can be asked for.
    """
    if value.state == "invalid":
        return {"id": value.id, "kind": value.kind, "state": value.state, "reason": value.reason}
    common = {
        "id": value.id,
        "kind": value.kind,
        "state": value.state,
        "reason": None,
        "bytes": value.bytes,
        "resident_on": resident_on,
        "trigger_words": list(value.trigger_words),
        "thumbnail": f"{MODELS}/{value.id}/thumbnail" if shown else None,
    }
    if value.kind == "controlnet":
        return common | {"control_type": value.control_type or None, "fits": fits}
    if value.kind == "lora":
        return common | {"fits": fits, "lora_defaults": asdict(value.lora_defaults)}
    if value.kind == "vae":
        return common | {"fits": fits}
    if value.kind == "embedding":
        return common | {"fits": fits, "tokens": value.tokens}
    return common | {
        "family": value.family,
        "types": list(value.types),
        "executors": executors,
        "width": value.width,
        "height": value.height,
        "size_multiple": value.size_multiple,
        "min_size": value.min_size,
        "prediction_type": value.prediction_type,
        "defaults": {
            "num_inference_steps": value.num_inference_steps,
            "guidance_scale": value.guidance_scale,
            "scheduler": value.scheduler,
            "vae": value.vae or None,
        },
        "settings": dict(settings or {}),
    }


# error.type of OpenAI's clients, which read the same body, by status
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def problem(error: MezzotintError, status: int, request_id: str) -> dict[str, Any]:
    """One body for every error: RFC 9457, and `error` for clients of OpenAI's API."""
    body: dict[str, Any] = {
        "type": f"urn:mezzotint:error:{error.code}",
        "title": error.code.replace("_", " "),
        "status": status,
        "detail": error.message,
        "code": error.code,
        "field": error.field,
        "request_id": request_id,
    }
    if isinstance(error, InvalidRequest):
        body["errors"] = [fault(one) for one in error.faults]
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body["error"] = {"message": error.message, "type": kind, "param": error.field, "code": error.code}
    return body


def fault(value: Fault) -> dict[str, Any]:
    return {"field": value.field, "code": value.code, "message": value.message}


def time(seconds: float | None) -> str | None:
    """RFC 3339, UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
