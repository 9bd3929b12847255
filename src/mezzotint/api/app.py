"""Builds the ASGI application: routes, one shape of error, request ids. Must not hold a rule of inference."""

import uuid
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic.fields import FieldInfo
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mezzotint import __version__
from mezzotint.api import (
    a1111,
    a1111_errors,
    a1111_lists,
    analytics,
    assets,
    batches,
    capabilities,
    inference,
    models,
    openai,
    openai_errors,
    page,
    reference,
)
from mezzotint.api.a1111_tasks import Tasks
from mezzotint.api.access import Access
from mezzotint.api.document import Documented
from mezzotint.api.fields import FieldCase
from mezzotint.api.headers import SafeHeaders
from mezzotint.api.patience import PatientBodies
from mezzotint.api.problems import problem
from mezzotint.api.security import Gate
from mezzotint.errors import Fault, InvalidRequest, MezzotintError
from mezzotint.operations import Operations
from mezzotint.rules import broken

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 1 << 20


def build(operations: Operations) -> ASGIApp:
    """The whole, as a server runs it."""
    app = routed()
    app.state.operations = operations
    app.state.tasks = Tasks()
    # outside FastAPI, whose own refusals have another shape
    access = Access(app, operations)
    gate = Gate(access, MAX_BODY_BYTES, operations.max_upload_bytes, operations.hosts, app.routes)
    return Heads(FieldCase(SafeHeaders(RequestIds(PatientBodies(gate)))))


def routed() -> Documented:
    """Every route, with nothing behind it."""
    app = Documented(
        title="Mezzotint",
        version=__version__,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(inference.router)
    app.include_router(inference.feed)
    app.include_router(batches.router)
    app.include_router(capabilities.router)
    app.include_router(page.router)
    app.router.routes.append(page.files)
    app.include_router(models.router)
    app.include_router(analytics.router)
    app.include_router(assets.router)
    app.include_router(openai.router)
    app.include_router(a1111.router)
    app.include_router(a1111_lists.router)
    app.include_router(reference.router)
    app.add_exception_handler(MezzotintError, _told)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
    app.add_exception_handler(RequestValidationError, _validation)
    return app


class Heads:
    """Answers HEAD as GET is answered, without the body: balancers and link checkers ask so, and RFC 9110 has it so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})  # from here on `receive` says that the caller has left

        await self._app({**scope, "method": "GET"}, receive, send_head)


class RequestIds:
    """Gives every request an id, on its answer and its log lines; turns what nobody caught into one opaque 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                told = {"X-Request-Id": request_id, **scope["state"].get("headers", {})}
                raw = [(name.lower().encode(), value.encode()) for name, value in told.items()]
                message["headers"] = [*message["headers"], *raw]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except ClientDisconnect:
                log.info("the caller left before the body was whole", path=scope["path"])
            except Exception:
                if not scope["state"].get("is_logged"):
                    log.exception("unhandled error", path=scope["path"])
                if not started:
                    await problem(_internal(), request_id)(scope, receive, send_with_id)


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, MezzotintError)  # noqa: S101  invariant: registered for this class only
    return _problem(request, error)


async def _unexpected(request: Request, error: Exception) -> Response:
    """In the log before the caller hears of it; starlette raises it again behind this."""
    if isinstance(error, ClientDisconnect):
        return Response()  # to nobody
    log.error("unhandled error", path=request.url.path, exc_info=error)
    request.state.is_logged = True
    return _problem(request, _internal())


def _internal() -> MezzotintError:
    return MezzotintError("something went wrong; the server's log has it under this id", code="internal")


def _problem(request: Request, error: MezzotintError, status: int | None = None) -> Response:
    """In the words of the dialect that was spoken."""
    translate = next((one for prefix, one in _TRANSLATIONS if request.url.path.startswith(prefix)), None)
    if translate is not None:
        error, theirs = translate(error)
        status = theirs or status
    return problem(error, request.state.request_id, status)


_TRANSLATIONS = (
    (openai_errors.PREFIX, openai_errors.translate),
    *((prefix, a1111_errors.translate) for prefix in a1111_errors.PREFIXES),
)
_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed", 415: "unsupported_media_type"}


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  invariant: registered for this class only
    code = _HTTP_CODES.get(error.status_code, "invalid_request")
    messages = {
        400: "the form in the body is not multipart/form-data with a boundary and a name for each part, or has more "
        "files, fields or text in a field than are taken here",
        404: f"{request.method} {request.url.path[:200]} is not a route here; /docs lists them",
        405: f"{request.method} is not for {request.url.path[:200]}",
    }
    message = messages.get(error.status_code, str(error.detail))
    answer = _problem(request, MezzotintError(message, code=code), error.status_code)
    if error.status_code == 405:
        answer.headers["Allow"] = ", ".join(_methods(request))
    return answer


def _methods(request: Request) -> list[str]:
    """What this path takes, by any of its routes."""

    def is_taken(method: str) -> bool:
        asked = {**request.scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in request.app.routes)

    taken = [method for method in ("GET", "POST", "PATCH", "DELETE") if is_taken(method)]
    return ["HEAD", *taken] if "GET" in taken else taken


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  invariant: registered for this class only
    taken = request.scope["route"].dependant
    fields = {one.alias: one.field_info for one in (*taken.path_params, *taken.query_params, *taken.header_params)}
    return _problem(request, InvalidRequest([_fault(one, fields) for one in error.errors()]))


def _fault(item: Any, fields: Mapping[str, FieldInfo]) -> Fault:
    """Of a parameter; headers are named as they are usually written."""
    where, name = item["loc"][0], str(item["loc"][1])
    shown = name.title() if where == "header" else name
    if item["type"] == "missing":
        return Fault(field=shown, code="missing_field", message=f"{shown} is missing")
    return Fault(field=shown, code="invalid_value", message=f"{shown} {broken(item, fields[name])}")
