"""A session inside a worker: what is true of it now and not in its row yet. Must not write a row."""

import time
from dataclasses import dataclass, field, replace

from mezzotint.errors import ErrorInfo
from mezzotint.session import ImageRecord, Preview, Progress, Session, State, Usage
from mezzotint.workers import wire
from mezzotint.workers.local import LocalWorker

_UNTOLD = dict.fromkeys(("device_s", "peak_memory_bytes"), "its worker has not told yet")


@dataclass(kw_only=True, slots=True)
class Live:
    session: Session
    worker: LocalWorker
    spans: dict[str, float]
    phase: str
    since: float  # monotonic, when the phase began
    progress: Progress
    model: wire.ModelRef
    print: str  # of what its checkpoints are of
    resumed: dict[int, int]  # image -> steps that it went on from
    usage: Usage = field(default_factory=lambda: Usage(unknown=_UNTOLD))  # of this attempt, as last told
    has_moved: bool = False  # past what was kept when it was claimed: who moves does not kill workers
    heard: bool = False  # its worker has begun with it: one that had not, died of something else
    loads: bool = False  # its worker says that it is loading the model
    denoising_since: float | None = None
    images: dict[int, ImageRecord] = field(default_factory=dict)
    preview: Preview | None = None  # the last one
    timed_out: bool = False
    unstored: list[tuple[wire.ImageDone, bytes]] = field(default_factory=list)  # pictures on their way to the disk
    waits_for_disk: bool = False  # which did not take the first of them yet
    ending: wire.Ended | wire.Paused | None = None  # its worker is done with it
    store_error: ErrorInfo | None = None

    @property
    def images_left(self) -> int:
        return self.session.request.num_images - len(self.images)

    @property
    def has_succeeded(self) -> bool:
        """By what its worker said, if the disk takes what is unstored still."""
        ended = isinstance(self.ending, wire.Ended) and self.ending.outcome == State.SUCCEEDED
        return ended and self.store_error is None

    @property
    def usage_so_far(self) -> Usage:
        return self.session.usage.plus(self.usage)

    def enter(self, phase: str, at_s: float) -> None:
        at_s = min(max(at_s, self.since), time.monotonic())  # the worker's clock is this machine's
        self.spans[self.phase] = self.spans.get(self.phase, 0.0) + at_s - self.since
        self.phase, self.since = phase, at_s
        if phase == "denoising" and self.denoising_since is None:
            self.denoising_since = at_s

    def spans_now(self) -> dict[str, float]:
        return self.spans | {self.phase: self.spans.get(self.phase, 0.0) + time.monotonic() - self.since}

    def advance(self, message: wire.Progress) -> None:
        """A share of all steps; the time left from the steps of this attempt so far."""
        eta = None
        done = message.done - sum(self.resumed.values())
        if self.denoising_since is not None and done > 0:
            eta = (time.monotonic() - self.denoising_since) * (message.total - message.done) / done
        self.progress = replace(
            self.progress,
            step=message.step,
            steps=message.steps,
            image_index=message.image_index,
            fraction=min(0.999, message.done / message.total),
            eta_s=eta,
            call=message.call,
        )


class Lives(dict[str, Live]):
    """All of them, by session id."""

    def on(self, worker: LocalWorker) -> list[Live]:
        return [live for live in self.values() if live.worker is worker]

    def at_work(self, device: str) -> list[Live]:
        """Those that a device works on: not those that it is done with, whose end is being written."""
        return [live for live in self.values() if live.worker.device == device and live.ending is None]

    def images_on(self, worker: LocalWorker) -> int:
        """Pictures that are still to come from a worker."""
        return sum(live.images_left for live in self.on(worker))
