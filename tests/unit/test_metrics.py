"""What Prometheus is told, and that what is shipped beside it speaks of the same names."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

import mezzotint
from mezzotint.errors import ErrorInfo
from mezzotint.metrics import Metrics
from mezzotint.operations import Parts, analytics
from mezzotint.operations.analytics import percentiles
from mezzotint.session import State, Usage
from mezzotint.store.analytics import Ended
from mezzotint.workers.base import Seat
from mezzotint.workers.wire import Heartbeat, Measured, Work
from tests.requests import session

MONITORING = Path(mezzotint.__file__).parent.parent.parent / "monitoring"
STEP = Work(what="step", model="a", height=8, width=8, windows=1, rows=4)


class Standing:
    astray = 1

    def sessions_now(self) -> Counter[tuple[str, str]]:
        return Counter({("queued", "lora"): 3})


def seat() -> Seat:
    beat = Heartbeat(
        phase=None, since_s=0, memory_bytes=9, weights_bytes=4, prompt_hits=7, prompt_misses=3, resident=(), loaded=()
    )
    worker: Any = SimpleNamespace(hello=None, heartbeat=beat)
    return Seat(device="cpu:0", restarts=2, worker=worker)


def told() -> tuple[dict[str, float], set[str]]:
    """Samples by name and labels, and the names of all families, after a little of everything."""
    metrics = Metrics()
    metrics.watch({"cpu:0": seat()}, Standing())
    metrics.accepted(session().id, session().request.type, (8.0, "measured"))
    metrics.ended(session())
    metrics.ended(session(state=State.FAILED, error=ErrorInfo(code="timeout", message="")))
    metrics.measured("cpu:0", Measured(work=STEP, seconds=0.5, cap=16))
    metrics.measured("cpu:0", Measured(work=STEP, held=False))
    samples, names = {}, set()
    for family in text_string_to_metric_families(metrics.text().decode()):
        names.add(family.name)
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}"] = sample.value
            names.add(sample.name)
    return samples, names


def test_what_happens_is_counted_under_its_labels() -> None:
    samples, _ = told()
    assert samples["mezzotint_sessions_accepted_total{type=text2img}"] == 1
    assert samples["mezzotint_sessions_ended_total{model=tiny,state=succeeded,type=text2img}"] == 1
    assert samples["mezzotint_session_errors_total{code=timeout}"] == 1
    assert samples["mezzotint_queue_wait_seconds_sum{type=text2img}"] == 4
    assert samples["mezzotint_phase_seconds_sum{phase=denoising}"] == 18
    assert samples["mezzotint_session_seconds_sum{model=tiny,type=text2img}"] == 12
    assert samples["mezzotint_steps_total{device=cpu:0}"] == 12
    assert samples["mezzotint_work_seconds_total{device=cpu:0,what=step}"] == 0.5
    assert samples["mezzotint_call_rows_sum{device=cpu:0}"] == 4
    assert samples["mezzotint_call_occupancy_ratio_sum{device=cpu:0}"] == 0.25
    assert samples["mezzotint_out_of_memory_total{device=cpu:0}"] == 1
    assert samples["mezzotint_estimate_error_ratio_sum{basis=measured}"] == 0.2
    assert samples["mezzotint_sessions{state=queued,type=lora}"] == 3
    assert samples["mezzotint_sessions_astray{}"] == 1
    assert samples["mezzotint_worker_restarts_total{device=cpu:0}"] == 2
    assert samples["mezzotint_worker_ready{device=cpu:0}"] == 0
    assert samples["mezzotint_memory_bytes{device=cpu:0,of=weights}"] == 4
    assert samples["mezzotint_prompt_cache_total{device=cpu:0,result=hit}"] == 7


def test_alerts_and_dashboard_use_only_names_that_there_are_and_all_families() -> None:
    _, names = told()
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    shown = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    alerts = "\n".join(re.findall("expr: (.*)", (MONITORING / "alerts.yml").read_text()))
    used = set(re.findall(r"mezzotint_\w+", shown + alerts))
    assert used <= names, used - names
    families = {re.sub("_(total|sum|count|bucket|created)$", "", name) for name in names}
    assert families == {re.sub("_(total|sum|count|bucket)$", "", name) for name in used}, "each is on the dashboard"


def test_percentiles_are_values_that_there_were() -> None:
    assert percentiles([]) is None
    assert percentiles([3.0]) == {"p50": 3.0, "p90": 3.0, "p95": 3.0, "p99": 3.0}
    assert percentiles(float(i) for i in range(100, 0, -1)) == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}


@pytest.mark.anyio
@pytest.mark.parametrize(("there", "truncated"), [(analytics.MAX_SESSIONS, False), (analytics.MAX_SESSIONS + 1, True)])
async def test_statistics_are_cut_short_only_beyond_the_limit(there: int, truncated: bool) -> None:
    one = Ended(state=State.FAILED, type="text2img", model="m", spans={}, usage=Usage(), error=None, ended_at=1.0)

    class Rows:
        async def ended(self, *, since: float, owner: str | None, limit: int) -> list[Ended]:
            return [one] * min(there, limit)

    told = await analytics.AnalyticsVerbs(cast(Parts, SimpleNamespace(store=Rows()))).analytics()
    assert (told["truncated"], told["all"]["sessions"]) == (truncated, analytics.MAX_SESSIONS)
