"""What a worker puts on its socket, and when."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mezzotint.workers import main, wire
from mezzotint.workers.main import BUNDLE_S, Worker


class Listener:
    """The other end of a worker's socket, with the worker's clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(main, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.end, self.theirs = socket.socketpair()
        self.end.setblocking(False)
        worker: Any = Worker(self.theirs, "cpu:0", 1, 1 << 30, "none", is_spare=False)
        self.engine: Any = SimpleNamespace(
            phase=None, doing=None, loading=None, resident=(), loaded=(), weights_bytes=0,
            prompts=SimpleNamespace(hits=0, misses=0),
        )  # fmt: skip
        worker._engine = self.engine
        self.worker = worker

    def beats(self, seconds: float) -> tuple[str | None, float]:
        """What the last heartbeat of so long says that the loop is in, and since when."""
        for _ in range(int(seconds)):
            self.now += 1
            beat = self.worker._heartbeat(psutil.Process())
        return beat.phase, beat.since_s

    def steps(self, *steps: int) -> None:
        self.worker.tell([(progress(step), b"") for step in steps])

    def heard(self) -> list[wire.FromWorker]:
        """All that has come since the last time."""
        try:
            data = self.end.recv(1 << 20)
        except BlockingIOError:
            return []
        found = []
        while data:
            body, blob = wire.lengths(data[: wire.HEAD_BYTES])
            found.append(wire.decode_from_worker(data[wire.HEAD_BYTES : wire.HEAD_BYTES + body]))
            data = data[wire.HEAD_BYTES + body + blob :]
        return found


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    listener = Listener(monkeypatch)
    yield listener
    listener.end.close()
    listener.theirs.close()


def progress(step: int) -> wire.Progress:
    return wire.Progress(
        session_id="ses_1", attempt=1, image_index=0, step=step, steps=20, done=step, total=20, call=step
    )


def test_progress_of_short_steps_leaves_in_bundles_and_none_is_lost(listener: Listener) -> None:
    listener.steps(1)
    assert listener.heard() == [progress(1)], "the first at once"
    for step in (2, 3):
        listener.now += BUNDLE_S / 3
        listener.steps(step)
        assert listener.heard() == []
    listener.now += BUNDLE_S / 3 + 0.001
    listener.steps(4)
    assert listener.heard() == [progress(2), progress(3), progress(4)]


def test_progress_of_long_steps_leaves_with_each(listener: Listener) -> None:
    for step in (1, 2, 3):
        listener.now += 2 * BUNDLE_S
        listener.steps(step)
        assert listener.heard() == [progress(step)]


def test_whatever_else_is_told_takes_along_the_progress_before_it(listener: Listener) -> None:
    phase = wire.Phase(session_id="ses_1", attempt=1, phase="decoding", at_s=1.0)
    speed = wire.Speed(gflops={})
    listener.steps(1)
    listener.steps(2)
    listener.worker.tell([(progress(3), b""), (phase, b"")])
    listener.steps(4)
    listener.worker.send(speed, b"blob")  # as a heartbeat is, from its own thread
    assert listener.heard() == [progress(1), progress(2), progress(3), phase, progress(4), speed]


def test_a_loop_that_is_stuck_between_its_phases_is_no_idle_one(listener: Listener) -> None:
    assert listener.beats(90) == (None, 90), "it waits for messages"
    listener.worker._rests = False
    assert listener.beats(5) == (wire.BETWEEN, 5)
    listener.engine.phase = "encoding"
    assert listener.beats(90)[0] == "encoding"
    listener.engine.phase = None
    assert listener.beats(1) == (wire.BETWEEN, 1), "what a long phase took does not count"
    listener.worker._moved = listener.now
    assert listener.beats(1) == (wire.BETWEEN, 1), "nor what came before a step"
    listener.worker._is_spare = True
    assert listener.beats(1)[0] is None, "it makes way for others for as long as they need"


def test_a_loop_that_waits_for_a_message_rests(listener: Listener) -> None:
    def stop(*_: Any) -> None:
        assert not listener.worker._rests
        raise StopIteration

    listener.engine.idle, listener.worker._take = True, stop
    listener.worker._inbox.put((wire.Race(), b""))
    with pytest.raises(StopIteration):
        listener.worker._loop(listener.engine)
