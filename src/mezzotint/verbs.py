"""What a client can ask of a server, each as one HTTP call with its answer's type. Sends nothing: clients do.

The verbs of `Client` and `AsyncClient` are these, so that the two cannot differ.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

from mezzotint.errors import (
    CallerError,
    Fault,
    InvalidRequest,
    MezzotintError,
    NotFound,
    ServerUnreachable,
    TryLater,
)

if TYPE_CHECKING:
    import httpx2

    from mezzotint import answers

T = TypeVar("T")

SESSIONS = "/api/inference/sessions"
BATCHES = "/api/inference/batches"
MAX_WAIT_S = 60.0  # of one Retry-After
LOAD_S = 900.0  # for a model that is hashed and loaded before the answer comes
_PROXYS_OWN = (502, 503, 504)  # while no server is behind it


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request and how its answer is read. `repeats`: sent twice it does what it does once."""

    method: str
    path: str
    read: "Callable[[httpx2.Response], T]"
    options: dict[str, Any] = field(default_factory=dict)
    repeats: bool = True


def _get(path: str, **options: Any) -> Call[Any]:
    return Call(method="GET", path=path, read=_json, options=options)


def _post(path: str, body: Any = None, *, repeats: bool = True, **options: Any) -> Call[Any]:
    """`body` as JSON. Raises as `written` does."""
    if body is not None:
        options["headers"] = {"Content-Type": "application/json"} | options.get("headers", {})
        options["content"] = written(body)
    return Call(method="POST", path=path, read=_json, options=options, repeats=repeats)


def written(body: Any) -> bytes:
    """As JSON. Raises CallerError `invalid_json` for what JSON cannot say, as any server would refuse it."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        message = f"the request cannot be written as JSON, of Unicode text and finite numbers: {error}"
        raise CallerError(message, code="invalid_json") from error


def _json(answer: "httpx2.Response", *names: str) -> Any:
    """Raises ValueError for what is no JSON object with these names."""
    told = answer.json()
    if not isinstance(told, dict) or not told.keys() >= set(names):
        raise ValueError("another body")
    return told


def result(call: Call[T], answer: "httpx2.Response") -> T:
    """Raises what the server said, and MezzotintError `foreign_server` for an answer of none of ours."""
    if not answer.is_success:
        raise error_of(answer)
    try:
        return call.read(answer)
    except ValueError as error:
        raise _foreign(answer) from error


def _once() -> dict[str, str]:
    """A key of this call alone: a repeat after a lost connection finds what the first one made."""
    return {"Idempotency-Key": secrets.token_urlsafe(18)}


def submit(request: Mapping[str, Any], key: str | None = None) -> "Call[answers.Session]":
    return _post(SESSIONS, dict(request), headers=_once() if key is None else {"Idempotency-Key": key})


def validate(request: Mapping[str, Any]) -> "Call[answers.Validation]":
    return _post("/api/inference/validate", dict(request))


def session(session_id: str) -> "Call[answers.Session]":
    return _get(_at(SESSIONS, session_id))


def sessions(filters: Mapping[str, Any]) -> "Call[answers.Sessions]":
    options = {"params": dict(filters)}
    return Call(method="GET", path=SESSIONS, read=lambda it: _json(it, "sessions", "next_cursor"), options=options)


def change(session_id: str, verb: str) -> "Call[answers.Session]":
    """cancel, pause, resume. Said twice, the second may be refused: the first has changed the state."""
    return _post(_at(SESSIONS, session_id, verb), repeats=False)


def events_path(session_id: str) -> str:
    return _at(SESSIONS, session_id, "events")


def delete(session_id: str) -> Call[None]:
    return Call(method="DELETE", path=_at(SESSIONS, session_id), read=lambda _: None, repeats=False)


def image(session_id: str, index: int) -> Call[bytes]:
    path = _at(SESSIONS, session_id, "images", str(index))
    return Call(method="GET", path=path, read=lambda answer: answer.content)


def trace(session_id: str) -> "Call[answers.Trace]":
    return _get(_at(SESSIONS, session_id, "trace"))


def create_batch(requests: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> "Call[answers.Batch]":
    return _post(BATCHES, {"requests": list(requests), **options}, headers=_once())


def batch(batch_id: str) -> "Call[answers.Batch]":
    return _get(_at(BATCHES, batch_id))


def cancel_batch(batch_id: str) -> "Call[answers.Batch]":
    return _post(_at(BATCHES, batch_id, "cancel"))


def upload(picture: bytes) -> "Call[answers.Asset]":
    kinds = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg"}
    kind = next((kind for start, kind in kinds.items() if picture.startswith(start)), "image/webp")
    return _post("/api/assets", content=picture, headers={"Content-Type": kind})


def capabilities(device_id: str | None) -> "Call[answers.Capabilities]":
    return _get(_below("/api/inference/capabilities", device_id))


def supported_types(device_id: str | None) -> "Call[answers.SupportedTypes]":
    return _get(_below("/api/inference/supported-types", device_id))


def devices() -> "Call[list[answers.Device]]":
    return _list("/api/devices", "devices")


def workers() -> "Call[list[answers.Worker]]":
    return _list("/api/workers", "workers")


def models() -> "Call[list[answers.Model]]":
    return _list("/api/models", "models")


def model(model_id: str) -> "Call[answers.Model]":
    return _get(_at("/api/models", model_id))


def placed(model_id: str, verb: str, device: str | None) -> "Call[answers.Model]":
    """load, unload."""
    body = {} if device is None else {"device": device}
    return _post(_at("/api/models", model_id, verb), body, timeout=LOAD_S)


def rescan() -> "Call[answers.Models]":
    return _post("/api/models/rescan")


def _list(path: str, name: str) -> Call[Any]:
    return Call(method="GET", path=path, read=lambda answer: _json(answer, name)[name])


def _below(path: str, device_id: str | None) -> str:
    return path if device_id is None else _at(path, device_id)


def _at(path: str, *parts: str) -> str:
    """An id may be anything that a program was given; it must not lead elsewhere. Raises NotFound if it would."""
    for part in parts:
        if part in ("", ".", ".."):
            raise NotFound(f"{part!r} is no id", code="unknown_url")
    return "/".join((path, *(quote(part, safe="") for part in parts)))


class EventLines:
    """Server-sent events out of their lines. `last_id` is where to go on after a lost connection."""

    def __init__(self, after: int) -> None:
        self.last_id = after
        self._heard: dict[str, str] = {}

    def headers(self) -> dict[str, str]:
        """Of a new connection, which tells again what the one before told in part."""
        self._heard = {}
        return {"Last-Event-ID": str(self.last_id)}

    def read(self, line: str) -> "tuple[int, str, dict[str, Any]] | None":
        """The event that this line completes: the empty one behind it, for a line may be the cut end of a connection.

        Raises MezzotintError `foreign_server`.
        """
        if line:
            name, _, value = line.partition(": ")
            self._heard[name] = value
            return None
        heard, self._heard = self._heard, {}
        if "data" not in heard:
            return None
        try:
            event = int(heard["id"]), heard["event"], json.loads(heard["data"])
        except (ValueError, KeyError) as error:
            raise MezzotintError("the server tells events that are not ours", code="foreign_server") from error
        self.last_id = event[0]
        return event


def tells_events(answer: "httpx2.Response") -> bool:
    return answer.status_code == 200 and answer.headers.get("content-type", "").startswith("text/event-stream")


def error_of(answer: "httpx2.Response") -> MezzotintError:
    """What a server's refusal is to a program."""
    try:
        body = answer.json()
        code, message = body["code"], body["detail"]
        if "errors" in body:
            return InvalidRequest([Fault(**fault) for fault in body["errors"]])
    except (ValueError, KeyError, TypeError):
        if answer.status_code in _PROXYS_OWN:
            return ServerUnreachable(f"a proxy answered {answer.status_code}: it finds no server, or none that answers")
        return _foreign(answer)
    if (pause := answer.headers.get("retry-after", "")).isdecimal():  # a proxy may send a date
        return TryLater(message, code=code, retry_after_s=int(pause[:9]))
    kind = CallerError if answer.status_code < 500 else MezzotintError
    return kind(message, code=code, field=body.get("field"))


def _foreign(answer: "httpx2.Response") -> MezzotintError:
    message = f"the server answered {answer.status_code} with no body of ours"
    if "location" in answer.headers:
        message += f"; it points to {answer.headers['location'][:256]!r}"
    return MezzotintError(message, code="foreign_server")


def pause_s(error: MezzotintError | None, tried: int) -> float:
    """Before the next try: what the server says, else longer each time."""
    if isinstance(error, TryLater):
        return min(MAX_WAIT_S, float(error.retry_after_s))
    return 0.25 * 2.0 ** min(tried, 5)
