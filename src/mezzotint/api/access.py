"""Which API key asks and whether it may: before any route, by path alone. Denies what it does not know.

Must not look at bodies. Whose a session is, the operations ask themselves.
"""

import base64
import binascii
import re

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from mezzotint import api_keys
from mezzotint.api.problems import problem
from mezzotint.callers import Caller, asking
from mezzotint.errors import CallerError, MezzotintError, TryLater
from mezzotint.operations import Operations
from mezzotint.quotas import Buckets

OPEN = "open"  # asks for no key; such a route says nothing, or checks for itself
ANY = "any"  # asks for a key of any scope; each operation has one of its own

# Methods, path, the scope that it needs. The first that fits counts; what none fits is not there for holders of keys.
RULES: tuple[tuple[str, str, api_keys.Scope | str | None], ...] = (
    ("GET", r"/livez|/readyz", None),
    ("GET", r"/v1/images/files/[^/]+/[^/]+", None),  # links that are signed
    ("GET", r"/api/(inference|assets)/.*", "read-own"),
    ("POST", r"/api/inference/operations", ANY),
    ("POST DELETE", r"/api/inference/.*", "submit"),
    ("POST", r"/api/assets", "submit"),
    ("GET", r"/api/(models|devices|workers|analytics)(/.*)?", "read-own"),
    ("POST PATCH DELETE", r"/api/models(/.*)?", "models"),
    ("GET", r"/(v1|sdapi|controlnet|internal)/.*", "read-own"),
    ("POST", r"/internal/progress|/sdapi/v1/png-info", "read-own"),
    ("POST", r"/sdapi/v1/(refresh-[a-z]+|(unload|reload)-checkpoint)", "models"),
    ("POST", r"/(v1|sdapi|controlnet)/.*", "submit"),
    ("GET", r"/metrics", "read-all"),
    ("GET", r"/|/docs|/openapi\.json|/[a-z_]+\.(html|svg|ico|json)|/page/.*", "read-own"),
)

# What a person at the page looks at: a gallery is a hundred at once. Not counted as requests.
_LOOKED_AT = re.compile(
    r"/|/page/.*|/api/inference/sessions/[^/]+/images/[^/]+|/api/assets/[^/]+|/api/models/[^/]+/thumbnail"
)

WRONG_PER_MINUTE = 30  # keys that one address may try and be told so

# where a browser or an A1111 client is to ask for the key, as the password; elsewhere programs send a bearer
_BASIC = re.compile(r"/|/docs|/(sdapi|controlnet|internal)/.*")


def scope_of(method: str, path: str) -> api_keys.Scope | str | None:
    """The scope that a route needs, OPEN, ANY, or None for what no rule names."""
    method = "GET" if method == "HEAD" else method
    for methods, pattern, scope in RULES:
        if method in methods.split() and re.fullmatch(pattern, path):
            return scope or OPEN
    return None


class Access:
    """Says who asks to all below, and refuses who may not."""

    def __init__(self, app: ASGIApp, operations: Operations) -> None:
        self._app, self._operations = app, operations
        self._wrong = Buckets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._caller(scope)
        except MezzotintError as error:
            await self._refused(error, scope)(scope, receive, send)
            return
        token = asking.set(caller)
        try:
            await self._app(scope, receive, send)
        finally:
            asking.reset(token)

    async def _caller(self, scope: Scope) -> Caller:
        needed = scope_of(scope["method"], scope["path"])
        if needed == OPEN or not await self._operations.asks_for_keys():
            return Caller()
        key = _sent(Headers(scope=scope))
        try:
            caller = await self._operations.caller(key)
        except CallerError:
            if key is not None:
                self._count_wrong(scope)
            raise
        if needed is None and "admin" not in caller.scopes:
            raise CallerError(f"{scope['method']} {scope['path'][:200]} is not a route here", code="unknown_url")
        if needed in api_keys.SCOPES:
            caller.check(needed)
        if scope["method"] not in ("GET", "HEAD") or not _LOOKED_AT.fullmatch(scope["path"]):
            self._operations.count_request(caller)
        return caller

    def _count_wrong(self, scope: Scope) -> None:
        wait_s = self._wrong.take((scope.get("client") or ("",))[0], 1, WRONG_PER_MINUTE)
        if wait_s is not None:
            message = f"over {WRONG_PER_MINUTE} wrong API keys a minute came from this address"
            raise TryLater(message, code="quota_exceeded", retry_after_s=wait_s)

    @staticmethod
    def _refused(error: MezzotintError, scope: Scope) -> ASGIApp:
        answer = problem(error, Request(scope).state.request_id)
        if error.code == "invalid_api_key":
            basic = _BASIC.fullmatch(scope["path"])
            answer.headers["WWW-Authenticate"] = 'Basic realm="mezzotint"' if basic else 'Bearer realm="mezzotint"'
        return answer


def _sent(headers: Headers) -> str | None:
    """The key of the Authorization header: a bearer, or the password of any user. An empty header is none."""
    sent = headers.getlist("authorization")
    if len(sent) != 1:
        return None
    kind, _, value = sent[0].strip().partition(" ")
    if kind.lower() == "bearer":
        return value.strip() or None
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("ascii").partition(":")[2] or None
        except (binascii.Error, ValueError):
            return None
    return None
