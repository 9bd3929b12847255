"""The native routes on a real server, as a caller sees them."""

import hashlib
import io
import json
import re
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from mezzotint.errors import CallerError, InvalidRequest, MezzotintError
from tests.process.conftest import RunningServer, wait_for

SESSIONS = "/api/inference/sessions"
JSON = {"Content-Type": "application/json"}


def http(server: RunningServer, method: str, path: str, **options: Any) -> httpx2.Response:
    return httpx2.request(method, server.url + path, **options)


def test_a_request_becomes_a_picture_and_its_story_is_told_in_order(server: RunningServer) -> None:
    accepted = server.client.submit(prompt="a red apple", seed=3, steps=4)
    assert accepted["state"] == "queued"
    told = list(server.client.events(accepted["id"]))
    assert [number for number, _, _ in told] == sorted({number for number, _, _ in told})
    assert [data["state"] for _, kind, data in told if kind == "state"] == ["queued", "running", "succeeded"]
    assert [data["step"] for _, kind, data in told if kind == "progress" and data["phase"] == "denoising"][-1] == 4
    fractions = [data["fraction"] for _, kind, data in told if kind == "progress"]
    assert fractions == sorted(fractions)
    assert told[-1][1] == "end"

    session = server.client.session(accepted["id"])
    assert session["request"]["seed"] == 3
    assert session["progress"] | {"phase": None} == session["progress"]
    assert session["progress"]["fraction"] == 1.0
    assert session["usage"]["steps_run"] == 4
    assert session["usage"]["device_s"] > 0
    timing = session["timing"]
    spans = sum(timing[f"{name}_s"] for name in ("queued", "loading", "encoding", "denoising", "decoding", "storing"))
    assert spans == pytest.approx(timing["total_s"], abs=0.001)

    (image,) = session["images"]
    answer = http(server, "GET", image["url"])
    assert hashlib.sha256(answer.content).hexdigest() == image["sha256"] == answer.headers["etag"].strip('"')
    assert Image.open(io.BytesIO(answer.content)).size == (128, 128)
    again = http(server, "GET", image["url"], headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_listener_that_comes_back_gets_what_it_missed(server: RunningServer) -> None:
    session_id = server.client.submit(prompt="x", steps=3)["id"]
    first = [(number, kind) for number, kind, _ in server.client.events(session_id)]
    stored = [(number, kind) for number, kind in first if kind != "progress"]
    again = [(number, kind) for number, kind, _ in server.client.events(session_id, after=stored[1][0])]
    assert again == stored[2:]


def test_a_listener_from_behind_the_last_event_is_told_the_end(server: RunningServer) -> None:
    session_id = server.client.submit(prompt="x", steps=60)["id"]
    running = [kind for _, kind, _ in server.client.events(session_id, after=2**62)]
    assert running[-1:] == ["end"]
    for after in ([number for number, _, _ in server.client.events(session_id)][-1], 2**62):
        told = [(kind, data["state"]) for _, kind, data in server.client.events(session_id, after=after)]
        assert told == [("state", "succeeded"), ("end", "succeeded")]


def test_the_events_of_a_session_that_waits_tell_its_place(server: RunningServer) -> None:
    with httpx2.stream("GET", f"{server.url}/api/inference/events", timeout=30) as everything:
        lines = everything.iter_lines()
        next(lines)
        ids = [server.client.submit(prompt="x", steps=1000, num_images=8)["id"] for _ in range(4)]
        told = next(
            data
            for data in (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))
            if (data.get("id"), data.get("state")) == (ids[3], "queued")
        )
    _, kind, data = next(server.client.events(ids[3]))
    for session_id in ids:
        server.client.cancel(session_id)
    assert told["queue_position"] is not None
    assert (kind, data["state"], data["queue_position"]) == ("state", "queued", 1)


def test_equal_requests_give_equal_bytes_and_image_i_is_seed_plus_i(server: RunningServer) -> None:
    asked: dict[str, Any] = {"prompt": "a boat", "steps": 3, "deterministic": True}
    ids = [server.client.submit(**asked, seed=5, num_images=2)["id"], server.client.submit(**asked, seed=6)["id"]]
    first, second = (server.client.wait(session_id) for session_id in ids)
    assert [image["seed"] for image in first["images"]] == [5, 6]
    assert first["images"][1]["sha256"] == second["images"][0]["sha256"]
    assert first["images"][0]["sha256"] != second["images"][0]["sha256"]


def test_prefer_wait_answers_with_the_end(server: RunningServer) -> None:
    options: dict[str, Any] = {"json": {"prompt": "x", "steps": 2}, "timeout": 60}
    answer = http(server, "POST", SESSIONS, headers={"Prefer": "wait=60"}, **options)
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")
    assert answer.headers["location"] == f"{SESSIONS}/{answer.json()['id']}"
    for wrong in (b"wait=0", b"wait=601", b"wait=\xb2"):
        bad = http(server, "POST", SESSIONS, headers={b"Prefer": wrong}, **options)
        assert (bad.status_code, bad.json()["field"]) == (422, "Prefer")


def test_cancel_stops_a_running_session_and_leaves_its_neighbour_alone(server: RunningServer) -> None:
    long = server.client.submit(prompt="long", steps=1000, seed=1)["id"]
    neighbour = server.client.submit(prompt="neighbour", steps=5, seed=1)["id"]
    wait_for(lambda: server.client.session(long)["progress"]["step"] > 0, 60)
    answered = server.client.cancel(long)
    assert answered["cancel_requested"]
    assert server.client.cancel(long)["cancel_requested"]  # twice while pending is once
    ended = server.client.wait(long)
    assert (ended["state"], ended["images"]) == ("cancelled", [])
    assert ended["usage"]["steps_run"] < 1000
    with pytest.raises(CallerError) as caught:
        server.client.cancel(long)
    assert caught.value.code == "session_ended"
    assert server.client.wait(neighbour)["state"] == "succeeded"


def test_what_comes_with_a_cancel_is_read(server: RunningServer) -> None:
    session_id = server.client.submit(prompt="long", steps=1000)["id"]
    path = f"{SESSIONS}/{session_id}/cancel"
    broken = http(server, "POST", path, content=b"not json", headers={"Content-Type": "application/json"})
    assert broken.json()["code"] == "invalid_json"
    refused = http(server, "POST", path, json={"raeson": "none", "Reason": 5}).json()
    assert {fault["field"]: fault["code"] for fault in refused["errors"]} == {
        "raeson": "unknown_field",
        "reason": "invalid_value",
    }
    assert not server.client.session(session_id)["cancel_requested"]
    assert http(server, "POST", path, json={"Reason": "changed my mind"}).status_code == 200
    assert server.client.wait(session_id)["state"] == "cancelled"


def test_timeout_and_expiry_end_a_session_with_their_own_code(server: RunningServer) -> None:
    slow = server.client.submit(prompt="slow", steps=1000, timeout_s=0.5)["id"]
    ended = server.client.wait(slow)
    assert (ended["state"], ended["error"]["code"]) == ("failed", "timeout")
    blocking = [server.client.submit(prompt="b", steps=1000, num_images=8, priority=9)["id"] for _ in range(2)]
    late = server.client.submit(prompt="late", expires_s=0.2, priority=0)["id"]
    ended = server.client.wait(late)
    for session_id in blocking:
        server.client.cancel(session_id)
        server.client.wait(session_id)
    assert (ended["state"], ended["error"]["code"]) == ("expired", "expired")


@pytest.mark.parametrize("cancels", [True, False])
def test_a_waiting_caller_who_leaves_cancels_if_that_was_asked(server: RunningServer, cancels: bool) -> None:
    body = {"prompt": "left alone", "steps": 1000, "cancel_on_disconnect": cancels}
    headers = {"Prefer": "wait=60", "Idempotency-Key": f"leaves-{cancels}"}
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{server.url}{SESSIONS}", json=body, headers=headers, timeout=2)
    left = http(server, "POST", SESSIONS, json=body, headers={"Idempotency-Key": f"leaves-{cancels}"}).json()
    if cancels:
        assert server.client.wait(left["id"])["state"] == "cancelled"
    else:
        assert left["state"] == "running"
        server.client.cancel(left["id"])


def test_a_higher_priority_overtakes_what_runs_on_a_full_worker(server: RunningServer) -> None:
    parked = [server.client.submit(prompt="b", steps=1000, num_images=8, priority=1)["id"] for _ in range(3)]
    first = server.client.submit(prompt="first", steps=4, priority=9)["id"]
    assert server.client.wait(first)["state"] == "succeeded"
    assert [server.client.session(one)["state"] for one in parked] == ["running", "running", "queued"]
    for session_id in parked:
        server.client.cancel(session_id)
        server.client.wait(session_id)


def test_lists_filter_and_walk_page_by_page(server: RunningServer) -> None:
    ids = [server.client.submit(prompt="x", steps=1)["id"] for _ in range(5)]
    for session_id in ids:
        server.client.wait(session_id)
    page = http(server, "GET", f"{SESSIONS}?limit=2&state=succeeded").json()
    assert [session["id"] for session in page["sessions"]] == ids[:-3:-1]
    walked = [session["id"] for session in server.client.sessions(limit=2)]
    assert len(walked) == len(set(walked))
    assert set(ids) <= set(walked)
    assert list(server.client.sessions(active=True)) == []
    assert list(server.client.sessions(model="nope")) == []
    named = server.client.submit(prompt="A purple 100% Teapot", steps=1)["id"]
    for text, found in (("100% tea", [named]), ("1__%", []), ("teacup", [])):
        page = http(server, "GET", SESSIONS, params={"text": text}).json()
        assert [session["id"] for session in page["sessions"]] == found


def test_a_misspelt_filter_does_not_answer_everything(server: RunningServer) -> None:
    told = http(server, "GET", f"{SESSIONS}?stat=running&limit=1").json()
    assert (told["code"], told["field"]) == ("unknown_field", "stat")
    assert "did you mean state? parameters: active, state, type" in told["detail"]


def test_one_stream_tells_of_all_sessions_and_which_shared_a_call(server: RunningServer) -> None:
    with httpx2.stream("GET", f"{server.url}/api/inference/events", timeout=30) as stream:
        lines = stream.iter_lines()
        assert next(lines) == ": from now on"
        one = {
            "prompt": "x",
            "guidance_scale": 1,
        }  # a row each: calls of two are always worth it, on a busy machine too
        long = server.client.submit(**one, steps=1000)["id"]  # runs still, however late the other comes
        short = server.client.submit(**one, steps=60)["id"]
        calls: dict[str, set[int]] = {long: set(), short: set()}
        left = {long, short}
        kind = ""
        for line in lines:
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                body = json.loads(value)
                if kind == "progress" and body["call"] is not None and body["session_id"] in calls:
                    calls[body["session_id"]].add(body["call"])
                elif kind == "end":
                    left.discard(body["session_id"])
                    if left == {long}:
                        server.client.cancel(long)
                    if not left:
                        break
    assert len(calls[short]) == 60
    assert calls[long] & calls[short]


def test_delete_removes_an_ended_session_and_its_pictures(server: RunningServer) -> None:
    session_id = server.client.submit(prompt="x", steps=1)["id"]
    server.client.wait(session_id)
    folder = server.data / "sessions" / session_id
    assert list(folder.iterdir())
    server.client.delete(session_id)
    assert not folder.exists()
    with pytest.raises(CallerError) as caught:
        server.client.session(session_id)
    assert caught.value.code == "session_not_found"


def test_a_bad_request_is_told_every_fault_in_one_problem(server: RunningServer) -> None:
    with pytest.raises(InvalidRequest) as caught:
        server.client.submit(prompt=5, stpes=3, width=63)
    assert {fault.field for fault in caught.value.faults} == {"prompt", "stpes", "width"}
    answer = http(server, "POST", SESSIONS, json={"stpes": 3})
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["code"], body["field"]) == (422, "unknown_field", "stpes")
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["error"] == {
        "message": body["detail"],
        "type": "invalid_request_error",
        "param": "stpes",
        "code": "unknown_field",
    }


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nope", {}, 404, "unknown_url"),
        ("GET", f"{SESSIONS}/ses_nope", {}, 404, "session_not_found"),
        ("GET", f"{SESSIONS}/ses_nope/events", {}, 404, "session_not_found"),
        ("POST", f"{SESSIONS}/ses_nope/cancel", {}, 404, "session_not_found"),
        ("GET", f"{SESSIONS}/..%2f..%2fetc", {}, 404, None),
        ("GET", "/api/models/nope", {}, 404, "model_not_found"),
        ("GET", "/api/devices/cuda:7", {}, 404, "device_not_found"),
        ("PUT", SESSIONS, {}, 405, "method_not_allowed"),
        ("GET", f"{SESSIONS}?limit=0", {}, 422, "invalid_value"),
        ("GET", f"{SESSIONS}?state=runing", {}, 422, "invalid_value"),
        ("GET", f"{SESSIONS}?cursor=%00", {}, 422, "invalid_value"),
        ("GET", f"{SESSIONS}?cursor=", {}, 422, "invalid_value"),
        ("GET", f"{SESSIONS}?state=failed&state=queued", {}, 422, "duplicate_field"),
        ("POST", f"{SESSIONS}?wait=60", {"json": {}}, 422, "unknown_field"),
        ("GET", "/api/models?kind=lora", {}, 422, "unknown_field"),
        *(
            (method, f"{path}?kind=lora", {}, 422, "unknown_field")
            for method, path in (
                ("GET", f"{SESSIONS}/nope/events"),
                ("GET", "/api/inference/events"),
                ("GET", f"{SESSIONS}/nope/images/0"),
                ("DELETE", f"{SESSIONS}/nope"),
                ("GET", "/api/assets/nope"),
                ("GET", "/api/models/nope/thumbnail"),
            )
        ),
        ("GET", "/api/analytics?window=60", {}, 422, "unknown_field"),
        ("POST", SESSIONS, {"content": "{", "headers": {"Content-Type": "application/json"}}, 400, "invalid_json"),
        (
            "POST",
            SESSIONS,
            {"content": "[" * 5000, "headers": {"Content-Type": "application/json"}},
            400,
            "invalid_json",
        ),
        ("POST", SESSIONS, {"content": '{"seed":NaN}', "headers": {"Content-Type": "application/json"}}, 400, None),
        ("POST", SESSIONS, {"content": "steps=3"}, 415, "unsupported_media_type"),
        ("POST", SESSIONS, {"json": {}, "headers": {"Content-Encoding": "gzip"}}, 415, "unsupported_media_type"),
        ("POST", SESSIONS, {"content": "{", "headers": JSON | {"Content-Encoding": "identity"}}, 400, "invalid_json"),
        ("POST", SESSIONS, {"json": {"prompt": "x" * (33 << 20)}}, 413, "body_too_large"),
        ("POST", f"{SESSIONS}/x/cancel", {"json": {"reason": "x" * 2_000_000}}, 413, "body_too_large"),
        ("POST", SESSIONS, {"json": {}, "headers": {"Idempotency-Key": ""}}, 422, "invalid_value"),
        ("POST", SESSIONS, {"json": {}, "headers": {"Idempotency-Key": "k" * 256}}, 422, "invalid_value"),
        ("GET", "/livez", {"headers": {"Host": "evil.example"}}, 421, "bad_host"),
        ("GET", "/livez", {"headers": {"Origin": "http://evil.example"}}, 403, "cross_site"),
        ("GET", "/livez", {"headers": {"Origin": "null"}}, 403, "cross_site"),
        ("GET", "/livez", {"headers": {"Sec-Fetch-Site": "cross-site"}}, 403, "cross_site"),
    ],
)
def test_what_cannot_be_answered_gets_its_own_code(
    server: RunningServer, method: str, path: str, options: dict[str, Any], status: int, code: str | None
) -> None:
    answer = http(server, method, path, **options)
    assert answer.status_code == status
    assert answer.headers["x-request-id"].startswith("req_")
    if code is not None:
        assert answer.json()["code"] == code
    if status == 405:
        assert answer.headers["allow"] == "HEAD, GET, POST"


ONE_KEY = "Idempotency-Key must be 1 to 255 printable ASCII characters, or left out; got "
BATCHES = "/api/inference/batches"


@pytest.mark.parametrize(
    ("method", "path", "options", "words"),
    [
        ("POST", SESSIONS, {"json": {}, "headers": {"Idempotency-Key": "k" * 256}}, ONE_KEY + '"kkk'),
        ("POST", SESSIONS, {"json": {}, "headers": {"Prefer": "x" * 257}}, "Prefer must be a text of at most 256 char"),
        ("POST", BATCHES, {"json": {"requests": [{}] * 1001}}, "requests must be a list of 1 to 1000; got 1001"),
        ("POST", BATCHES, {"json": {"requests": []}}, "requests must be a list of 1 to 1000; got []"),
        ("POST", BATCHES, {"json": {"requests": "all"}}, 'requests must be a list of 1 to 1000; got "all"'),
        ("POST", BATCHES, {"json": {"requests": [{}], "skip_invalid": 1}}, "skip_invalid must be true or false; got 1"),
        ("POST", BATCHES, {"json": {"requests": [{}], "defaults": []}}, "defaults must be an object; got []"),
        ("POST", f"{SESSIONS}/x/cancel", {"json": {"reason": 5}}, "reason must be a text of at most 1000 characters"),
        ("POST", "/api/models/tiny/load", {"json": {"device": 5}}, "device must be a text; got 5"),
        ("POST", "/api/models/tiny/load", {"json": {"device": "x" * 257}}, "device must be a text of at most 256 char"),
        ("POST", "/api/models/blob/load", {}, "model 'blob' is a lora, which goes with the checkpoint it is used with"),
        ("PATCH", "/api/models/blob", {"json": {"width": 64}}, "is a lora, which goes with the checkpoint it is used"),
        ("GET", f"{SESSIONS}?limit=0", {}, 'limit must be a whole number from 1 to 200; got "0"'),
        ("GET", f"{SESSIONS}?limit=many", {}, 'limit must be a whole number from 1 to 200; got "many"'),
        ("GET", f"{SESSIONS}?active=perhaps", {}, 'active must be true or false; got "perhaps"'),
        ("GET", f"{SESSIONS}?cursor=x", {}, 'cursor must be the next_cursor of a page, or left out; got "x"'),
        ("GET", f"{SESSIONS}/x/images/first", {}, 'index must be a whole number; got "first"'),
        ("GET", f"{SESSIONS}/x/images/0?size=large", {}, "size must be one of 'full' or 'thumb'; got \"large\""),
        (
            "GET",
            f"{SESSIONS}/x/events",
            {"headers": {"Last-Event-ID": "x"}},
            "Last-Event-Id must be a whole number from",
        ),
        ("GET", "/api/analytics?window_s=nan", {}, "window_s must be a number above 0 and at most 7776000"),
        ("GET", "/v1/images/files/x/0", {}, "until is missing; signature is missing"),
        (
            "GET",
            f"/sdapi/v1/progress?skip_current_image=perhaps&id_task={'x' * 129}",
            {},
            "id_task must be a text of at",
        ),
        (
            "POST",
            "/api/assets",
            {"files": [("file", ("a", b"x"))] * 2},
            "has more files, fields or text in a field than",
        ),
    ],
)
def test_what_a_parameter_must_be_is_said_in_our_words(
    server: RunningServer, method: str, path: str, options: dict[str, Any], words: str
) -> None:
    told = http(server, method, path, **options).json()
    assert words in told["detail"]
    assert "hould " not in told["detail"]
    assert "errors" not in told or told["errors"][0]["message"].startswith(told["field"] or "")


@pytest.mark.parametrize(
    ("sent", "status", "part"),
    [
        ("bytes=0-7", 206, slice(0, 8)),
        ("bytes=8-", 206, slice(8, None)),
        ("BYTES=-8", 206, slice(-8, None)),
        ("bytes=0-99999999", 206, slice(None)),
        ("bytes=0-1,4-5", 200, slice(None)),
        ("pixels=0-1", 200, slice(None)),
        ("bytes=99999999-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=5-2", 416, None),
        ("bytes=", 416, None),
        ("bytes=first-last", 416, None),
        ("bytes=" + "9" * 5000, 416, None),
    ],
)
def test_one_range_of_a_picture_is_sent_and_what_is_none_is_a_problem(
    server: RunningServer, sent: str, status: int, part: slice | None
) -> None:
    ended = http(server, "POST", SESSIONS, json={"steps": 1}, headers={"Prefer": "wait=60"}).json()
    whole = http(server, "GET", ended["images"][0]["url"])
    answer = http(server, "GET", ended["images"][0]["url"], headers={"Range": sent})
    assert answer.status_code == status
    if part is not None:
        assert answer.content == whole.content[part]
        return
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["content-range"] == f"bytes */{len(whole.content)}"
    assert (answer.json()["code"], answer.json()["field"]) == ("range_not_satisfiable", "Range")
    other = {"Range": sent, "If-Range": '"another picture"'}
    assert http(server, "GET", ended["images"][0]["url"], headers=other).content == whole.content


@pytest.mark.parametrize("prefer", ["respond-async, wait=60; late=no", 'Wait = "60"', "wait=60, wait=0"])
def test_a_preference_may_have_what_rfc_7240_lets_it_have(server: RunningServer, prefer: str) -> None:
    answer = http(server, "POST", SESSIONS, json={"steps": 1}, headers={"Prefer": prefer})
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")


def test_a_picture_that_is_just_being_removed_is_not_there(server: RunningServer) -> None:
    ended = http(server, "POST", SESSIONS, json={"steps": 1}, headers={"Prefer": "wait=60"}).json()
    shutil.rmtree(server.data / "sessions" / ended["id"])  # as between the look-up of a row and its removal
    gone = http(server, "GET", ended["images"][0]["url"])
    assert (gone.status_code, gone.json()["code"]) == (404, "image_not_found")


def test_head_is_answered_as_get_without_the_body(server: RunningServer) -> None:
    ended = http(server, "POST", SESSIONS, json={"steps": 1}, headers={"Prefer": "wait=60"}).json()
    for path in ("/livez", SESSIONS, ended["images"][0]["url"], f"{SESSIONS}/ses_nope"):
        with_body, head = (http(server, method, path, headers={"X-Field-Case": "camel"}) for method in ("GET", "HEAD"))
        same = ("content-length", "content-type", "etag")
        assert [head.headers.get(name) for name in same] == [with_body.headers.get(name) for name in same]
        assert (head.status_code, head.content) == (with_body.status_code, b"")
    stream = http(server, "HEAD", "/api/inference/events")
    assert (stream.status_code, stream.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")


def test_devices_workers_and_models_show_what_is(server: RunningServer) -> None:
    server.client.wait(server.client.submit(prompt="x", steps=1)["id"])
    (device,) = server.client.devices()
    assert (device["id"], device["kind"], device["state"]) == ("cpu:0", "cpu", "ready")
    assert 0 < device["memory"]["available_bytes"] < device["memory"]["total_bytes"]
    for name, value in device.items():
        known = value is not None or name in device["unknown"] or name == "reason"  # why it is not ready: it is
        assert known, f"{name} is null without a reason"
    (worker,) = server.client.workers()
    assert worker["pid"] == server.worker_pid()
    model = http(server, "GET", "/api/models/icons").json()
    assert (model["state"], model["kind"], model["width"]) == ("ready", "checkpoint", 128)
    wait_for(lambda: http(server, "GET", "/api/models/icons").json()["resident_on"] == ["cpu:0"], 5)


def test_a_model_is_known_by_the_picture_beside_it(server: RunningServer) -> None:
    models = server.client.models()
    assert models
    for model in models:
        assert model["thumbnail"] == f"/api/models/{model['id']}/thumbnail"
        answer = http(server, "GET", model["thumbnail"])
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).size == (256, 256)


def test_fifty_sessions_at_once_all_end_and_the_server_answers_meanwhile(server: RunningServer) -> None:
    ids: list[str] = []

    def send(seed: int) -> None:
        answer = http(server, "POST", SESSIONS, json={"prompt": "many", "steps": 2, "seed": seed}, timeout=60)
        ids.append(answer.json()["id"])

    senders = [threading.Thread(target=send, args=(seed,)) for seed in range(50)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert http(server, "GET", "/livez").status_code == 200
    ended = [server.client.wait(session_id) for session_id in ids]
    assert [session["state"] for session in ended] == ["succeeded"] * 50
    assert len({session["images"][0]["sha256"] for session in ended}) == 50


def test_twenty_equal_posts_at_once_make_one_session_and_another_body_is_refused(server: RunningServer) -> None:
    answers: list[httpx2.Response] = []

    def send() -> None:
        answers.append(
            http(server, "POST", SESSIONS, json={"steps": 40, "prompt": "x"}, headers={"Idempotency-Key": "k1"})
        )

    senders = [threading.Thread(target=send) for _ in range(20)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert {answer.status_code for answer in answers} == {202}
    (session_id,) = {answer.json()["id"] for answer in answers}
    server.client.wait(session_id)
    again = http(
        server,
        "POST",
        SESSIONS,
        content='{"prompt":"x","steps":40}',
        headers={"Idempotency-Key": "k1", "Content-Type": "application/json"},
    )
    assert (again.json()["id"], again.json()["state"]) == (session_id, "succeeded")
    other = http(server, "POST", SESSIONS, json={"steps": 2, "prompt": "x"}, headers={"Idempotency-Key": "k1"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    fresh = http(server, "POST", SESSIONS, json={"steps": 2, "prompt": "x"}, headers={"Idempotency-Key": "k2"})
    assert fresh.json()["id"] != session_id


def test_the_schema_names_every_route_and_field(server: RunningServer) -> None:
    schema = http(server, "GET", "/openapi.json").json()
    assert {SESSIONS, f"{SESSIONS}/{{session_id}}/events", "/api/workers", "/readyz"} <= schema["paths"].keys()
    body = schema["paths"][SESSIONS]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/RequestInput"}
    schemas = schema["components"]["schemas"]
    assert "num_inference_steps" in schemas["RequestInput"]["properties"]
    assert set(re.findall(r"#/components/schemas/(\w+)", json.dumps(schema))) <= schemas.keys()
    assert '"#/$defs' not in json.dumps(schema)


def test_no_answer_shows_a_path_an_address_or_a_traceback(server: RunningServer) -> None:
    texts = [
        http(server, "GET", path).text for path in ("/api/models", "/api/devices", "/api/workers", SESSIONS, "/nope")
    ]
    everything = json.dumps(texts)
    assert "Traceback" not in everything
    assert str(server.data) not in everything
    assert "bundled" not in everything


def test_a_server_that_is_not_there_is_said_so() -> None:
    from mezzotint.client import Client

    with Client("http://127.0.0.1:9") as client, pytest.raises(MezzotintError, match="mezzotint serve"):
        client.devices()


def test_a_server_on_an_address_of_ipv6_tells_one_that_can_be_called(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with RunningServer(tmp_path / "data", "--host", "::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert server.client.devices()[0]["id"] == "cpu:0"
