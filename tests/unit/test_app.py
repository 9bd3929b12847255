"""What a caller hears of an error that nobody expected: our own body, with the id that the log has it under."""

import json
from typing import Any

import httpx2
import pytest
import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

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
    app = routed(1)
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
