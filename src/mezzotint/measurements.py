"""What workers have measured, by device: how long each thing took and what memory it needed. Must not import torch.

Kept in one JSON file per device in the cache, so that a restart does not forget; medians of recent times count, since a
machine is not always as busy. Deleting a file costs new measuring; one that cannot be read is left out with a warning.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import structlog

from mezzotint import profiles
from mezzotint.disk import draft_of
from mezzotint.workers import wire

log = structlog.get_logger(__name__)

RECENT = 15  # times of one thing that are kept
MAX_POINTS = 2000  # things of one device; those not seen for longest go
SAVE_S = 20.0  # between two writes of a device's file


class Point(msgspec.Struct, kw_only=True):
    """One thing as it was measured here."""

    work: wire.Work
    recent_s: list[float] = []
    calls: int = 0  # that were timed
    extra_bytes: int | None = None  # most in use meanwhile, beside what was there before; None: not measured yet
    held: bool = True  # False: memory did not hold it
    cap: int = 0  # of a step: rows that a call of its shape had at most, when last seen
    seen_at: float = 0.0

    @property
    def seconds(self) -> float | None:
        return statistics.median(self.recent_s) if self.recent_s else None


class _File(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    machine: str
    threads: int
    versions: dict[str, str]
    points: list[Point]
    gflops: dict[str, float] = {}


class Measurements:
    """Of every device of this server. Not thread-safe: one loop calls everything."""

    def __init__(
        self,
        cache: Path,
        threads: int,
        *,
        keep: bool,
        told: Callable[[str, wire.Measured], None] = lambda device, measured: None,
    ) -> None:
        """Without `keep` what is on disk is read and never changed. `told` hears of every measurement."""
        self._told = told
        self._folder, self._threads, self._keep = cache / "profiles", threads, keep
        self._points: dict[str, dict[wire.Work, Point]] = {}
        self._gflops: dict[str, dict[str, float]] = {}
        self._saved: dict[str, float] = {}
        self.taken: Counter[str] = Counter()  # measurements by device: what was read of one is old once this has risen

    def of(self, device: str) -> Mapping[wire.Work, Point]:
        if device not in self._points:
            self._points[device] = {point.work: point for point in self._read(device)}
        return self._points[device]

    def take(self, device: str, measured: wire.Measured) -> None:
        self.of(device)
        self.taken[device] += 1
        self._told(device, measured)
        points = self._points[device]
        point = points.setdefault(measured.work, Point(work=measured.work))
        point.seen_at = time.time()
        point.held, point.cap = measured.held, measured.cap or point.cap
        if measured.seconds is not None:
            point.recent_s = [*point.recent_s[1 - RECENT :], measured.seconds]
            point.calls += 1
        if measured.extra_bytes is not None:
            point.extra_bytes = max(measured.extra_bytes, point.extra_bytes or 0)
        if len(points) > MAX_POINTS:
            del points[min(points, key=lambda work: points[work].seen_at)]
        if time.monotonic() - self._saved.setdefault(device, time.monotonic()) >= SAVE_S:
            self._write(device)

    def take_speed(self, device: str, gflops: Mapping[str, float]) -> None:
        self.of(device)
        self._gflops[device] = dict(gflops)
        self._write(device)

    def speed(self, device: str) -> Mapping[str, float]:
        """Measured 1e9 operations a second by dtype; empty until measured."""
        self.of(device)
        return self._gflops.get(device, {})

    def known(self, device: str) -> wire.Known:
        """For a worker that begins on a device: what it need not find out again."""
        return wire.Known(
            things=tuple(
                wire.Thing(
                    work=point.work,
                    seconds=point.seconds,
                    calls=point.calls,
                    held=point.held,
                    has_memory=point.extra_bytes is not None,
                )
                for point in self.of(device).values()
            )
        )

    def close(self) -> None:
        for device in self._saved:
            self._write(device)

    # ---- the file

    def file(self, device: str) -> Path:
        return self._folder / f"measured.{device.replace(':', '-')}.json"

    def _read(self, device: str) -> Iterable[Point]:
        file = self.file(device)
        try:
            found = msgspec.json.decode(file.read_bytes(), type=_File)
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            log.warning("measurements cannot be read and are made anew", file=str(file), why=str(error)[:200])
            return []
        here = (device, profiles.machine(), self._threads, profiles.versions())
        if (found.device, found.machine, found.threads, found.versions) != here:
            return []  # of another machine or other versions
        self._gflops[device] = found.gflops
        return found.points[:MAX_POINTS]

    def _write(self, device: str) -> None:
        self._saved[device] = time.monotonic()
        if not self._keep:
            return
        content = _File(
            device=device,
            machine=profiles.machine(),
            threads=self._threads,
            versions=profiles.versions(),
            points=list(self._points[device].values()),
            gflops=self._gflops.get(device, {}),
        )
        file = self.file(device)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with draft_of(file) as draft:
                draft.write_bytes(msgspec.json.encode(content))
        except OSError as error:
            log.warning("measurements cannot be kept", file=str(file), why=error.strerror)
