"""A receiver is told of the end of a session, also when the server was killed before it could be."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mezzotint.errors import MezzotintError
from tests.process.conftest import END_S, RunningServer, wait_for

SECRET = "whsec_" + base64.b64encode(b"canary-secret-of-32-bytes-length").decode()


class Receiver(ThreadingHTTPServer):
    """Remembers what it got; answers once it may."""

    def __init__(self) -> None:
        self.got: list[tuple[str | None, Any]] = []
        self.may_answer = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.headers["webhook-id"], json.loads(body)))
        self.server.may_answer.wait(30)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its word
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as serving:
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        yield serving
        serving.may_answer.set()
        serving.shutdown()


@pytest.fixture(autouse=True)
def may_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEZZOTINT_WEBHOOK_HOSTS", "127.0.0.1")
    monkeypatch.setenv("MEZZOTINT_WEBHOOK_NETWORKS", "127.0.0.0/8")
    monkeypatch.setenv("MEZZOTINT_WEBHOOK_SECRETS", SECRET)


def test_a_server_killed_before_the_receiver_answered_tells_it_again(tmp_path: Path, receiver: Receiver) -> None:
    with RunningServer(tmp_path / "data") as server:
        with pytest.raises(MezzotintError) as caught:
            server.client.submit(prompt="x", webhook={"url": "http://localhost/"})
        assert (caught.value.code, caught.value.field) == ("webhook_refused", "webhook.url")
        url = f"http://127.0.0.1:{receiver.server_port}/"
        session_id = server.client.submit(prompt="x", steps=2, webhook={"url": url})["id"]
        wait_for(lambda: receiver.got, 60)
        assert server.client.session(session_id)["state"] == "succeeded"
        server.kill()
        receiver.may_answer.set()
        server.start()
        wait_for(lambda: len(receiver.got) > 1, 30)
        (first, told), (second, again) = receiver.got
        assert (first, told) == (second, again)
        assert (told["type"], told["data"]["id"]) == ("session.succeeded", session_id)
        assert told["data"]["images"][0]["url"].endswith("/images/0")
        assert "canary" not in server.log.read_text()
        assert SECRET not in server.log.read_text()


def test_the_end_of_a_batch_is_told_once_and_of_a_request_without_one_it_is_a_warning(
    tmp_path: Path, receiver: Receiver
) -> None:
    receiver.may_answer.set()
    with RunningServer(tmp_path / "data") as server:
        webhook = {"url": f"http://127.0.0.1:{receiver.server_port}/", "events": ["batch.ended"]}
        alone = server.client.submit(prompt="x", steps=2, webhook=webhook)
        assert [(one["code"], one["field"]) for one in alone["warnings"]] == [("no_effect", "webhook.events")]
        asked = [{"prompt": "x"}, {"prompt": "y"}, {"width": -1}]
        made = server.client.create_batch(asked, defaults={"steps": 2, "webhook": webhook}, skip_invalid=True)
        wait_for(lambda: receiver.got, 60)
        batch = server.client.batch(made["id"])
        assert (batch["state"], batch["counts"]) == ("partially_succeeded", {"succeeded": 2, "failed": 1})
        assert all(server.client.session(item["session_id"])["warnings"] == [] for item in batch["items"][:2])
        wait_for(lambda: server.client.session(alone["id"])["state"] == "succeeded", 60)
        ((_, told),) = receiver.got
        assert (told["type"], told["data"]) == ("batch.ended", batch)
        many = [{"webhook": webhook | {"url": f"{webhook['url']}{number}"}} for number in range(17)]
        with pytest.raises(MezzotintError, match=r"17 URLs ask for batch\.ended; at most 16"):
            server.client.create_batch(many)


def test_a_server_that_calls_nobody_any_more_says_so_of_what_was_to_be_told(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunningServer(tmp_path / "data") as server:
        url = f"http://127.0.0.1:{receiver.server_port}/"
        session_id = server.client.submit(prompt="x", steps=2, webhook={"url": url})["id"]
        wait_for(lambda: receiver.got, 60)
    for name in ("HOSTS", "NETWORKS", "SECRETS"):
        monkeypatch.delenv(f"MEZZOTINT_WEBHOOK_{name}")
    with RunningServer(tmp_path / "data") as server:
        wait_for(lambda: server.client.session(session_id)["warnings"], 30)
        (warning,) = server.client.session(session_id)["warnings"]
        assert (warning["code"], "webhooks are off" in warning["message"]) == ("webhook_off", True)


def test_a_server_killed_before_it_wrote_down_the_answer_tells_it_again(tmp_path: Path, receiver: Receiver) -> None:
    receiver.may_answer.set()
    with RunningServer(tmp_path / "data", failpoints="webhook.before_ack=kill") as server:
        url = f"http://127.0.0.1:{receiver.server_port}/"
        session_id = server.client.submit(prompt="x", steps=2, webhook={"url": url})["id"]
        server.process.wait(END_S)
        server.client.close()
        (first,) = receiver.got
        server.start()
        wait_for(lambda: len(receiver.got) > 1, 30)
        assert receiver.got == [first, first]
        assert server.client.session(session_id)["state"] == "succeeded"
