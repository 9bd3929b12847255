"""A server that asks for API keys: who gets in, what each sees, how much each may take."""

import asyncio
import base64
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mezzotint.api_keys import USUAL, Limits, Scope
from mezzotint.client import Client
from mezzotint.operations.envelope import OPERATIONS
from mezzotint.store import beside
from tests.process.conftest import BIN, RunningServer, wait_for
from tests.process.test_cli import run

SESSIONS = "/api/inference/sessions"
SIGNED = "/v1/images/files/{session_id}/{index}"  # a link that carries its own proof
_SCOPES: tuple[Scope, ...] = ("submit", "read-own", "models")


def make_key(data: Path, *scopes: Scope, **limits: int) -> str:
    """Written beside the server, as the command does, without its start."""
    url = f"sqlite:///{data}/mezzotint.db"
    given = Limits(**{"requests_per_minute": 100_000} | limits)
    return asyncio.run(beside.create_key(url, name="t", scopes=scopes or USUAL, limits=given, expires_at=None))[1]


class Guarded:
    """A server with a key for each kind of caller."""

    def __init__(self, server: RunningServer) -> None:
        self.server, self.url = server, server.url
        self.admin = make_key(server.data, "admin")
        self.one = make_key(server.data)
        self.other = make_key(server.data)

    def send(self, method: str, path: str, key: str | None = None, **options: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.request(method, self.url + path, headers=headers | options.pop("headers", {}), **options)

    @contextmanager
    def stream(self, key: str) -> Iterator[Iterator[str]]:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.stream("GET", f"{self.url}/api/inference/events", headers=headers, timeout=30) as answer:
            assert answer.status_code == 200
            yield answer.iter_lines()

    def submit(self, key: str, **options: Any) -> str:
        headers = options.pop("headers", {})
        answer = self.send("POST", SESSIONS, key, json={"prompt": "x", "steps": 1} | options, headers=headers)
        assert answer.status_code in (200, 202), answer.text  # 200: the key stands for a session that has ended
        return str(answer.json()["id"])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with RunningServer(tmp_path_factory.mktemp("guarded") / "data") as server:
        server.worker_pid()  # nobody is asked for a key before the first is made
        found = Guarded(server)
        wait_for(lambda: found.send("GET", "/api/workers").status_code == 401, 5)
        yield found


def routes(guarded: Guarded) -> Iterator[tuple[str, str]]:
    schema = guarded.send("GET", "/openapi.json", guarded.admin).json()
    for path, methods in schema["paths"].items():
        for method in methods:
            yield method.upper(), path


def test_every_route_asks_for_a_key_and_shows_nothing_without(guarded: Guarded) -> None:
    found = list(routes(guarded))
    assert len(found) > 10
    for method, path in [*found, ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/"), ("GET", "/nope")]:
        answer = guarded.send(method, re.sub(r"\{\w+\}", "1", path))
        if path == SIGNED:
            assert 400 <= answer.status_code < 500, path
        elif path in ("/livez", "/readyz"):
            assert (answer.status_code, answer.content) == (200, b""), path
        else:
            assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key"), (method, path)
            assert answer.headers["www-authenticate"].split()[0] in ("Basic", "Bearer")


@pytest.mark.parametrize(
    "path", ["/livez/", "//livez", "/livez/../api/workers", "/livez%2f..%2fapi/workers", "/livez%00"]
)
def test_no_spelling_of_an_open_path_opens_another(guarded: Guarded, path: str) -> None:
    assert guarded.send("GET", path).status_code == 401


def test_every_scope_reaches_its_routes_and_no_others(guarded: Guarded) -> None:
    keys = {scope: make_key(guarded.server.data, scope) for scope in _SCOPES}
    tried = {
        ("GET", SESSIONS): "read-own",
        ("GET", "/api/models"): "read-own",
        ("POST", f"{SESSIONS}/nope/cancel"): "submit",
        ("POST", "/api/models/nope/load"): "models",
    }
    reads_all = make_key(guarded.server.data, "read-all")
    assert [guarded.send(method, path, reads_all).status_code for method, path in tried] == [200, 200, 403, 403]
    for (method, path), needed in tried.items():
        for scope, key in keys.items():
            answer = guarded.send(method, path, key)
            assert (answer.status_code == 403) is (scope != needed), (method, path, scope)
            if answer.status_code == 403:
                assert (answer.json()["code"], needed in answer.json()["detail"]) == ("forbidden", True)


def test_an_operation_by_name_asks_for_the_scope_of_its_own_route(guarded: Guarded) -> None:
    keys = {scope: make_key(guarded.server.data, scope) for scope in _SCOPES}
    for name, (needed, _) in OPERATIONS.items():
        for scope, key in keys.items():
            answer = guarded.send("POST", "/api/inference/operations", key, json={"type": name, "data": {"x": 1}})
            assert (answer.status_code == 403) is (scope != needed), (name, scope)
            if answer.status_code == 403:
                error = answer.json()["error"]
                assert (error["code"], needed in error["message"]) == ("forbidden", True)
    assert guarded.send("POST", "/api/inference/operations", json={"type": "inference.get_status"}).status_code == 401


@pytest.mark.parametrize(
    "sent", ["", "Bearer", "Bearer mz_x", "Digest x", "Basic !!", "Bearer mz_aaaaaaaa_" + "a" * 43]
)
def test_what_is_no_key_is_refused_alike(guarded: Guarded, sent: str) -> None:
    answer = guarded.send("GET", SESSIONS, headers={"Authorization": sent})
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.json()["detail"] == guarded.send("GET", SESSIONS).json()["detail"]


def test_a_key_may_come_as_the_password_of_anybody_and_never_in_the_url(guarded: Guarded) -> None:
    basic = base64.b64encode(f"whoever:{guarded.one}".encode()).decode()
    assert guarded.send("GET", SESSIONS, headers={"Authorization": f"Basic {basic}"}).status_code == 200
    assert guarded.send("GET", f"{SESSIONS}?api_key={guarded.one}&key={guarded.one}").status_code == 401


def test_sessions_are_there_for_their_owner_only(guarded: Guarded) -> None:
    session_id = guarded.submit(guarded.one)
    with Client(guarded.url, guarded.one) as mine:
        assert mine.wait(session_id)["state"] == "succeeded"
        assert session_id in [session["id"] for session in mine.sessions()]
    with Client(guarded.url, guarded.other) as theirs:
        assert list(theirs.sessions()) == []
    below = [(method, path) for method, path in routes(guarded) if "{session_id}" in path and path != SIGNED]
    assert len(below) >= 5
    for method, path in below:
        filled = path.replace("{session_id}", session_id).replace("{index}", "0")
        answer = guarded.send(method, filled, guarded.other)
        assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found"), (method, path)
    assert guarded.send("GET", f"{SESSIONS}/{session_id}", guarded.admin).status_code == 200


def test_devices_and_workers_show_the_sessions_of_the_caller(guarded: Guarded) -> None:
    session_id = guarded.submit(guarded.one, steps=1000)
    asked = ("/api/workers", "/api/devices", "/api/devices/cpu:0")

    def shown(path: str, key: str) -> bool:
        return session_id in guarded.send("GET", path, key).text

    wait_for(lambda: shown("/api/workers", guarded.one), 30)
    assert [[shown(path, key) for path in asked] for key in (guarded.one, guarded.admin)] == [[True] * 3] * 2
    status = {"type": "inference.get_status"}
    told = guarded.send("POST", "/api/inference/operations", guarded.other, json=status)
    assert (told.status_code, session_id in told.text) == (200, False)
    assert [shown(path, guarded.other) for path in asked] == [False] * 3
    assert guarded.send("POST", f"{SESSIONS}/{session_id}/cancel", guarded.one).status_code == 200


def test_the_stream_of_all_sessions_holds_those_of_the_caller(guarded: Guarded) -> None:
    with guarded.stream(guarded.one) as mine, guarded.stream(guarded.admin) as everybodys:
        sessions = {guarded.submit(key) for key in (guarded.other, guarded.one)}
        last = guarded.submit(guarded.one)  # what is told of it comes after what is told of the others
        assert sessions <= told_before(everybodys, last)
        assert len(sessions & told_before(mine, last)) == 1


def told_before(lines: Iterator[str], session_id: str) -> set[str]:
    """Sessions that a stream tells of before this one's last word."""
    found: set[str] = set()
    for line in lines:
        found |= set(re.findall(r"ses_[0-9A-Z]{26}", line))
        if session_id in line and '"state":"succeeded"' in line:
            return found
    raise AssertionError("the stream ended")


def test_who_may_read_everything_may_not_change_it(guarded: Guarded) -> None:
    key = make_key(guarded.server.data, "read-all", "submit")
    session_id = guarded.submit(guarded.one, steps=1000)
    answer = guarded.send("POST", f"{SESSIONS}/{session_id}/cancel", key)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert guarded.send("POST", f"{SESSIONS}/{session_id}/cancel", guarded.admin).status_code == 200


def test_one_idempotency_key_of_two_callers_is_two_sessions(guarded: Guarded) -> None:
    headers = {"Idempotency-Key": "same"}
    mine, theirs = (guarded.submit(key, headers=headers) for key in (guarded.one, guarded.other))
    assert mine != theirs
    assert guarded.submit(guarded.one, headers=headers) == mine


def test_over_its_limits_a_key_is_told_which_and_when_to_come_back(guarded: Guarded) -> None:
    data = guarded.server.data
    blocking = guarded.submit(guarded.admin, steps=1000, num_images=16, priority=9)
    wait_for(lambda: guarded.send("GET", f"{SESSIONS}/{blocking}", guarded.admin).json()["state"] == "running", 10)
    few = make_key(data, queued=1)
    waiting = guarded.submit(few)
    refused = {"queued=1": guarded.send("POST", SESSIONS, few, json={"steps": 1})}
    guarded.send("POST", f"{SESSIONS}/{blocking}/cancel", guarded.admin)
    guarded.send("POST", f"{SESSIONS}/{waiting}/cancel", few)
    small = make_key(data, pixel_steps_per_minute=100)
    guarded.submit(small)
    refused["pixel_steps_per_minute=100"] = guarded.send("POST", SESSIONS, small, json={"steps": 1})
    slow = make_key(data, requests_per_minute=2)
    refused["requests_per_minute=2"] = [guarded.send("GET", SESSIONS, slow) for _ in range(4)][-1]
    full = make_key(data, stored_bytes=1)
    with Client(guarded.url, full) as client:
        client.wait(guarded.submit(full))
    refused["stored_bytes=1"] = guarded.send("POST", SESSIONS, full, json={"steps": 1})
    for limit, answer in refused.items():
        assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded"), limit
        assert limit in answer.json()["detail"]
        assert 1 <= int(answer.headers["retry-after"]) <= 59


def test_looking_at_pictures_is_not_counted_as_requests(guarded: Guarded) -> None:
    key = make_key(guarded.server.data, requests_per_minute=1)
    session_id = guarded.submit(key)
    with Client(guarded.url, guarded.admin) as client:
        client.wait(session_id)
    looked_at = [
        f"{SESSIONS}/{session_id}/images/0",
        f"{SESSIONS}/{session_id}/images/0?size=thumb",
        "/",
        "/page/icon.svg",
    ]
    assert 429 not in [guarded.send("GET", path, key).status_code for path in looked_at]
    assert 429 in [guarded.send("GET", f"{SESSIONS}/{session_id}", key).status_code for _ in range(3)]


def test_no_more_sessions_of_a_key_run_at_one_time_than_it_may(guarded: Guarded) -> None:
    key = make_key(guarded.server.data, running=1)
    ids = [guarded.submit(key, steps=1000) for _ in range(3)]
    free = guarded.submit(guarded.one)  # another's is not held up by them
    with Client(guarded.url, guarded.one) as client:
        assert client.wait(free)["state"] == "succeeded"
    with Client(guarded.url, key) as client:
        assert [client.session(session_id)["state"] for session_id in ids] == ["running", "queued", "queued"]
        for session_id in ids:
            client.cancel(session_id)


def test_a_revoked_key_opens_nothing_within_seconds_and_the_last_one_opens_nobody_else_a_door(guarded: Guarded) -> None:
    data = guarded.server.data
    key = make_key(data)
    assert guarded.send("GET", SESSIONS, key).status_code == 200
    listed = run("keys", "list", "--data", data, cwd=data.parent).stdout
    assert key not in listed
    assert key[3:11] in listed
    assert run("keys", "revoke", key[3:11], "--data", data, cwd=data.parent).returncode == 0
    wait_for(lambda: guarded.send("GET", SESSIONS, key).status_code == 401, 5)
    again = run("keys", "revoke", key[3:11], "--data", data, cwd=data.parent)
    assert (again.returncode, "in force" in again.stderr) == (2, True)


def test_off_loopback_there_is_no_start_without_a_key(tmp_path: Path) -> None:
    at = ("serve", "--host", "0.0.0.0", "--port", "0", "--data", tmp_path / "data")
    done = run(*at, cwd=tmp_path)
    assert (done.returncode, "mezzotint keys create" in done.stderr) == (2, True)
    key = json.loads(run("keys", "create", "--json", "--data", tmp_path / "data", cwd=tmp_path).stdout)["key"]
    with RunningServer(tmp_path / "data", "--host", "0.0.0.0") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx2.get(f"{url}/api/workers").status_code == 401
        assert httpx2.get(f"{url}/api/workers", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert httpx2.get(f"{url}/livez", headers={"Host": "example.com"}).status_code == 421


def test_an_operator_may_ask_nobody_and_is_warned(tmp_path: Path) -> None:
    run("keys", "create", "--data", tmp_path / "data", cwd=tmp_path)
    with RunningServer(tmp_path / "data", "--insecure-no-auth") as server:
        assert server.client.workers()
        assert "asking nobody for an API key" in server.log.read_text()


def test_many_wrong_keys_from_one_address_are_slowed_and_a_right_one_still_opens(guarded: Guarded) -> None:
    wrong = f"mz_aaaaaaaa_{'a' * 43}"
    codes = [guarded.send("GET", SESSIONS, wrong).status_code]
    while codes[-1] == 401 and len(codes) < 200:  # more than thirty when they take their time
        claimed = {"X-Forwarded-For": f"203.0.113.{len(codes)}"}  # by nobody's proxy
        codes.append(guarded.send("GET", SESSIONS, wrong, headers=claimed).status_code)
    assert len(codes) > 20
    assert codes[-1] == 429
    assert guarded.send("GET", SESSIONS, guarded.one).status_code == 200


def test_no_log_line_holds_a_key_or_a_prompt(guarded: Guarded) -> None:
    guarded.send("GET", "/nope?key=canary-of-a-query", guarded.one)
    session_id = guarded.submit(guarded.one, prompt="canary-of-a-prompt")
    wait_for(lambda: session_id in guarded.server.log.read_text(), 30)
    logged = guarded.server.log.read_text()
    for secret in (guarded.one[12:], "canary-of-a-prompt", "canary-of-a-query"):
        assert secret not in logged


def test_keys_are_made_before_the_first_start_as_well(tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN, "keys", "create", "first", "--data", tmp_path / "new"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"mz_[a-z0-9]{8}_[\w-]{43}\n", done.stdout)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
