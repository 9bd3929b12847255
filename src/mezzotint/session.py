"""A session's life as pure values: states, the table of legal changes, progress. Must not do I/O or read a clock."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from mezzotint.errors import ErrorInfo
from mezzotint.request import Request


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Phase(StrEnum):
    """What a running session is doing. A change of phase is progress, not a change of state."""

    LOADING = "loading"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"
    STORING = "storing"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})

# The law. The database repeats it in a trigger (store/migrations); a test compares the two.
NEXT: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED, State.FAILED}),
    State.RUNNING: frozenset(
        # QUEUED again: its worker was lost, or the server restarted
        {State.QUEUED, State.PAUSED, State.SUCCEEDED, State.FAILED, State.CANCELLED}
    ),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
}

SPANS = ("queued", "loading", "encoding", "denoising", "decoding", "storing", "paused")


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a session is. `step` and `image_index` are those of its lowest unfinished image."""

    phase: Phase | None = None
    step: int = 0
    steps: int = 0
    fraction: float = 0.0  # all steps done over all steps of all images; 1.0 only when succeeded
    eta_s: float | None = None
    image_index: int = 0
    call: int | None = None  # the worker's model call that it was last in; sessions with the same one shared it


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a session has taken, over all its attempts; of one whose worker was lost, up to its last checkpoint."""

    peak_memory_bytes: int | None = None
    device_s: float | None = None  # time of the model calls, each shared by rows
    steps_run: int = 0
    steps_resumed: int = 0  # that an attempt found done and did not run again
    batch_rows: dict[str, int] = field(default_factory=dict)  # rows that shared a call, its own too -> calls
    executor: str | None = None  # what ran the model, and in which dtype; None until it has
    dtype: str | None = None
    unknown: dict[str, str] = field(default_factory=dict)
    reached: tuple[int, int] | None = None  # its lowest unfinished image and the step of that, for `Progress`

    def plus(self, later: "Usage") -> "Usage":
        """With a later attempt's; what ran the model is the later one's, if it got so far."""
        peaks = [one.peak_memory_bytes for one in (self, later) if one.peak_memory_bytes is not None]
        times = [one.device_s for one in (self, later) if one.device_s is not None]
        rows = {
            name: self.batch_rows.get(name, 0) + later.batch_rows.get(name, 0)
            for name in sorted({*self.batch_rows, *later.batch_rows}, key=int)
        }
        return Usage(
            peak_memory_bytes=max(peaks, default=None),
            device_s=sum(times) if times else None,
            steps_run=self.steps_run + later.steps_run,
            steps_resumed=self.steps_resumed + later.steps_resumed,
            batch_rows=rows,
            executor=later.executor or self.executor,
            dtype=later.dtype or self.dtype,
            unknown={} if peaks else later.unknown or self.unknown,
            reached=later.reached or self.reached,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """An image on its way. Kept in memory only, until the next one."""

    image_index: int
    step: int
    steps: int
    width: int
    height: int
    format: str
    b64_json: bytes  # base64 once it is JSON


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """A stored picture of a session. It exists on disk, fsynced, before this record does."""

    index: int
    seed: int
    width: int
    height: int
    format: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One accepted request's life. A change returns a new value; the store decides whether it happens."""

    id: str
    state: State
    request: Request
    device: str | None
    attempt: int
    losses: int  # consecutive workers lost under it with no progress kept
    created_at: float  # Unix seconds, for display
    started_at: float | None
    ended_at: float | None
    spans: dict[str, float]  # seconds by name of SPANS, up to the last stored change
    usage: Usage
    images: tuple[ImageRecord, ...]
    error: ErrorInfo | None
    warnings: tuple[dict[str, Any], ...]
    cancel_requested: bool
    pause_requested: bool
    progress: Progress
    queue_position: int | None = None
    batch_id: str | None = None
    owner: str | None = None  # id of the API key that sent it; None where nobody is asked for one

    @property
    def ended(self) -> bool:
        return self.state in FINAL

    def spans_now(self, now: float) -> dict[str, float]:
        """With the time since it was paused; `now` as `created_at`."""
        if self.state is not State.PAUSED:
            return self.spans
        told = sum(seconds for name, seconds in self.spans.items() if name != "paused")
        return self.spans | {"paused": max(0.0, now - self.created_at - told)}

    def having(self, **changes: Any) -> "Session":
        return replace(self, **changes)
