"""The case of field names, on a real server: bodies, errors and events."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from mezzotint.fieldnames import fold
from tests.process.conftest import RunningServer

SESSIONS = "/api/inference/sessions"
PASCAL = {"X-Field-Case": "pascal"}
OWN = {"user_id": {"Guidance_scale": 1}}


@pytest.fixture(scope="module")
def ended(server: RunningServer) -> dict[str, Any]:
    accepted = server.client.submit(prompt="x", steps=1, metadata=OWN)
    found: dict[str, Any] = server.client.wait(accepted["id"])
    return found


def keys(body: Any, path: str = "") -> Iterator[str]:
    """Every key of a body but the callers' own, with where it stands."""
    for name, value in body.items() if isinstance(body, dict) else []:
        yield f"{path}.{name}"
        if fold(name) not in ("metadata", "options"):
            yield from keys(value, f"{path}.{name}")
    for value in body if isinstance(body, list) else []:
        yield from keys(value, f"{path}[]")


def folded(body: Any) -> set[str]:
    return {fold(key) for key in keys(body)}


@pytest.mark.parametrize("case", ["camel", "pascal"])
@pytest.mark.parametrize(
    "path",
    [
        *(f"{SESSIONS}{rest}" for rest in ("", "/{id}", "/{id}/trace", "/ses_nope", "?limit=0")),
        *("/api/models", "/api/models/icons", "/api/devices", "/api/workers", "/api/nope"),
    ],
)
def test_every_answer_has_the_same_fields_in_the_case_asked_for(
    server: RunningServer, ended: dict[str, Any], path: str, case: Any
) -> None:
    url = server.url + path.format(id=ended["id"])
    plain = httpx2.get(url).json()
    answer = httpx2.get(url, headers={"X-Field-Case": case})
    told = answer.json()
    assert folded(told) == folded(plain)
    for key in keys(told):
        name = key.rpartition(".")[2]
        assert "_" not in name
        assert name == "cpu:0" or not name[0].isalpha() or name[0].isupper() == (case == "pascal"), key
    assert {"X-Field-Case", "Authorization"} <= {one.strip() for one in answer.headers["vary"].split(",")}


def test_a_callers_own_keys_come_back_as_sent(server: RunningServer, ended: dict[str, Any]) -> None:
    told = httpx2.get(f"{server.url}{SESSIONS}/{ended['id']}", headers=PASCAL).json()
    assert told["Metadata"] == OWN
    assert told["State"] == "succeeded"
    assert told["Request"]["NumInferenceSteps"] == 1


def test_what_a_pascal_answer_says_of_its_request_draws_the_same_picture(
    server: RunningServer, ended: dict[str, Any]
) -> None:
    told = httpx2.get(f"{server.url}{SESSIONS}/{ended['id']}", headers=PASCAL).json()
    again = httpx2.post(
        server.url + SESSIONS, json=told["Request"], headers={**PASCAL, "Prefer": "wait=60"}, timeout=60
    ).json()
    assert again["Images"][0]["Sha256"] == ended["images"][0]["sha256"]


def test_events_are_told_in_the_case_asked_for(server: RunningServer, ended: dict[str, Any]) -> None:
    answer = httpx2.get(f"{server.url}{SESSIONS}/{ended['id']}/events", headers=PASCAL)
    data = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert len(data) >= 4
    assert not [key for one in data for key in keys(one) if key.rpartition(".")[2][0].islower()]
    assert data[-1]["Metadata"] == OWN


def test_a_case_that_does_not_exist_is_refused_by_name(server: RunningServer) -> None:
    answer = httpx2.get(server.url + SESSIONS, headers={"X-Field-Case": "kebab"})
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "invalid_value", "X-Field-Case")


def test_one_field_in_two_spellings_is_refused(server: RunningServer) -> None:
    answer = httpx2.post(server.url + SESSIONS, json={"guidance_scale": 1, "GuidanceScale": 2}, headers=PASCAL)
    assert [(one["Field"], one["Code"]) for one in answer.json()["Errors"]] == [("guidance_scale", "duplicate_field")]
