"""What a caller hears when something unexpected happens in the middle of an answer."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mezzotint.api import files
from mezzotint.api.app import RequestIds, routed
from mezzotint.telemetry import configure_logs

pytestmark = pytest.mark.anyio


async def _broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("outside of every route")


@pytest.mark.parametrize("inside", [True, False], ids=["in a route", "before any route"])
async def test_an_unexpected_error_is_a_problem_and_one_line_of_the_log(
    inside: bool, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(structlog.reset_defaults)
    configure_logs("info")
    app = routed()
    app.state.operations = object()  # has nothing that a route asks for
    whole: ASGIApp = RequestIds(app if inside else _broken)
    transport: Any = httpx2.ASGITransport(whole, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.get("/api/devices")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    body = answer.json()
    assert (body["code"], body["request_id"]) == ("internal", answer.headers["x-request-id"])
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert (line["event"], line["request_id"]) == ("unhandled error", body["request_id"])
    assert "Error" in line["exception"]
    assert "Error" not in answer.text


@pytest.mark.parametrize("headers", [[], [(b"range", b"bytes=9-")]], ids=["whole", "a range"])
async def test_a_picture_that_is_removed_once_its_headers_have_left_is_sent_all_the_same(
    headers: list[tuple[bytes, bytes]], tmp_path: Path
) -> None:
    (tmp_path / "picture").write_bytes(bytes(100_000))
    scope: Scope = {"type": "http", "method": "GET", "headers": headers, "asgi": {"spec_version": "2.4"}}
    sent = bytearray()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            (tmp_path / "picture").unlink()
        sent.extend(message.get("body", b""))

    async def receive() -> Message:
        raise AssertionError("nothing more is asked")

    answer = await files.kept(Request(scope), tmp_path / "picture", sha256="0" * 64, media_type="image/png")
    await answer(scope, receive, send)
    assert len(sent) == 100_000 - (9 if headers else 0)
