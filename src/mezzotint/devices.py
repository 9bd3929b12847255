"""Which devices there are and how they stand now, read without torch. Must not start anything on a device."""

import os
from typing import Any

import psutil

from mezzotint.workers.base import Seat


def find() -> tuple[str, ...]:
    """Every CUDA device the driver shows us, else the CPU."""
    count = _cuda_count()
    return tuple(f"cuda:{index}" for index in range(count)) or ("cpu:0",)


def body(seat: Seat, sessions: list[str], queue_depth: int) -> dict[str, Any]:
    """One device as the contract shows it. What cannot be read is null, and `unknown` says why."""
    facts, worker = seat.facts, seat.worker
    unknown: dict[str, str] = {"measured_gflops": "not measured by this version"}
    starting = worker is None or worker.hello is None
    if facts is None:
        unknown["name"] = unknown["dtypes"] = "its worker has not reported yet"
    beat = worker.heartbeat if worker is not None else None
    if beat is None:
        unknown["used_by_mezzotint_bytes"] = "no heartbeat of its worker yet"
    is_cpu = seat.device.startswith("cpu")
    memory = psutil.virtual_memory() if is_cpu else None
    if not is_cpu:
        unknown |= dict.fromkeys(("available_bytes", "utilization"), "not read for CUDA by this version")
    temperature = _cpu_temperature() if is_cpu else None
    if temperature is None:
        unknown["temperature_c"] = "no sensor that can be read"
    if facts is None or facts.driver is None:
        unknown["driver"] = "a CPU has none" if is_cpu else "its worker has not reported yet"
    return {
        "id": seat.device,
        "kind": seat.device.partition(":")[0],
        "state": "starting" if starting else "ready",
        "name": facts.name if facts else None,
        "memory": {
            "total_bytes": facts.memory_total_bytes if facts else (memory.total if memory else None),
            "available_bytes": memory.available if memory else None,
            "used_by_mezzotint_bytes": beat.memory_bytes if beat else None,
        },
        "utilization": psutil.cpu_percent() / 100 if is_cpu else None,
        "temperature_c": temperature,
        "dtypes": [{"name": name, "measured_gflops": None} for name in facts.dtypes] if facts else None,
        "threads": facts.threads if facts else None,
        "driver": facts.driver if facts else None,
        "worker": worker.id if worker else None,
        "sessions": sessions,
        "queue_depth": queue_depth,
        "unknown": unknown,
    }


def default_threads() -> int:
    """Cores this process may use; hyperthreads add nothing to a model call."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def _cuda_count() -> int:
    try:
        import pynvml  # of the package nvidia-ml-py
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return 0
    return count


def _cpu_temperature() -> float | None:
    if not hasattr(psutil, "sensors_temperatures"):
        return None
    readings = [entry.current for entries in psutil.sensors_temperatures().values() for entry in entries]
    return max(readings) if readings else None
