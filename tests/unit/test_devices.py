"""What is shown of a device: read now, or null with the reason beside it."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest
import torch

from mezzotint import devices
from mezzotint.engine.speed import gflops
from mezzotint.estimates import way_out
from mezzotint.workers.base import HOPELESS_STARTS, Seat
from mezzotint.workers.wire import DeviceFacts

FACTS = DeviceFacts(
    id="cpu:0", kind="cpu", name="a CPU", memory_total_bytes=1, memory_budget_bytes=1, dtypes=("float32", "bfloat16"),
    driver=None, threads=2, base_bytes=0,
)  # fmt: skip


def shown(seat: Seat, speed: dict[str, float] | None = None) -> dict[str, Any]:
    return devices.body(seat, [], 0, devices.read(seat.device), speed or {})


def test_a_cpu_is_read_now_and_what_is_null_has_its_reason() -> None:
    body = shown(Seat(device="cpu:0", facts=FACTS), {"float32": 12.5})
    assert body["memory"]["total_bytes"] == psutil.virtual_memory().total
    assert 0 < body["memory"]["available_bytes"] <= body["memory"]["total_bytes"]
    assert 0 <= body["utilization"] <= 1
    assert [one["measured_gflops"] for one in body["dtypes"]] == [12.5, None]
    nulls = {name for name in ("temperature_c", "driver", "name", "dtypes") if body[name] is None}
    nulls |= {name for name, value in body["memory"].items() if value is None}
    assert nulls | {"measured_gflops"} == set(body["unknown"])


def test_the_use_of_a_cpu_is_measured_by_whichever_thread_asks() -> None:
    assert devices.CpuUse().read() is None, "nothing is measured yet"
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass  # keeps a core busy
    with ThreadPoolExecutor(1) as fresh:
        assert (fresh.submit(devices.read, "cpu:0").result().utilization or 0) > 0


def test_a_device_that_no_driver_knows_says_so() -> None:
    body = shown(Seat(device="cuda:63"))
    assert (body["memory"]["available_bytes"], body["utilization"], body["driver"]) == (None, None, None)
    assert {"available_bytes", "total_bytes", "utilization", "temperature_c", "driver"} <= set(body["unknown"])


def test_a_device_whose_workers_do_not_come_up_is_out_with_the_reason() -> None:
    seat = Seat(device="cpu:0", failed_starts=HOPELESS_STARTS, last_exit="killed by SIGKILL")
    assert shown(seat)["state"] == "starting"
    seat.failed_starts += 1
    assert (shown(seat)["state"], shown(seat)["reason"]) == ("failed", "killed by SIGKILL")
    up: Any = SimpleNamespace(hello=object(), heartbeat=None, id="wrk_1")
    seat.worker = up
    assert shown(seat)["state"] == "ready"


def test_speed_is_measured_on_this_machine() -> None:
    assert 0.1 < gflops(torch.device("cpu"), torch.float32) < 1e5


@pytest.mark.parametrize(
    ("kind", "dtypes", "dtype", "told"),
    [
        ("cpu", ("float32", "bfloat16"), "float32", "raise memory_bytes"),
        ("cuda", ("float32", "bfloat16", "float16"), "float32", "set the model's dtype to bfloat16"),
        ("cuda", ("float32", "float16"), "float32", "set the model's dtype to float16"),
        ("cuda", ("float32", "bfloat16", "float16"), "bfloat16", "for one from a smaller model"),
    ],
)
def test_who_finds_no_room_is_told_what_would_help_there(
    kind: str, dtypes: tuple[str, ...], dtype: str, told: str
) -> None:
    assert way_out(msgspec.structs.replace(FACTS, kind=kind, dtypes=dtypes), dtype) == told
