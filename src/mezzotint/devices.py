"""Which devices there are and how they stand now, read without torch. Must not start anything on a device."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from mezzotint.workers.base import Seat


class CpuUse:
    """The use of all cores since the last question, whichever thread asks: psutil's own tells a new thread 0."""

    SHORTEST_S = 0.1  # of all cores together; the kernel counts in hundredths

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._use: float | None = None
        self._total, self._idle = self._count()

    def read(self) -> float | None:
        """0..1; what was told last where that was a moment ago, None where nothing was measured yet."""
        with self._guard:
            total, idle = self._count()
            passed = total - self._total
            if passed >= self.SHORTEST_S:
                self._use = min(1.0, max(0.0, 1 - (idle - self._idle) / passed))
                self._total, self._idle = total, idle
            return self._use

    def _count(self) -> tuple[float, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0), idle


_cpu_use = CpuUse()


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What sensors and the driver say now. What cannot be read is None, and `unknown` says why, by name."""

    total_bytes: int | None = None
    available_bytes: int | None = None
    utilization: float | None = None  # 0..1
    temperature_c: float | None = None
    driver: str | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)


def find() -> tuple[str, ...]:
    """Every CUDA device the driver shows us, else the CPU."""
    visible = _visible()
    with _driver() as (nvml, _):
        count = 0 if nvml is None else nvml.nvmlDeviceGetCount() if visible is None else len(visible)
    return tuple(f"cuda:{index}" for index in range(count)) or ("cpu:0",)


def read(device: str) -> Reading:
    """May take some milliseconds: it asks the driver."""
    return _read_cpu() if device.startswith("cpu") else _read_cuda(int(device.partition(":")[2] or 0))


def state(seat: Seat) -> tuple[str, str | None]:
    """`ready`, `starting`, or `failed` with the reason: several workers in a row did not come up on it."""
    if seat.worker is not None and seat.worker.hello is not None:
        return "ready", None
    return ("failed", seat.failed) if seat.failed else ("starting", None)


def body(
    seat: Seat, sessions: list[str], queue_depth: int, reading: Reading, gflops: Mapping[str, float | None]
) -> dict[str, Any]:
    """One device as the contract shows it. What cannot be read is null, and `unknown` says why."""
    facts, worker = seat.facts, seat.worker
    unknown = dict(reading.unknown)
    if facts is None:
        unknown["name"] = unknown["dtypes"] = "its worker has not reported yet"
    elif any(gflops.get(name) is None for name in facts.dtypes):
        unknown["measured_gflops"] = "not measured yet; an idle server does it"
    beat = worker.heartbeat if worker is not None else None
    if beat is None:
        unknown["used_by_mezzotint_bytes"] = "no heartbeat of its worker yet"
    name, reason = state(seat)
    total = reading.total_bytes if reading.total_bytes is not None else facts.memory_total_bytes if facts else None
    if total is not None:
        unknown.pop("total_bytes", None)
    dtypes = [{"name": one, "measured_gflops": gflops.get(one)} for one in facts.dtypes] if facts else None
    return {
        "id": seat.device,
        "kind": seat.device.partition(":")[0],
        "state": name,
        "reason": reason,
        "name": facts.name if facts else None,
        "memory": {
            "total_bytes": total,
            "available_bytes": reading.available_bytes,
            "used_by_mezzotint_bytes": beat.memory_bytes if beat else None,
        },
        "utilization": reading.utilization,
        "temperature_c": reading.temperature_c,
        "dtypes": dtypes,
        "threads": facts.threads if facts else None,
        "driver": reading.driver,
        "worker": worker.id if worker else None,
        "sessions": sessions,
        "queue_depth": queue_depth,
        "unknown": unknown,
    }


def default_threads() -> int:
    """Cores this process may use; hyperthreads add nothing to a model call."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


# ---- CPU


def _read_cpu() -> Reading:
    memory, temperature = psutil.virtual_memory(), _cpu_temperature()
    use, unknown = _cpu_use.read(), {"driver": "a CPU has none"}
    if use is None:
        unknown["utilization"] = "this process began a moment ago"
    if temperature is None:
        unknown["temperature_c"] = "no sensor that can be read"
    return Reading(
        total_bytes=memory.total,
        available_bytes=memory.available,
        utilization=use,
        temperature_c=temperature,
        unknown=unknown,
    )


def _cpu_temperature() -> float | None:
    if not hasattr(psutil, "sensors_temperatures"):
        return None
    readings = [entry.current for entries in psutil.sensors_temperatures().values() for entry in entries]
    return max(readings) if readings else None


# ---- CUDA


@contextlib.contextmanager
def _driver() -> Iterator[tuple[Any, str]]:
    """NVIDIA's management library for one reading, or None and why it cannot be had."""
    try:
        import pynvml  # of the package nvidia-ml-py
    except ImportError:
        yield None, "nvidia-ml-py is not installed"
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield None, f"NVIDIA's driver does not answer: {error}"
        return
    try:
        yield pynvml, ""
    finally:
        pynvml.nvmlShutdown()


def _visible() -> list[str] | None:
    """The devices that CUDA shows to our processes, in its order; None: all, in the driver's."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if told is None else [one.strip() for one in told.split(",") if one.strip() not in ("", "-1")]


def _read_cuda(index: int) -> Reading:
    names = ("total_bytes", "available_bytes", "utilization", "temperature_c", "driver")
    with _driver() as (nvml, why):
        if nvml is None:
            return Reading(unknown=dict.fromkeys(names, why))
        unknown: dict[str, str] = {}

        def asked(name: str, ask: Any) -> Any:
            try:
                return ask()
            except nvml.NVMLError as error:
                unknown[name] = f"the driver does not say: {error}"
                return None

        try:
            handle = _handle(nvml, index)
        except (nvml.NVMLError, IndexError, ValueError) as error:
            return Reading(unknown=dict.fromkeys(names, f"the driver does not know it: {error}"))
        memory = asked("available_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        if memory is None:
            unknown["total_bytes"] = unknown["available_bytes"]
        busy = asked("utilization", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        sensor = nvml.NVML_TEMPERATURE_GPU
        warmth = asked("temperature_c", lambda: nvml.nvmlDeviceGetTemperature(handle, sensor))
        return Reading(
            total_bytes=int(memory.total) if memory is not None else None,
            available_bytes=int(memory.free) if memory is not None else None,
            utilization=None if busy is None else busy / 100,
            temperature_c=None if warmth is None else float(warmth),
            driver=asked("driver", nvml.nvmlSystemGetDriverVersion),
            unknown=unknown,
        )


def _handle(nvml: Any, index: int) -> Any:
    visible = _visible()
    if visible is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    name = visible[index]
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)
