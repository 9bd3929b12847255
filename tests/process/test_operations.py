"""Batches, and every operation by name, on a real server and without one."""

import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mezzotint.config import load_settings
from mezzotint.operations.envelope import OPERATIONS
from mezzotint.server import Mezzotint
from tests.process.conftest import RunningServer, wait_for

URL = "/api/inference/operations"
FIVE = {"steps": 2, "width": 16, "height": 16}


@pytest.fixture(scope="module")
def folder(random_sd: Path) -> Path:
    return random_sd


def post(server: RunningServer, path: str, body: Any, **headers: str) -> httpx2.Response:
    return httpx2.post(server.url + path, json=body, headers=headers, timeout=60)


def operate(server: RunningServer, kind: str, **data: Any) -> dict[str, Any]:
    answer = post(server, URL, {"type": kind, "data": data, "request_id": "r1"})
    told: dict[str, Any] = answer.json()
    assert told["request_id"] == "r1"
    assert told.keys() == {"success", "data" if told["success"] else "error", "request_id"}
    assert told["success"] is (answer.status_code == 200)
    return told


def ended(server: RunningServer, batch_id: str) -> dict[str, Any]:
    wait_for(lambda: server.client.batch(batch_id)["state"] != "running", 60)
    found: dict[str, Any] = server.client.batch(batch_id)
    return found


def test_a_batch_runs_what_it_was_given_with_the_defaults(server: RunningServer) -> None:
    asked: list[dict[str, Any]] = [{"prompt": "a"}, {"prompt": "b", "numInferenceSteps": 3}, {"prompt": "c", "seed": 9}]
    made = server.client.create_batch(asked, defaults=FIVE | {"seed": 4}, metadata={"order": 7})
    told = ended(server, made["id"])
    assert (told["state"], told["counts"], told["metadata"]) == ("succeeded", {"succeeded": 3}, {"order": 7})
    assert told["progress"] == {"done": 3, "total": 3, "fraction": 1.0}
    sessions = [server.client.session(item["session_id"]) for item in told["items"]]
    requests = [session["request"] for session in sessions]
    assert [(one["prompt"], one["num_inference_steps"], one["seed"]) for one in requests] == [
        ("a", 2, 4),
        ("b", 3, 4),
        ("c", 2, 9),
    ]
    assert {session["batch_id"] for session in sessions} == {made["id"]}
    assert {one["id"] for one in server.client.sessions(batch=made["id"])} == {session["id"] for session in sessions}
    why = post(server, f"/api/inference/batches/{made['id']}/cancel", {"why": "x"})
    assert (why.status_code, why.json()["code"]) == (422, "unknown_field")
    late = post(server, f"/api/inference/batches/{made['id']}/cancel", None)
    assert (late.status_code, late.json()["code"]) == (409, "batch_ended")
    unknown = httpx2.get(f"{server.url}/api/inference/batches/bat_none")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "batch_not_found")


def test_one_fault_refuses_a_batch_or_becomes_a_failed_item(server: RunningServer) -> None:
    asked = {"requests": [FIVE, FIVE | {"width": 17}, "no", FIVE | {"model": "tini"}]}
    before = len(list(server.client.sessions()))
    refused = post(server, "/api/inference/batches", asked)
    faults = {fault["field"]: fault["code"] for fault in refused.json()["errors"]}
    assert refused.status_code == 422
    assert faults == {
        "requests[1].width": "unsupported_size",
        "requests[2]": "invalid_request",
        "requests[3].model": "model_not_found",
    }
    wrong = post(server, "/api/inference/batches", asked | {"skip_invalid": True, "metadata": 5, "nonsense": 1})
    assert {fault["field"] for fault in wrong.json()["errors"]} == {"nonsense", "metadata", *faults}
    assert len(list(server.client.sessions())) == before
    made = post(server, "/api/inference/batches", asked | {"skip_invalid": True}).json()
    told = ended(server, made["id"])
    assert told["state"] == "partially_succeeded"
    assert [(item["state"], item["error"] and item["error"]["code"]) for item in told["items"]] == [
        ("succeeded", None),
        ("failed", "unsupported_size"),
        ("failed", "invalid_request"),
        ("failed", "model_not_found"),
    ]


def test_the_same_key_answers_the_first_batch(server: RunningServer) -> None:
    asked = {"requests": [FIVE]}
    first, second = (post(server, "/api/inference/batches", asked, **{"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.status_code, first.json()["id"]) == (202, second.json()["id"])
    other = post(server, "/api/inference/batches", asked | {"metadata": {"x": 1}}, **{"Idempotency-Key": "k"})
    assert other.json()["code"] == "idempotency_mismatch"


@pytest.mark.parametrize(
    ("kind", "data"),
    [("inference.text2img", FIVE), ("inference.batch_process", {"requests": [FIVE]})],
)
def test_the_same_key_answers_the_first_of_an_operation(server: RunningServer, kind: str, data: dict[str, Any]) -> None:
    key = {"Idempotency-Key": f"of {kind}"}
    made = [post(server, URL, {"type": kind, "data": data, "request_id": one}, **key).json() for one in ("a", "b")]
    assert [one["request_id"] for one in made] == ["a", "b"]
    assert made[0]["data"]["id"] == made[1]["data"]["id"]
    other = post(server, URL, {"type": kind, "data": data | {"metadata": {"x": 1}}}, **key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
    path = "sessions" if kind == "inference.text2img" else "batches"
    assert post(server, f"/api/inference/{path}", data, **key).json()["id"] != made[0]["data"]["id"]


@pytest.mark.parametrize("kind", ["inference.text2img", "inference.batch_process"])
def test_a_caller_who_leaves_an_operation_cancels_what_asks_for_it(server: RunningServer, kind: str) -> None:
    stays, goes = (FIVE | {"steps": 1000, "cancel_on_disconnect": leaves} for leaves in (False, True))
    data = goes if kind == "inference.text2img" else {"requests": [stays, goes]}
    before = {one["id"] for one in server.client.sessions()}
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(server.url + URL, json={"type": kind, "data": data | {"wait_s": 60}}, timeout=1)
    made = [one for one in server.client.sessions() if one["id"] not in before]
    assert len(made) == (1 if kind == "inference.text2img" else 2)
    for one in made:
        if one["request"]["cancel_on_disconnect"]:
            assert server.client.wait(one["id"])["state"] == "cancelled"
    for one in made:
        if not one["request"]["cancel_on_disconnect"]:
            assert server.client.cancel(one["id"])["state"] == "running"
            server.client.wait(one["id"])


def test_a_batch_is_cancelled_as_one_and_stops_on_its_first_error(server: RunningServer) -> None:
    made = server.client.create_batch([FIVE | {"steps": 1000}] * 3)
    assert server.client.cancel_batch(made["id"])["id"] == made["id"]
    assert ended(server, made["id"])["counts"] == {"cancelled": 3}
    slow = FIVE | {"steps": 1000}
    stops = server.client.create_batch([slow, slow | {"timeout_s": 0.2}], stop_on_first_error=True)
    told = ended(server, stops["id"])
    assert [item["state"] for item in told["items"]] == ["cancelled", "failed"]
    assert told["state"] == "cancelled"


def test_every_operation_answers_what_its_route_does(server: RunningServer) -> None:
    drawn = operate(server, "inference.text2img", prompt="x", waitS=60, **FIVE)["data"]
    assert (drawn["state"], len(drawn["images"])) == ("succeeded", 1)
    status = operate(server, "inference.get_session_status", sessionId=drawn["id"])["data"]
    assert status == server.client.session(drawn["id"])
    running = operate(server, "inference.text2img", prompt="slow", width=16, height=16, steps=1000)["data"]
    active = operate(server, "inference.get_active_sessions")["data"]["sessions"]
    assert [one["id"] for one in active] == [running["id"]]
    assert operate(server, "inference.cancel_session", session_id=running["id"])["data"]["id"] == running["id"]
    assert server.client.wait(running["id"])["state"] == "cancelled"
    again = operate(server, "inference.cancel_session", session_id=running["id"], reason="no more")
    assert again["error"]["code"] == "session_ended"
    whole = httpx2.get(f"{server.url}/api/inference/capabilities/cpu:0").json()
    assert operate(server, "inference.get_capabilities", device_id="cpu:0")["data"].keys() == whole.keys()
    types = operate(server, "inference.get_supported_types")["data"]["types"]
    assert "text2img" in {one["type"] for one in types}
    invalid = operate(server, "inference.validate_request", width=17)["data"]
    assert (invalid["valid"], invalid["errors"][0]["field"]) == (False, "width")
    assert operate(server, "inference.get_pipeline_info")["data"]["id"] == "tiny"
    state = operate(server, "inference.get_status")["data"]
    assert (len(state["workers"]), state["queue"]["depth"]) == (1, 0)
    batch = operate(server, "inference.batch_process", requests=[FIVE, FIVE], wait_s=60)["data"]
    assert (batch["state"], batch["counts"]) == ("succeeded", {"succeeded": 2})


def test_who_waits_for_a_batch_is_answered_also_when_a_session_of_it_was_removed(server: RunningServer) -> None:
    told: list[dict[str, Any]] = []
    asked = [FIVE | {"steps": 1000}, FIVE | {"metadata": {"which": "short"}}]
    waiting = threading.Thread(
        target=lambda: told.append(operate(server, "inference.batch_process", requests=asked, wait_s=60))
    )
    waiting.start()

    def short() -> str | None:
        found = server.client.sessions(state="succeeded")
        return next((one["id"] for one in found if one["metadata"] == {"which": "short"}), None)

    server.client.delete(wait_for(short, 60))
    waiting.join()
    assert [item["state"] for item in told[0]["data"]["items"]] == ["succeeded", None]


@pytest.mark.parametrize("said", [{"Type": "text2img"}, {"type": "text2img"}, {"TYPE": None}])
def test_a_type_that_is_the_operations_may_be_said_in_any_spelling(server: RunningServer, said: dict[str, Any]) -> None:
    told = operate(server, "inference.text2img", **FIVE, **said)
    assert told["data"]["type"] == "text2img"
    server.client.wait(told["data"]["id"])


@pytest.mark.parametrize(
    ("kind", "data", "code", "field", "status"),
    [
        ("inference.text2image", {}, "unknown_operation", "type", 422),
        ("inference.get_session_status", {"session_id": "ses_none"}, "session_not_found", None, 404),
        ("inference.cancel_session", {}, "missing_field", "data.session_id", 422),
        ("inference.get_status", {"verbose": True}, "unknown_field", "data.verbose", 422),
        ("inference.get_pipeline_info", {"model": "none"}, "model_not_found", None, 422),
        ("inference.get_capabilities", {"device_id": "cuda:9"}, "device_not_found", None, 422),
        ("inference.text2img", {"type": "img2img"}, "invalid_value", "type", 422),
        ("inference.text2img", {"type": "text2img", "Type": "text2img"}, "duplicate_field", "type", 422),
        ("inference.img2img", {"prompt": "x"}, "missing_field", "image", 422),
        ("inference.text2img", {"wait_s": 0}, "invalid_value", "data.wait_s", 422),
        ("inference.text2img", {"steps": 1000, "timeout_s": 0.1, "wait_s": 60}, "timeout", None, 422),
    ],
)
def test_what_goes_wrong_is_no_success(
    server: RunningServer, kind: str, data: dict[str, Any], code: str, field: str | None, status: int
) -> None:
    answer = post(server, URL, {"type": kind, "data": data})
    told = answer.json()
    error = told["error"]
    assert (told["success"], told["request_id"], error["code"], error["field"]) == (False, None, code, field)
    assert answer.status_code == status
    if code == "unknown_operation":
        assert all(name in error["message"] for name in OPERATIONS)
        assert "did you mean 'inference.text2img'?" in error["message"]


def test_a_fault_of_the_wait_hides_none_of_the_request(server: RunningServer) -> None:
    before = len(list(server.client.sessions()))
    wrong = operate(server, "inference.text2img", wait_s=0, foo=1, width=17, type="lora")["error"]["errors"]
    assert {fault["field"] for fault in wrong} == {"data.wait_s", "foo", "width", "type"}
    sessions = "/api/inference/sessions"
    told = post(server, sessions, {"width": 17}, Prefer="wait=0").json()
    assert {fault["field"] for fault in told["errors"]} == {"Prefer", "width"}
    assert post(server, sessions, FIVE, Prefer="wait=0", **{"Idempotency-Key": "w"}).json()["field"] == "Prefer"
    assert len(list(server.client.sessions())) == before


def test_an_envelope_that_is_none_is_refused_with_its_id(server: RunningServer) -> None:
    told = post(server, URL, {"kind": "x", "RequestId": "mine"}).json()
    assert (told["success"], told["request_id"]) == (False, "mine")
    assert {fault["field"] for fault in told["error"]["errors"]} == {"kind", "type"}
    assert post(server, URL, [1]).json()["error"]["code"] == "invalid_request"


@pytest.mark.anyio
async def test_handle_does_the_same_without_a_server(folder: Path, tmp_path: Path) -> None:
    settings = load_settings(data=tmp_path / "data", models=(folder,), default_model="tiny")
    async with Mezzotint(settings=settings) as engine:
        drawn = await engine.handle({"type": "inference.text2img", "data": FIVE | {"wait_s": 60}, "request_id": "a"})
        assert (drawn["success"], drawn["data"]["state"], drawn["request_id"]) == (True, "succeeded", "a")
        missing = await engine.handle({"type": "inference.get_session_status", "data": {"session_id": "ses_x"}})
        assert (missing["success"], missing["error"]["code"]) == (False, "session_not_found")
