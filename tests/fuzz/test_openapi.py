"""Every call of the OpenAPI document, native and dialects, with bodies right and wrong: none is answered by 5xx, and
what is answered is what the document says.

`make fuzz` runs ten thousand cases; the ordinary lane a few of each call. Sizes and steps are kept small, so that what
is accepted is also drawn.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import response_schema_conformance

from tests.process.conftest import RunningServer

CASES = int(os.environ.get("FUZZ_CASES", "200"))
SAYING = 45  # calls that take something, about; the others have one case each
ABSENT = {
    "model",
    "device",
    "type",
    "image",
    "mask",
    "controlnets",
    "loras",
    "embeddings",
    "webhook",
    "strength",
    "hires",
}
LEFT_OUT = {"/api/inference/events"}  # a stream without an end
MOST = {
    "steps": 1, "num_inference_steps": 1, "hr_second_pass_steps": 1, "n": 1, "n_iter": 1, "batch_size": 1,
    "num_images": 1, "width": 32, "height": 32, "hr_scale": 1, "hr_resize_x": 32, "hr_resize_y": 32, "scale": 1.5,
    "upscaling_resize": 2, "upscaling_resize_w": 64, "upscaling_resize_h": 64, "controlnet_processor_res": 64,
    "wait_s": 2,
}  # fmt: skip
SMALL = {"steps": 1, "width": 32, "height": 32}  # what a dialect draws when nothing is told is large


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, dict[str, str]]]:
    with RunningServer(tmp_path_factory.mktemp("fuzz") / "data") as running:
        drawn = running.client.wait(running.client.submit(prompt="a cat", steps=1)["id"])
        batch = running.client.create_batch([{"prompt": "a", "steps": 1}])
        known = {"session_id": drawn["id"], "batch_id": batch["id"], "model_id": "icons", "device_id": "cpu:0"}
        yield running, known | {"index": "0"}


def test_no_call_of_the_document_is_answered_by_an_error_of_ours(
    served: tuple[RunningServer, dict[str, str]],
) -> None:
    server, known = served
    document: Any = schemathesis.openapi.from_dict(_strict(httpx2.get(f"{server.url}/openapi.json").json()))
    calls = [found.ok() for found in document.get_all_operations()]
    calls = [one for one in calls if one.path not in LEFT_OUT]
    assert len(calls) > 70
    told: Counter[int] = Counter()
    broken: list[str] = []
    for number, call in enumerate(calls):
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                strategy = call.as_strategy(generation_mode=mode)
                _run(strategy, max(1, CASES // SAYING // 2), number, server, known, told, broken)
            except (schemathesis.errors.SchemathesisError, Unsatisfiable):
                continue  # a call that takes nothing cannot be said wrongly
    print(f"{told.total()} cases, {len(broken)} answered by 5xx; by status: {dict(sorted(told.items()))}")  # noqa: T201
    assert broken == []
    assert told.total() >= 0.5 * CASES
    assert {200, 404, 422} <= told.keys()
    server.worker_pid()
    deadline = time.monotonic() + 120
    while any(True for _ in server.client.sessions(active=True)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert server.client.wait(server.client.submit(prompt="after all that", steps=1)["id"])["state"] == "succeeded"


def _strict(document: dict[str, Any]) -> dict[str, Any]:
    """With answers that hold nothing but what the document names."""
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return document


def _run(
    strategy: Any,
    cases: int,
    number: int,
    server: RunningServer,
    known: dict[str, str],
    told: "Counter[int]",
    broken: list[str],
) -> None:
    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy, st.booleans())
    def one(case: Any, knows: bool) -> None:
        _tame(case, known if knows else {})
        answer = case.call(base_url=server.url, timeout=60)
        told[answer.status_code] += 1
        if case.path.startswith("/api/") and answer.status_code < 300:
            try:
                case.validate_response(answer, checks=[response_schema_conformance])
            except FailureGroup as found:
                broken.append(f"{case.path} -> {found.exceptions}")
        if answer.status_code >= 500 and answer.status_code != 503:
            broken.append(f"{answer.status_code} {case.as_curl_command()[:600]} -> {answer.text[:300]}")

    one()


def _tame(case: Any, known: dict[str, str]) -> None:
    """Small enough to be drawn, and now and then about something that is there."""
    if isinstance(case.path_parameters, dict):
        case.path_parameters.update({name: value for name, value in known.items() if name in case.path_parameters})
    headers = {name.lower() for name in case.headers or {}}
    if "prefer" in headers:
        case.headers = {name: value for name, value in case.headers.items() if name.lower() != "prefer"}
    if case.path.endswith(("2img", "/images/generations", "/images/edits")) and isinstance(case.body, dict):
        case.body = SMALL | case.body
    if known and isinstance(case.body, dict):  # about what is not there half of the cases have been
        case.body = {name: value for name, value in case.body.items() if name not in ABSENT}
    _small(case.body)


def _small(value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            most = MOST.get(name)
            if most is not None and isinstance(inner, int | float) and not isinstance(inner, bool) and inner > most:
                value[name] = most
            else:
                _small(inner)
    elif isinstance(value, list):
        for inner in value:
            _small(inner)
