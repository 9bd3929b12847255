"""Every error a caller or operator can meet, with its stable code. Must not import anything of ours.

    MezzotintError
    ├── CallerError            the caller can mend it
    │   ├── InvalidRequest     one or more faults of a request, all at once
    │   ├── NotFound           an id in a path names nothing (session, model, device, image, asset)
    │   └── Conflict           what happened before does not allow it (session_ended, idempotency_mismatch, ...)
    ├── TryLater               waiting mends it (queue_full, not_ready, storage_full)
    ├── ServerUnreachable      no server answered a client
    ├── RunFailure             an accepted session could not be finished (worker_lost, out_of_memory, ...)
    └── SetupError             the operator can mend it (data folder in use, newer schema, port taken)
        └── BadSetting         a setting that cannot be

Branch by what the reader can do, not by module. `code` never changes once released; `message` names the value, the rule
and the way out. Exceptions do not cross a process boundary: `ErrorInfo` does.
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass

MAX_FAULTS = 100  # that are told of one request

# code -> HTTP status on the native routes. The one table of faults and statuses.
STATUS: dict[str, int] = {
    # faults of a request body
    "invalid_request": 422,
    "invalid_json": 400,
    "unknown_field": 422,
    "duplicate_field": 422,
    "invalid_value": 422,
    "unsupported_field": 422,
    "unsupported_size": 422,
    "unsupported_type": 422,
    "model_not_found": 422,
    "model_invalid": 422,
    "model_mismatch": 422,
    "controlnet_not_found": 422,
    "lora_not_found": 422,
    "embedding_not_found": 422,
    "missing_field": 422,
    "device_not_found": 422,
    "seed_overflow": 422,
    "over_budget": 422,
    "webhook_refused": 422,
    "invalid_image": 422,
    "asset_not_found": 422,
    "body_too_large": 413,
    "body_too_slow": 408,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "headers_too_large": 431,
    "malformed_host": 400,
    "bad_host": 421,
    "cross_site": 403,
    "invalid_api_key": 401,
    "forbidden": 403,
    "idempotency_mismatch": 422,
    "unknown_operation": 422,
    # ids in paths
    "session_not_found": 404,
    "image_not_found": 404,
    "batch_not_found": 404,
    "unknown_url": 404,
    "method_not_allowed": 405,
    # states
    "session_ended": 409,
    "session_active": 409,
    "batch_ended": 409,
    "illegal_state": 409,
    "model_in_use": 409,
    # wait
    "queue_full": 429,
    "quota_exceeded": 429,
    "not_ready": 503,
    "storage_full": 507,
    # how an accepted session can end without its pictures
    "worker_lost": 500,
    "out_of_memory": 422,
    "timeout": 422,
    "expired": 422,
    "cancelled": 422,
    "internal": 500,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorInfo:
    """An error as a value: what is stored with a session and what crosses process boundaries."""

    code: str
    message: str
    field: str | None = None
    phase: str | None = None
    retryable: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing wrong with a request. `field` is the snake_case path, such as `output.format`."""

    field: str | None
    code: str
    message: str


class MezzotintError(Exception):
    """Anything that a caller or operator is told. Bugs are other exceptions and are told as `internal`."""

    def __init__(self, message: str, *, code: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.field = field


class CallerError(MezzotintError):
    """The caller can mend it."""


class InvalidRequest(CallerError):
    """A request with faults. Carries all that were found, never only the first; of more than MAX_FAULTS these, and one
    that counts the rest."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        assert faults, "an invalid request has a fault"  # noqa: S101  invariant of our own
        if len(faults) > MAX_FAULTS + 1:  # one more than that has been here before
            message = f"{len(faults) - MAX_FAULTS} more faults are not told; mend these first"
            faults = [*faults[:MAX_FAULTS], Fault(field=None, code="invalid_request", message=message)]
        self.faults = tuple(faults)
        first = faults[0]
        code = first.code if len(faults) == 1 else "invalid_request"
        super().__init__("; ".join(fault.message for fault in faults), code=code, field=first.field)


class NotFound(CallerError):
    """An id in a path names nothing. Not raised for ids inside a body: those are faults of the request."""


class Conflict(CallerError):
    """What happened before does not allow it: the session has ended or is active, or the key meant another body."""


class TryLater(MezzotintError):
    """Nothing is wrong with the request; the server cannot take it now."""

    def __init__(self, message: str, *, code: str, retry_after_s: int) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class ServerUnreachable(MezzotintError):
    """No server answered at the address, or only a proxy that finds none."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="unreachable")


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def not_taken(what: str, error: OSError) -> TryLater:
    """What is said when the disk did not take something: it is full, or it fails. Neither is anybody's guilt."""
    if error.errno in _FULL:
        code, message = "storage_full", f"the disk that holds the {what} is full; free some space"
    else:
        code, message = "not_ready", f"the disk that holds the {what} failed: {error.strerror}"
    return TryLater(message, code=code, retry_after_s=10)


class RunFailure(MezzotintError):
    """An accepted session could not be finished."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message, code=info.code, field=info.field)
        self.info = info


class SetupError(MezzotintError):
    """The operator can mend it. Raised at start and by commands only."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="setup")


class BadSetting(SetupError):
    """What was set cannot be, whatever the machine is like."""
