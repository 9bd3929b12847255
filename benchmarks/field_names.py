"""What three spellings of field names cost a request: reading one, writing one. `python -m benchmarks.field_names`

A request with every field, and the session that answers it; the median of many, on one core.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
from tests.requests import request

from benchmarks.machine import describe, keep
from mezzotint.fieldnames import CASES, Case, spelt
from mezzotint.request import ControlNetUse, LoraUse
from mezzotint.schema import parse

TIMES = 5000
BAR_MS = 0.1


def whole() -> dict[str, Any]:
    """A request that names every field, as a session's answer holds it."""
    control = ControlNetUse(
        model="edges",
        image="asset:a",
        preprocessor="canny",
        options={"low_threshold": 100},
        scale=1.0,
        start=0.0,
        end=1.0,
        resize_mode="stretch",
        control_mode="balanced",
    )
    full = request(
        image="asset:a",
        mask="asset:b",
        strength=0.5,
        scheduler_options={"karras_sigmas": True, "solver_order": 2},
        controlnets=(control, control),
        loras=(LoraUse(name="ink", scale=0.5),) * 4,
        metadata={"user_id": {"order_id": [1, 2, 3]}},
    )
    body: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(full))
    return body


def median_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(TIMES):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def measure(body: dict[str, Any], case: Case) -> dict[str, float]:
    sent = spelt(body, case)
    assert parse(sent)[1] == [], "every field is read"
    text = msgspec.json.encode(body)
    write = median_ms(lambda: msgspec.json.encode(spelt(msgspec.json.decode(text), case))) if case != "snake" else 0.0
    return {"read_ms": round(median_ms(lambda: parse(sent)), 4), "write_ms": round(write, 4)}


def main() -> None:
    body = whole()
    found = {case: measure(body, case) for case in CASES}
    print(describe())
    for case in CASES:
        print(f"{case:7} {found[case]}  bar {BAR_MS} ms")
    keep("field_names", found)


if __name__ == "__main__":
    main()
