"""Times pieces of work and the memory that each takes, for the API process to learn from. Must not decide anything."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import torch

from mezzotint.engine.meter import Meter
from mezzotint.workers import wire

TOLD_S = 0.25


class Stopwatch:
    """Collects what each piece of work took. The first of its kind in this process is not timed when it sets things
    up; its memory is measured exactly, once, unless an earlier worker has done so.
    """

    def __init__(self, clock: Callable[[], float], meter: Meter) -> None:
        self._clock, self._meter = clock, meter
        self._seen: set[wire.Work] = set()
        self._known_memory: set[wire.Work] = set()
        self._told: list[wire.Measured] = []
        self._told_at = clock()
        self.doing: tuple[wire.Work, float] | None = None  # and since when by the clock
        self.peak: int | None = None  # of the last piece
        self.seconds = 0.0
        self.disturbed = False  # something else works in this process: what is timed or measured now says nothing

    def know(self, things: tuple[wire.Thing, ...]) -> None:
        self._known_memory |= {thing.work for thing in things if thing.has_memory}

    @contextmanager
    def time(self, work: wire.Work) -> Iterator[None]:
        """Around a piece of work. One that raises is told only if memory did not hold it."""
        exactly, first = work not in self._known_memory and not self.disturbed, work not in self._seen
        before = self._meter.start(exactly=exactly)
        started = self._clock()
        self.doing = work, started
        try:
            yield
        except Exception as error:
            if is_memory(error):
                self._told.append(wire.Measured(work=work, held=False))
            raise
        finally:
            self.doing = None
        self.seconds = self._clock() - started
        self.peak = self._meter.peak()
        extra = None
        if exactly and before is not None and self.peak is not None:
            extra = max(0, self.peak - before)
            self._known_memory.add(work)
        self._seen.add(work)
        timed = None if self.disturbed or (first and work.what == "step") else self.seconds
        self._told.append(wire.Measured(work=work, seconds=timed, extra_bytes=extra))

    def tell(self, measured: wire.Measured) -> None:
        """Of a piece of work that ran elsewhere."""
        self._told.append(measured)

    def add(self, **known: int) -> None:
        """What is known of the last piece of work beside its time, by the fields of Measured."""
        self._told[-1] = msgspec.structs.replace(self._told[-1], **known)

    def take(self, *, soon: bool) -> list[tuple[wire.FromWorker, bytes]]:
        """What was measured since the last time, in one message: each takes the API process a while, and a core from
        the next call. Unless `soon`, it waits for more of it, `TOLD_S` at most.
        """
        now = self._clock()
        if not self._told or (not soon and now - self._told_at < TOLD_S):
            return []
        told, self._told, self._told_at = wire.Findings(measured=tuple(self._told)), [], now
        return [(told, b"")]


def is_memory(error: Exception) -> bool:
    """torch has a class of its own for a device that is full, but only words for a full host."""
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)
    told = told or (isinstance(error, RuntimeError) and str(error).strip() in _FULL_KERNELS)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


def is_device(error: Exception) -> bool:
    """Whether the device itself failed, not of memory: nothing on it can be trusted any more."""
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in _DEVICE)
    return (told or isinstance(error, torch.AcceleratorError)) and not is_memory(error)


def why(error: Exception) -> str:
    """What an error of a library says, in one line for a person."""
    if is_memory(error):
        return "there is not enough memory for it"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


_FULL_KERNELS = ("could not create a primitive", "could not execute a primitive")  # oneDNN's, without room for its code
_DEVICE = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS")
_FULL = (
    "can't allocate memory",
    "Cannot allocate memory",
    "bad_alloc",
    "could not create a memory object",
    "out of memory",
    "posix_memalign failed",
)
