"""What hostile callers send: each gets its promised answer, and the server stays as it was."""

import contextlib
import json
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from mezzotint.api.events import MAX_STREAMS
from mezzotint.errors import CallerError
from mezzotint.schema import RequestInput
from tests.pictures import encoded, picture
from tests.process.conftest import RunningServer, wait_for

SESSIONS = "/api/inference/sessions"
JSON = {"Content-Type": "application/json"}
JSON_POST = f"POST {SESSIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
MAX_GROWTH_BYTES = 64 << 20

# Bodies that are no request: what they are, and the status that each gets.
BODIES: dict[str, tuple[bytes, int]] = {
    "nothing": (b" ", 400),
    "half": (b'{"prompt": "x', 400),
    "not a number": (b'{"eta": NaN}', 400),
    "infinity": (b'{"guidance_scale": -Infinity}', 400),
    "a number beyond doubles": (b'{"guidance_scale": 1e999}', 400),
    "5,000 digits": (b'{"seed": ' + b"9" * 5000 + b"}", 400),
    "a name twice": (b'{"steps": 1, "steps": 2}', 400),
    "two spellings of a name": (b'{"steps": 1, "Steps": 2}', 422),
    "deep lists": (b"[" * 10_000 + b"]" * 10_000, 400),
    "deep objects": (b'{"metadata":' * 40 + b"1" + b"}" * 40, 400),
    "a lone surrogate": (b'{"prompt": "\\ud800"}', 400),
    "no UTF-8": (b'{"prompt": "\xff\xfe"}', 400),
    "UTF-16": ('{"prompt": "x"}'.encode("utf-16"), 400),
    "a byte order mark": (b'\xef\xbb\xbf{"prompt": "x"}', 400),
    "a list": (b"[]", 422),
    "null": (b"null", 422),
    "a prompt of a megabyte": (json.dumps({"prompt": "x" * 1_000_000}).encode(), 422),
    "wrong types": (b'{"prompt": [], "steps": "many", "loras": {}, "output": 5, "seed": 1.5}', 422),
    "sizes that overflow": (b'{"width": 9223372036854775807, "height": -1}', 422),
    "a seed that overflows": (b'{"seed": 9223372036854775807, "num_images": 2}', 422),
    "a name that is a path": (b'{"model": "../../../etc/passwd"}', 422),
    "a picture that is a path": (b'{"image": "/etc/passwd"}', 422),
    "a picture that is an address": (b'{"image": "http://127.0.0.1/"}', 422),
    "a name that is code": (b'{"__class__": "x", "constructor": {"prototype": 1}}', 422),
    "many names": (json.dumps({f"field{i}": i for i in range(20_000)}).encode(), 422),
    "much metadata": (json.dumps({"metadata": {"x": "y" * 100_000}}).encode(), 422),
}


def post(server: RunningServer, body: bytes, path: str = SESSIONS, **headers: str) -> httpx2.Response:
    return httpx2.post(server.url + path, content=body, headers=JSON | headers, timeout=30)


def raw(server: RunningServer, *parts: bytes) -> socket.socket:
    opened = socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port))
    opened.settimeout(30)
    for part in parts:
        opened.sendall(part)
    return opened


def first_line(opened: socket.socket) -> bytes:
    return opened.makefile("rb").readline().strip()


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request_gets_its_status(server: RunningServer, name: str) -> None:
    body, status = BODIES[name]
    answer = post(server, body)
    assert answer.status_code == status
    assert answer.json()["code"]
    assert "Traceback" not in answer.text
    assert "/etc/passwd\n" not in answer.text


def test_the_whole_corpus_again_and_again_leaves_memory_and_the_queue_as_they_were(server: RunningServer) -> None:
    process = psutil.Process(server.process.pid)
    for body, _ in BODIES.values():
        post(server, body)
    before = process.memory_info().rss
    for path in (SESSIONS, "/v1/images/generations", "/sdapi/v1/txt2img", "/api/inference/validate"):
        for body, status in BODIES.values():
            if path.startswith("/sdapi") and status != 400:
                continue  # AUTOMATIC1111 ignores what it does not know, and draws
            answer = post(server, body, path)
            assert answer.status_code < 500, (path, body[:64])
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES
    assert list(server.client.sessions(active=True)) == []


def test_every_answer_says_how_a_browser_is_to_treat_it(server: RunningServer) -> None:
    for path in ("/docs", "/livez", SESSIONS, "/nope", "/openapi.json"):
        headers = httpx2.get(server.url + path).headers
        assert "default-src" in headers["content-security-policy"], path
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "no-store" in headers["cache-control"]
        assert not [name for name in headers if name.startswith("access-control")]


def test_the_page_of_routes_loads_nothing_and_runs_nothing(server: RunningServer) -> None:
    page = httpx2.get(f"{server.url}/docs").text
    assert SESSIONS in page
    assert "<script" not in page
    assert "http" not in page.lower().split("<table>")[0]


@pytest.mark.parametrize(
    "host", [b"", b"Host: \r\n", b"Host: a\r\nHost: b\r\n", b"Host: a/b\r\n", b"Host: user@localhost\r\n"]
)
def test_a_host_that_is_missing_double_or_malformed_is_refused(server: RunningServer, host: bytes) -> None:
    with raw(server, b"GET /livez HTTP/1.1\r\n" + host + b"\r\n") as opened:
        assert first_line(opened).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"X-%d: 1\r\n" % i for i in range(80)),
        b"X-Long: " + b"x" * 20_000 + b"\r\n",
        b"Cookie: " + b"a=b; " * 5000 + b"\r\n",
    ],
)
def test_too_many_or_too_long_headers_end_the_connection(server: RunningServer, headers: bytes) -> None:
    with raw(server, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n", headers, b"\r\n") as opened:
        answer = opened.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431")
    assert b"Content-Type: application/problem+json" in head
    told = json.loads(body)
    assert (told["code"], told["status"], told["request_id"].encode() in head) == ("headers_too_large", 431, True)


def test_headers_without_end_take_no_memory(server: RunningServer) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with raw(server, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n") as opened, pytest.raises(ConnectionError):
        opened.sendall((b"X-Flood: " + b"x" * 8192 + b"\r\n") * 4096)
    assert process.memory_info().rss - before < 8 << 20
    assert httpx2.get(f"{server.url}/livez").status_code == 200


@pytest.mark.parametrize(
    "start",
    [
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"GET ",
        JSON_POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
    ids=["of headers", "of the URL", "after a body"],
)
def test_a_line_without_end_is_refused(server: RunningServer, start: bytes) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with raw(server, start) as opened, pytest.raises(ConnectionError):
        opened.sendall(b"a" * (64 << 20))
    assert process.memory_info().rss - before < 8 << 20
    with raw(server, start) as opened:
        for _ in range(20):
            time.sleep(0.01)  # in parts of its own, and none left when the answer comes
            opened.sendall(b"a" * 1024)
            if select.select([opened], [], [], 0)[0]:
                break
        assert first_line(opened).startswith(b"HTTP/1.1 431")


def test_a_stray_byte_or_the_rest_of_a_body_does_not_hold_a_connection(server: RunningServer) -> None:
    unread = b"Content-Length: 9\r\n"
    opened = [raw(server, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + one + b"\r\n") for one in (b"", unread)]
    for one in opened:
        assert one.recv(4096).startswith(b"HTTP/1.1 200")
        one.sendall(b"\r\n")
    began = time.monotonic()
    for one in opened:
        assert one.recv(1) == b""
        one.close()
    assert time.monotonic() - began < 20


def test_slow_headers_and_dripping_bodies_are_cut_off_and_quick_callers_are_not(server: RunningServer) -> None:
    start = f"POST {SESSIONS} HTTP/1.1\r\nHost: localhost\r\n".encode()
    slow = raw(server, start)
    silent = raw(server)
    dripping = raw(server, start, b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
    began = time.monotonic()
    answer = first_line(dripping)
    assert answer.startswith(b"HTTP/1.1 408")
    assert slow.recv(1) == b""
    assert silent.recv(1) == b""
    assert 5 < time.monotonic() - began < 20
    for opened in (slow, silent, dripping):
        opened.close()
    assert httpx2.get(f"{server.url}/livez").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Length": "99999999999"}, 413),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "text/plain"}, 415),
    ],
)
def test_a_body_is_refused_before_it_is_read(server: RunningServer, headers: dict[str, str], status: int) -> None:
    sent = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": "10"} | headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    with raw(server, f"POST {SESSIONS} HTTP/1.1\r\n{lines}\r\n".encode()) as opened:  # and no body at all
        assert first_line(opened).startswith(f"HTTP/1.1 {status}".encode())


def test_a_body_that_does_not_say_how_long_it_is_is_counted(server: RunningServer) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * (1 << 20)

    try:
        answer = httpx2.post(server.url + SESSIONS, content=endless(), headers=JSON, timeout=60)
    except httpx2.TransportError:
        return  # cut off in mid-sending, as clients of other kinds see it
    assert answer.status_code == 413


def test_a_body_of_very_many_lists_takes_no_memory_and_no_time(server: RunningServer) -> None:
    process, began = psutil.Process(server.process.pid), time.monotonic()
    before = process.memory_info().rss
    answer = post(server, b"[" + b"[]," * (8 << 18) + b"[]]")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")
    assert time.monotonic() - began < 1
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES


@pytest.mark.parametrize(
    "names", [[f"field{i}" for i in range(50_000)], [x * (8 << 20) for x in "xyz"]], ids=["many", "long"]
)
def test_names_that_nobody_knows_cost_next_to_nothing(server: RunningServer, names: list[str]) -> None:
    for body in (dict.fromkeys(names, 1), {"type": "get_capabilities", **dict.fromkeys(names, 1)}):
        began = time.monotonic()
        answer = post(server, json.dumps(body).encode(), "/api/inference/operations" if "type" in body else SESSIONS)
        assert time.monotonic() - began < 2
        assert len(answer.content) < 100_000
        assert ("49900 more faults are not told" in answer.text) == (len(names) > 3)


@pytest.mark.parametrize("path", ["/api/assets", "/v1/images/edits"])
def test_a_form_does_not_choose_its_decoder(server: RunningServer, path: str) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="\\ud800"\r\n\r\nx\r\n--b--\r\n'
    for charset in ("punycode", '"unicode_escape"', "idna"):
        headers = {"Content-Type": f"multipart/form-data; charset={charset}; boundary=b"}
        answer = httpx2.post(server.url + path, content=part, headers=headers)
        assert (answer.status_code, charset) == (415, charset)
    headers = {"Content-Type": "multipart/form-data; charset=UTF-8; boundary=b"}
    assert httpx2.post(server.url + path, content=part, headers=headers).status_code in (400, 422)


@pytest.mark.parametrize("length", ["0" * 5000, "0" * 20 + "99999999"])
def test_a_length_of_many_digits_is_refused(server: RunningServer, length: str) -> None:
    head = f"POST {SESSIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    with raw(server, f"{head}Content-Length: {length}\r\n\r\n".encode()) as opened:
        answer = opened.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"application/problem+json" in answer


def test_chunks_are_counted_where_no_picture_is_taken(server: RunningServer) -> None:
    body = (b" " * (1 << 18) for _ in range(6))
    answer = httpx2.post(f"{server.url}{SESSIONS}/ses_0/cancel", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * MAX_STREAMS, reason="too few files may be open")
def test_no_more_streams_are_told_than_was_promised(server: RunningServer) -> None:
    feed, drawn = "/api/inference/events", {"prompt": "x", "num_inference_steps": 1, "stream": True}
    with contextlib.ExitStack() as opened:
        for _ in range(MAX_STREAMS):
            line = opened.enter_context(raw(server, f"GET {feed} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()))
            assert line.recv(12) == b"HTTP/1.1 200"
        for answer in (
            httpx2.get(server.url + feed),
            post(server, json.dumps(drawn).encode(), "/v1/images/generations"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
            assert answer.headers["retry-after"] == "10"
    assert list(server.client.sessions(active=True)) == []
    drawing = json.dumps(drawn).encode()
    wait_for(lambda: post(server, drawing, "/v1/images/generations").status_code == 200, 30)


def test_no_address_in_any_field_is_called(server: RunningServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        url = f"http://127.0.0.1:{canary.getsockname()[1]}/canary.png"
        bodies: list[dict[str, Any]] = [{"steps": 1, name: url} for name in RequestInput.model_fields]
        bodies += [{"webhook": {"url": url}}, {"loras": [{"name": url}]}, {"metadata": {"url": url}, "steps": 1}]
        bodies += [{"controlnets": [{"model": url, "image": url}]}, {"prompt": url, "steps": 1}]
        for body in bodies:
            answer = post(server, json.dumps(body).encode())
            assert answer.status_code < 500, body
            if answer.status_code == 202 and "prompt" in body:
                server.client.wait(answer.json()["id"])
            elif answer.status_code == 202:
                with contextlib.suppress(CallerError):  # it has ended
                    server.client.cancel(answer.json()["id"])
        assert select.select([canary], [], [], 0.5)[0] == []


def test_what_is_no_http_and_what_is_a_websocket_leave_lines_of_json(server: RunningServer) -> None:
    before = len(server.log.read_text())
    upgrade = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    for sent, status in ((b"\x16\x03\x01\r\n\r\n", b"400"), (upgrade, b"200")):
        with raw(server, sent) as opened:
            assert first_line(opened).startswith(b"HTTP/1.1 " + status)
    told = [json.loads(line) for line in server.log.read_text()[before:].splitlines()]
    assert {"Invalid HTTP request received.", "Unsupported upgrade request."} <= {line["event"] for line in told}


def test_workers_and_the_image_child_have_no_network(server: RunningServer) -> None:
    httpx2.post(f"{server.url}/api/assets", files={"file": encoded(picture())}).raise_for_status()
    (worker,) = httpx2.get(f"{server.url}/api/workers").json()["workers"]
    children = [one for one in psutil.Process(server.process.pid).children() if one.status() != psutil.STATUS_ZOMBIE]
    assert worker["pid"] in [one.pid for one in children]
    for child in children:
        for namespace in Path(f"/proc/{child.pid}/task").glob("*/ns/net"):
            assert namespace.readlink() != Path("/proc/self/ns/net").readlink() or worker["network"] == "guarded"


@pytest.mark.parametrize("start", ["limits.limit_myself()", "limits.guard_network()"])
def test_what_a_child_does_first_leaves_it_no_network(start: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        call = f"import socket; from mezzotint.workers import limits; {start}; a, b = socket.socketpair(); "
        call += f"a.send(b'x'); b.recv(1); socket.create_connection(('127.0.0.1', {canary.getsockname()[1]}))"
        done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
        assert done.stderr.splitlines()[-1].startswith(("OSError", "PermissionError"))
        assert select.select([canary], [], [], 0)[0] == []


def test_a_caller_who_leaves_in_the_middle_of_a_body_is_no_error_of_ours(server: RunningServer) -> None:
    where = urlsplit(server.url)
    before = len(server.log.read_text())
    for _ in range(5):
        with socket.create_connection((where.hostname, where.port)) as line:
            head = f"POST {SESSIONS} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
            line.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    wait_for(lambda: server.log.read_text()[before:].count("before the body was whole") == 5, 30)
    assert "unhandled error" not in server.log.read_text()[before:]
