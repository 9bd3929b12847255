"""A client of a running server, for programs: the verbs of the contract over HTTP. Imports nothing heavy."""

import json
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import httpx2

from mezzotint.errors import CallerError, Fault, InvalidRequest, MezzotintError, TryLater

SESSIONS = "/api/inference/sessions"
BATCHES = "/api/inference/batches"
DEFAULT_URL = "http://127.0.0.1:7801"


class ServerUnreachable(MezzotintError):
    """No server answered at the address."""


class Client:
    """Talks to one server. Not for use from two threads at once.

    Every method raises ServerUnreachable when nothing answers, and the server's own errors as InvalidRequest, TryLater,
    or MezzotintError with its code.
    """

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None, *, timeout_s: float = 30.0) -> None:
        # reading every certificate authority takes as long as drawing a step; plain HTTP needs none
        certificates = not url.lower().startswith("http://")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx2.Client(
            base_url=url, headers=headers, timeout=timeout_s, trust_env=False, verify=certificates
        )
        self._url = url

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, **request: Any) -> dict[str, Any]:
        """Accept a request; returns the session. It is on the server's disk when this returns."""
        return self._json("POST", SESSIONS, json=request)

    def session(self, session_id: str) -> dict[str, Any]:
        return self._json("GET", f"{SESSIONS}/{session_id}")

    def sessions(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """All sessions that match, newest first, page by page. Filters as in the contract: active, state, model, ..."""
        while True:
            page = self._json("GET", SESSIONS, params=filters)
            yield from page["sessions"]
            if page["next_cursor"] is None:
                return
            filters["cursor"] = page["next_cursor"]

    def cancel(self, session_id: str) -> dict[str, Any]:
        return self._json("POST", f"{SESSIONS}/{session_id}/cancel")

    def pause(self, session_id: str) -> dict[str, Any]:
        return self._json("POST", f"{SESSIONS}/{session_id}/pause")

    def resume(self, session_id: str) -> dict[str, Any]:
        return self._json("POST", f"{SESSIONS}/{session_id}/resume")

    def create_batch(self, requests: Sequence[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """Up to 1,000 requests at once. `options`: defaults, skip_invalid, stop_on_first_error, metadata."""
        return self._json("POST", BATCHES, json={"requests": list(requests), **options})

    def batch(self, batch_id: str) -> dict[str, Any]:
        return self._json("GET", f"{BATCHES}/{batch_id}")

    def cancel_batch(self, batch_id: str) -> dict[str, Any]:
        return self._json("POST", f"{BATCHES}/{batch_id}/cancel")

    def delete(self, session_id: str) -> None:
        self._send("DELETE", f"{SESSIONS}/{session_id}")

    def events(self, session_id: str, after: int = 0) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """(id, kind, data) of each event until the session ends."""
        headers = {"Last-Event-ID": str(after)}
        try:
            with self._http.stream("GET", f"{SESSIONS}/{session_id}/events", headers=headers, timeout=None) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise _error(answer)
                number, kind = 0, ""
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    if name == "id":
                        number = int(value)
                    elif name == "event":
                        kind = value
                    elif name == "data":
                        yield number, kind, json.loads(value)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def image(self, session_id: str, index: int = 0) -> bytes:
        return self._send("GET", f"{SESSIONS}/{session_id}/images/{index}").content

    def wait(self, session_id: str) -> dict[str, Any]:
        """Block until the session has ended; returns it."""
        for _, kind, data in self.events(session_id):
            if kind == "end":
                return data
        return self.session(session_id)

    def devices(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._json("GET", "/api/devices")["devices"]
        return found

    def models(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._json("GET", "/api/models")["models"]
        return found

    def model(self, model_id: str) -> dict[str, Any]:
        return self._json("GET", f"/api/models/{model_id}")

    def workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._json("GET", "/api/workers")["workers"]
        return found

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        body: dict[str, Any] = self._send(method, path, **options).json()
        return body

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        if answer.status_code >= 400:
            raise _error(answer)
        return answer

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        message = f"no server answers at {self._url} ({error}); start one with `mezzotint serve`"
        return ServerUnreachable(message, code="unreachable")


def _error(answer: httpx2.Response) -> MezzotintError:
    try:
        body = answer.json()
        code, message = body["code"], body["detail"]
    except (ValueError, KeyError, TypeError):
        return MezzotintError(f"the server answered {answer.status_code} with no body of ours", code="foreign_server")
    if "errors" in body:
        return InvalidRequest([Fault(**fault) for fault in body["errors"]])
    if "retry-after" in answer.headers:
        return TryLater(message, code=code, retry_after_s=int(answer.headers["retry-after"]))
    kind = CallerError if answer.status_code < 500 else MezzotintError
    return kind(message, code=code, field=body.get("field"))
