"""Both clients of ours and a real server: typed answers, patience with one that says when, lost connections."""

import asyncio
import inspect
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import anyio
import pytest
from typing_extensions import is_typeddict

from mezzotint import AsyncClient, Client, InvalidRequest, MezzotintError, answers
from mezzotint.api.events import PING_S
from mezzotint.client import QUIET_S
from mezzotint.errors import ServerUnreachable, TryLater
from tests.pictures import encoded, picture
from tests.process.conftest import RunningServer, wait_for

pytestmark = pytest.mark.anyio


def fits(value: Any, kind: Any) -> bool:
    """Whether a body is what its type says: every field there, none more, each of its type."""
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        assert kind.__required_keys__ <= value.keys() <= hints.keys(), f"{kind.__name__}: {value.keys() ^ hints.keys()}"
        wrong = [name for name, hint in hints.items() if name in value and not fits(value[name], hint)]
        assert not wrong, f"{kind.__name__}: {wrong} of {value}"
        return True
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in parts
    if origin is list:
        return isinstance(value, list) and all(fits(one, parts[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, parts[1]) for one in value.values())
    if parts:
        return any(value is None if one is type(None) else value is not None and fits(value, one) for one in parts)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return kind is Any or type(value) is kind


async def test_every_answer_is_what_its_type_says(server: RunningServer) -> None:
    async with AsyncClient(server.url) as client:
        sent = await client.submit(prompt="a cat", steps=2, preview={"at_steps": [1]}, metadata={"mine": 1})
        assert fits(sent, answers.Session)
        ended = await client.wait(sent["id"])
        assert fits(ended, answers.Session)
        assert (ended["state"], len(ended["images"])) == ("succeeded", 1)
        assert fits(await client.trace(sent["id"]), answers.Trace)
        assert fits(await client.validate(prompt="a cat", steps=2), answers.Validation)
        refused = await client.validate(steps=0)
        assert fits(refused, answers.Validation)
        assert not refused["valid"]
        batch = await client.create_batch([{"prompt": "a"}], defaults={"steps": 1})
        assert fits(batch, answers.Batch)
        assert fits(await client.batch(batch["id"]), answers.Batch)
        asset = await client.upload(encoded(picture()))
        assert fits(asset, answers.Asset)
        assert all(fits(one, answers.Device) for one in await client.devices())
        assert all(fits(one, answers.Worker) for one in await client.workers())
        assert fits(await client.supported_types(), answers.SupportedTypes)
        told = await client.capabilities()
        assert fits(told, answers.Capabilities)
        learned = told["batching"]["max_batch"]
        assert {(one["model"], one["device"]) for one in learned} == {("icons", "cpu:0")}
        assert all(one["rows"] >= 1 for one in learned)
        assert any(one["rows_timed"] for one in learned)  # not each: the first call of a shape is not timed
        assert all(fits(one, answers.Model) for one in await client.models())
        assert (await client.model("icons"))["family"] == "sd"
        assert [one["id"] async for one in client.sessions(batch=batch["id"])] == [batch["items"][0]["session_id"]]
        drawn = await client.submit(prompt="a cat", steps=1, image=f"asset:{asset['id']}")
        assert (await client.wait(drawn["id"]))["type"] == "img2img"
        assert (await client.image(drawn["id"])).startswith(b"\x89PNG")
        await client.delete(drawn["id"])
        with pytest.raises(MezzotintError, match="not here"):
            await client.session(drawn["id"])
        with pytest.raises(InvalidRequest):
            await client.submit(steps=0)


def test_a_load_may_take_longer_than_any_other_call() -> None:
    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            time.sleep(1)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"id": "large"}')

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as slow:
        threading.Thread(target=slow.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{slow.server_port}", timeout_s=0.2, retries=0) as client:
            assert client.load_model("large")["id"] == "large"
            with pytest.raises(ServerUnreachable):
                client.cancel("ses_any")
        slow.shutdown()


async def test_fifty_sessions_are_followed_at_once(server: RunningServer) -> None:
    async with AsyncClient(server.url) as client:
        sent = await asyncio.gather(*(client.submit(prompt="a cat", steps=2, seed=seed) for seed in range(50)))
        ended = await asyncio.gather(*(client.wait(one["id"]) for one in sent))
        assert {one["state"] for one in ended} == {"succeeded"}
        assert [one["request"]["seed"] for one in ended] == list(range(50))


async def test_beside_a_hundred_followed_sessions_every_other_call_is_answered(server: RunningServer) -> None:
    async with AsyncClient(server.url, timeout_s=5.0) as client:
        long = await client.submit(prompt="a cat", steps=1000)
        followed: list[Any] = [client.events(long["id"]) for _ in range(100)]
        await asyncio.gather(*(anext(one) for one in followed))
        assert (await client.cancel(long["id"]))["id"] == long["id"]
        await asyncio.gather(*(one.aclose() for one in followed))


def test_both_clients_have_the_same_verbs() -> None:
    blocking, awaited = (
        {name: inspect.signature(verb) for name, verb in vars(kind).items() if not name.startswith("_")}
        for kind in (Client, AsyncClient)
    )
    assert blocking.keys() == awaited.keys()
    for name in blocking:
        assert list(blocking[name].parameters) == list(awaited[name].parameters), name


def test_an_id_leads_nowhere_else(server: RunningServer) -> None:
    with Client(server.url) as client:
        for odd in ("../../models", "ses_none?x", "ses_none#x", "", ".", ".."):
            for ask in (client.session, client.cancel, client.delete, lambda one: next(client.events(one))):
                with pytest.raises(MezzotintError) as told:
                    ask(odd)
                assert (told.value.code, (odd or "''") in told.value.message) in (
                    ("session_not_found", True),
                    ("unknown_url", True),
                )


def test_a_key_that_cannot_be_sent_is_refused_and_not_shown() -> None:
    for key in ("mzt_secret\n", "mzt_secr\xe9t"):
        with pytest.raises(MezzotintError) as told:
            Client("http://127.0.0.1:9", key)
        assert told.value.code == "invalid_api_key"
        assert "mzt" not in told.value.message


def test_an_address_without_its_scheme_is_refused_as_such() -> None:
    with pytest.raises(MezzotintError, match="begins with http") as told:
        Client("localhost:7801")
    assert (told.value.code, told.value.field) == ("invalid_value", "server")


class Busy(BaseHTTPRequestHandler):
    """Refuses twice, or hangs up once, and notes the keys it was sent."""

    keys: ClassVar[list[str | None]] = []
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.keys.append(self.headers["idempotency-key"])
        if self.path.endswith("/cancel") or (self.server.hangs_up and len(self.keys) == 1):  # type: ignore[attr-defined]
            self.close_connection = True
            self.connection.close()
            return
        full = len(self.keys) < 3 and not self.server.hangs_up  # type: ignore[attr-defined]
        body = b'{"code": "queue_full", "detail": "full"}' if full else b'{"id": "ses_1"}'
        self.send_response(429 if full else 202)
        self.send_header("content-length", str(len(body)))
        if full:
            self.send_header("retry-after", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(params=[False, True], ids=["refuses", "hangs up"])
def busy(request: pytest.FixtureRequest) -> Iterator[ThreadingHTTPServer]:
    Busy.keys.clear()
    http = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    http.hangs_up = request.param  # type: ignore[attr-defined]
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def test_a_call_is_repeated_when_the_server_says_so_and_never_done_twice(busy: ThreadingHTTPServer) -> None:
    url = f"http://127.0.0.1:{busy.server_port}"
    with Client(url) as client:
        assert client.submit(prompt="x")["id"] == "ses_1"
        assert len(Busy.keys) == (2 if busy.hangs_up else 3)  # type: ignore[attr-defined]
        assert len(set(Busy.keys)) == 1
        assert Busy.keys[0]
    Busy.keys.clear()
    with Client(url, retries=0) as impatient, pytest.raises(MezzotintError) as refused:
        impatient.submit(prompt="x")
    assert isinstance(refused.value, TryLater) != busy.hangs_up  # type: ignore[attr-defined]
    Busy.keys.clear()
    with Client(url) as client, pytest.raises(MezzotintError):
        client.cancel("ses_1")  # a second cancel would be refused: it is not said twice
    assert len(Busy.keys) == 1


class Told(BaseHTTPRequestHandler):
    """Answers each call with the next of `answers`, bytes as they go over the wire, and hangs up, at once or `late`."""

    answers: ClassVar[list[bytes]] = []
    asked: ClassVar[list[str | None]] = []
    late: ClassVar[threading.Event]

    def do_GET(self) -> None:
        self.asked.append(self.headers["last-event-id"])
        self.wfile.write(self.answers.pop(0))
        assert self.late.wait(60)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def telling(secured: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that says what `Told.answers` holds."""
    Told.asked.clear()
    Told.late = threading.Event()
    Told.late.set()
    http = ThreadingHTTPServer(("127.0.0.1", 0), Told)
    if secured is not None:
        http.socket = secured.wrap_socket(http.socket, server_side=True)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    yield http.server_port
    http.shutdown()
    http.server_close()


@pytest.fixture
def told() -> Iterator[str]:
    with telling() as port:
        yield f"http://127.0.0.1:{port}"


EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


async def test_an_event_that_was_cut_off_is_told_again(told: str) -> None:
    first, second = b'id: 1\nevent: state\ndata: {"a": 1}\n\n', b'id: 2\nevent: end\ndata: {"b": 2}\n\n'
    for cut in (b"id: 2\n", second[:-6], second[:-1]):
        for kind in (Client, AsyncClient):
            Told.asked.clear()
            Told.answers[:] = [EVENTS + first + cut, EVENTS + b": still here\n\n" + second]
            client: Any = kind(told)
            found = client.events("ses_1")
            events = list(found) if kind is Client else [one async for one in found]
            assert [tuple(one) for one in events] == [(1, "state", {"a": 1}), (2, "end", {"b": 2})], cut
            assert Told.asked == ["0", "1"]


async def test_a_restart_behind_a_proxy_is_waited_for(told: str) -> None:
    away = b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>"
    busy = b'HTTP/1.1 429 Busy\r\nretry-after: 0\r\n\r\n{"code": "quota_exceeded", "detail": "busy"}'
    first, last = b"id: 1\nevent: state\ndata: {}\n\n", b"id: 2\nevent: end\ndata: {}\n\n"
    for kind in (Client, AsyncClient):
        Told.asked.clear()
        Told.answers[:] = [busy, EVENTS + first, away, busy, EVENTS + last]
        client: Any = kind(told)
        found = client.events("ses_1")
        events = list(found) if kind is Client else [one async for one in found]
        assert [one[0] for one in events] == [1, 2]
        assert Told.asked == ["0", "0", "1", "1", "1"]
    Told.answers[:] = [away, b'HTTP/1.1 200 OK\r\n\r\n{"id": "ses_1"}']
    assert Client(told).session("ses_1")["id"] == "ses_1"
    Told.answers[:] = [away]
    with pytest.raises(ServerUnreachable, match="a proxy answered 502"):
        list(Client(told).events("ses_1"))  # nothing was heard yet: there may be no server at all


async def test_a_line_that_went_dead_is_not_listened_to_for_ever(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert QUIET_S >= 3 * PING_S
    monkeypatch.setattr("mezzotint.client.QUIET_S", 0.3)
    Told.late.clear()  # nothing more comes, and nobody hangs up: as where the server's machine or the way to it is gone
    for kind in (Client, AsyncClient):
        Told.asked.clear()
        Told.answers[:] = [EVENTS + b"id: 1\nevent: state\ndata: {}\n\n", EVENTS + b"id: 2\nevent: end\ndata: {}\n\n"]
        client: Any = kind(told)
        with anyio.fail_after(20):
            found = client.events("ses_1")
            events = list(found) if kind is Client else [one async for one in found]
        assert [one[0] for one in events] == [1, 2]
        assert Told.asked == ["0", "1"]
    Told.late.set()


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (b"200 OK\r\n\r\n<html>", "foreign_server", "answered 200"),
        (b"200 OK\r\n\r\n[1]", "foreign_server", "answered 200"),
        (b'200 OK\r\n\r\n{"a": 1}', "foreign_server", "answered 200"),
        (b"307 Moved\r\nlocation: https://elsewhere/\r\n\r\n", "foreign_server", "points to 'https://elsewhere/'"),
        (b"404 No\r\n\r\n[]", "foreign_server", "answered 404"),
        (b"502 Bad Gateway\r\n\r\n<html>", "unreachable", "a proxy answered 502"),
        (b'422 No\r\n\r\n{"code": "a", "detail": "b", "errors": [{"c": 1}]}', "foreign_server", "answered 422"),
        (b'503 No\r\nretry-after: Fri, 31 Dec 2027 23:59:59 GMT\r\n\r\n{"code": "a", "detail": "b"}', "a", "b"),
    ],
)
async def test_another_server_is_told_from_ours(told: str, answer: bytes, code: str, words: str) -> None:
    blocking, awaited = Client(told, retries=0), AsyncClient(told, retries=0)
    for ask in (lambda: list(blocking.sessions()), blocking.devices, lambda: list(blocking.events("ses_1"))):
        Told.answers[:] = [b"HTTP/1.1 " + answer]
        with pytest.raises(MezzotintError) as refused:
            ask()
        assert (refused.value.code, words in refused.value.message) == (code, True)
    for again in (awaited.devices(), anext(awaited.events("ses_1"))):
        Told.answers[:] = [b"HTTP/1.1 " + answer]
        with pytest.raises(MezzotintError) as refused:
            await again
        assert (refused.value.code, words in refused.value.message) == (code, True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="apt-get install openssl")
def test_a_certificate_of_ones_own_authority_is_named_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=ours", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True,
    )  # fmt: skip
    secured = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secured.load_cert_chain(certificate, key)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with telling(secured) as port:
        url = f"https://127.0.0.1:{port}"
        with pytest.raises(ServerUnreachable, match=r"certificate of https.*name its file in SSL_CERT_FILE"):
            Client(url).session("ses_1")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        Told.answers[:] = [b'HTTP/1.1 200 OK\r\n\r\n{"id": "ses_1"}']
        assert Client(url).session("ses_1")["id"] == "ses_1"


def test_events_are_followed_across_a_restart_of_the_server(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with RunningServer(tmp_path / "data", "--port", str(port)) as server:
        server.worker_pid()
        client: Any = Client(server.url)
        sent = client.submit(prompt="a cat", steps=80, seed=3)

        def follow() -> None:
            told.extend((event.id, event.kind) for event in client.events(sent["id"]))

        following = threading.Thread(target=follow)
        following.start()
        wait_for(lambda: client.session(sent["id"])["progress"]["step"] > 20, 60)
        server.kill()
        server.start()
        following.join(120)
        assert not following.is_alive()
        assert told[-1][1] == "end"
        assert [number for number, _ in told] == sorted({number for number, _ in told})
        assert client.session(sent["id"])["attempt"] == 2
        client.close()
