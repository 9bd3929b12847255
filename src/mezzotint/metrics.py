"""What Prometheus is told: counts and times as they happen, and how things stand when it asks. Must not keep a session.

Names and labels are a contract: monitoring/ ships alert rules and a dashboard that use them, and a test compares.
"""

from collections import Counter as Tally
from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mezzotint.session import SPANS, Session
from mezzotint.workers.base import Seat
from mezzotint.workers.wire import Measured

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32)
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
ERRORS = (0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.75, 1, 2, 5)
PROMISES = 10_000  # of sessions that have not ended; the oldest go


class Standing(Protocol):
    """How things stand now: the dispatcher in a server."""

    def sessions_now(self) -> Tally[tuple[str, str]]:
        """Sessions that wait or run, by state and type."""

    @property
    def astray(self) -> int:
        """Those of them that nobody has in hand."""


class Metrics:
    """One set for a server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._promised: dict[str, tuple[float, str]] = {}
        registry = self.registry
        self._accepted = Counter("mezzotint_sessions_accepted", "sessions accepted", ["type"], registry=registry)
        self._ended = Counter(
            "mezzotint_sessions_ended", "sessions that ended", ["state", "type", "model"], registry=registry
        )
        self._errors = Counter(
            "mezzotint_session_errors", "sessions that ended in an error", ["code"], registry=registry
        )
        self._wait = Histogram(
            "mezzotint_queue_wait_seconds", "from acceptance to the first start", ["type"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self._phase = Histogram(
            "mezzotint_phase_seconds", "time that a session spent in a phase", ["phase"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self._whole = Histogram(
            "mezzotint_session_seconds", "from acceptance to success", ["type", "model"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self._steps = Counter("mezzotint_steps", "denoising steps of ended sessions", ["device"], registry=registry)
        self._work = Counter(
            "mezzotint_work_seconds", "time that a worker spent, by what it did", ["device", "what"], registry=registry
        )
        self._rows = Histogram(
            "mezzotint_call_rows", "rows that shared a model call", ["device"], buckets=ROWS, registry=registry
        )
        self._occupancy = Histogram(
            "mezzotint_call_occupancy_ratio", "rows of a model call over those it may have", ["device"], buckets=SHARES,
            registry=registry,
        )  # fmt: skip
        self._full = Counter(
            "mezzotint_out_of_memory", "pieces of work that memory did not hold; most are done smaller", ["device"],
            registry=registry,
        )  # fmt: skip
        self._error = Histogram(
            "mezzotint_estimate_error_ratio", "how far the promised time was from the real one, over the real one",
            ["basis"], buckets=ERRORS, registry=registry,
        )  # fmt: skip

    def watch(self, seats: dict[str, Seat], standing: Standing) -> None:
        """What to look at when Prometheus asks."""
        self.registry.register(_Now(seats, standing))

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def accepted(self, session_id: str, kind: str, promised: tuple[float, str] | None = None) -> None:
        """`kind`: the request's type. `promised`: seconds from start to end, and their basis."""
        self._accepted.labels(kind).inc()
        if promised is not None:
            self._promised[session_id] = promised
            if len(self._promised) > PROMISES:
                del self._promised[next(iter(self._promised))]

    def ended(self, session: Session) -> None:
        asked, spans = session.request, session.spans
        self._ended.labels(str(session.state), asked.type, asked.model).inc()
        if session.error is not None:
            self._errors.labels(session.error.code).inc()
        for name in SPANS:
            if name in spans:
                self._phase.labels(name).observe(spans[name])
        if session.started_at is not None:
            self._wait.labels(asked.type).observe(session.started_at - session.created_at)
        if session.device is not None:
            self._steps.labels(session.device).inc(session.usage.steps_run)
        promised = self._promised.pop(session.id, None)
        if str(session.state) != "succeeded":
            return
        self._whole.labels(asked.type, asked.model).observe(sum(spans.values()))
        real = sum(seconds for name, seconds in spans.items() if name not in ("queued", "paused"))
        if promised is not None and real > 0:
            self._error.labels(promised[1]).observe(abs(promised[0] - real) / real)

    def measured(self, device: str, measured: Measured) -> None:
        work = measured.work
        if not measured.held:
            self._full.labels(device).inc()
        if measured.seconds is not None:
            self._work.labels(device, work.what).inc(measured.seconds)
        if work.what == "step" and measured.held:
            self._rows.labels(device).observe(work.rows)
            if measured.cap:
                self._occupancy.labels(device).observe(min(1.0, work.rows / measured.cap))


class _Now(Collector):
    def __init__(self, seats: dict[str, Seat], standing: Standing) -> None:
        self._seats, self._standing = seats, standing

    def describe(self) -> Iterator[Metric]:
        """Nothing is read before the first question."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        sessions = GaugeMetricFamily("mezzotint_sessions", "sessions that wait or run", labels=["state", "type"])
        for (state, kind), count in self._standing.sessions_now().items():
            sessions.add_metric([state, kind], count)
        yield sessions
        about = "sessions that wait or run and that nobody has in hand; anything but 0 is a bug"
        yield GaugeMetricFamily("mezzotint_sessions_astray", about, value=self._standing.astray)
        up = GaugeMetricFamily("mezzotint_worker_ready", "1 when the worker takes sessions", labels=["device"])
        restarts = CounterMetricFamily("mezzotint_worker_restarts", "workers that were lost", labels=["device"])
        memory = GaugeMetricFamily(
            "mezzotint_memory_bytes",
            "of a worker: in use, of that weights, and what it may take",
            labels=["device", "of"],
        )
        cache = CounterMetricFamily(
            "mezzotint_prompt_cache",
            "prompts that were encoded before, and those that were not",
            labels=["device", "result"],
        )
        for device, seat in self._seats.items():
            worker, facts = seat.worker, seat.facts
            up.add_metric([device], float(worker is not None and worker.hello is not None))
            restarts.add_metric([device], seat.restarts)
            if facts is not None:
                memory.add_metric([device, "budget"], facts.memory_budget_bytes)
            if worker is not None and (beat := worker.heartbeat) is not None:
                memory.add_metric([device, "used"], beat.memory_bytes)
                memory.add_metric([device, "weights"], beat.weights_bytes)
                cache.add_metric([device, "hit"], beat.prompt_hits)
                cache.add_metric([device, "miss"], beat.prompt_misses)
        yield from (up, restarts, memory, cache)
