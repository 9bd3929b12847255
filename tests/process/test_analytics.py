"""What is counted of real sessions: metrics, statistics, traces that add up; and logs without prompts."""

import time

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.process.conftest import RunningServer

SECRET = "canarycanary"


@pytest.fixture(scope="module")
def drawn(server: RunningServer) -> list[dict[str, object]]:
    sizes = [{"steps": 2}, {"steps": 2, "width": 64, "height": 64}, {"steps": 4, "num_images": 2}]
    sent = [server.client.submit(prompt=f"{SECRET} {size}", metadata={"note": SECRET}, **size) for size in sizes]
    return [server.client.wait(one["id"]) for one in sent]


def test_metrics_count_what_ran(server: RunningServer, drawn: list[dict[str, object]]) -> None:
    deadline = time.monotonic() + 60
    while True:  # memory is what the worker said a moment ago, so it comes after the pictures
        answer = httpx2.get(f"{server.url}/metrics")
        samples = {
            (one.name, one.labels.get("state") or one.labels.get("what") or one.labels.get("of")): one.value
            for family in text_string_to_metric_families(answer.text)
            for one in family.samples
        }
        if samples["mezzotint_memory_bytes", "weights"] > 0 or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert answer.headers["content-type"].startswith("text/plain")
    assert samples["mezzotint_sessions_ended_total", "succeeded"] == len(drawn)
    assert samples["mezzotint_steps_total", None] == 2 + 2 + 8
    for what in ("load", "encode", "step", "decode", "file"):
        assert samples["mezzotint_work_seconds_total", what] > 0
    assert 0 < samples["mezzotint_memory_bytes", "weights"] < samples["mezzotint_memory_bytes", "used"]
    assert SECRET not in answer.text


def test_statistics_are_those_of_the_sessions(server: RunningServer, drawn: list[dict[str, object]]) -> None:
    body = httpx2.get(f"{server.url}/api/analytics").json()
    assert body["all"]["states"] == {"succeeded": len(drawn)}
    (group,) = body["groups"]
    assert (group["model"], group["type"], group["sessions"]) == ("icons", "text2img", len(drawn))
    longest = max(one["timing"]["total_s"] for one in drawn)  # type: ignore[index]
    assert group["total_s"]["p99"] == pytest.approx(longest, abs=1e-5)
    assert group["steps_per_s"] > 0
    assert group["unknown"] == {}
    empty = httpx2.get(f"{server.url}/api/analytics?window_s=0.000001").json()
    assert empty["groups"] == []
    assert empty["all"]["unknown"] == dict.fromkeys(
        ("total_s", "steps_per_s", "peak_memory_bytes", "spans"), "no session succeeded"
    )
    assert httpx2.get(f"{server.url}/api/analytics?window_s=-1").status_code == 422


def test_the_times_of_a_trace_add_up_to_the_sessions(server: RunningServer, drawn: list[dict[str, object]]) -> None:
    peaks, spans = set(), set()
    for one in drawn:
        trace = httpx2.get(f"{server.url}/api/inference/sessions/{one['id']}/trace").json()
        started, ended = trace["attempts"][0]["started_at"], trace["attempts"][-1]["ended_at"]
        assert started < ended
        whole = one["timing"]["total_s"]  # type: ignore[index]
        assert sum(trace["spans"].values()) == pytest.approx(whole, rel=0.05)
        spans.add(trace["spans"]["denoising_s"])
        peaks.add(trace["device_s"])
    assert len(spans) == len(peaks) == len(drawn), "no two alike: they were measured"


def test_the_log_holds_no_prompt_and_no_metadata(server: RunningServer, drawn: list[dict[str, object]]) -> None:
    log = server.log.read_text()
    assert "session ended" in log
    assert SECRET not in log
