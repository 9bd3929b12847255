"""Loads models and adapters in a thread of its own, one at a time, while the steps of others go on: a large model takes
longer than anybody should wait. Must not decide which session needs what.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from mezzotint.engine.memory import Key, LoadedPart, Residents
from mezzotint.engine.stopwatch import Stopwatch, is_device, is_memory
from mezzotint.errors import ErrorInfo
from mezzotint.workers import wire

log = logging.getLogger(__name__)

Told = list[tuple[wire.FromWorker, bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """One part on its way. `since` on the engine's clock; `session_id` of who needs it, or `asked` by a message."""

    key: Key
    since: float
    session_id: str | None
    asked: wire.Load | None
    loaded: Future[LoadedPart]

    @property
    def ref(self) -> wire.ModelRef:
        return self.key[-1]

    @property
    def work(self) -> wire.Work:
        return wire.load_of(self.ref)


class Loads:
    """Not thread-safe, but for `doing`: the engine's thread calls everything."""

    def __init__(self, residents: Residents, watch: Stopwatch, clock: Callable[[], float]) -> None:
        self._residents, self._watch, self._clock = residents, watch, clock
        self._asked: deque[wire.Load] = deque()
        self._now: Loading | None = None

    @property
    def idle(self) -> bool:
        """Nothing is being loaded, and nothing is asked for."""
        return self._now is None and not self._asked

    @property
    def busy(self) -> bool:
        """Something is being loaded; what else is needed has to wait for it."""
        return self._now is not None

    @property
    def doing(self) -> tuple[wire.Work, float] | None:
        """What is being loaded and since when. Any thread may ask."""
        now = self._now
        return None if now is None else (now.work, now.since)

    def concerns(self, model_id: str) -> bool:
        """Whether it is being loaded or about to be, or something that belongs to it."""
        asked = {load.model.id for load in self._asked}
        return model_id in asked or (self._now is not None and model_id in {ref.id for ref in self._now.key})

    def ask(self, load: wire.Load) -> None:
        self._asked.append(load)

    def begin_asked(self, needed: Iterable[wire.Submit]) -> Told:
        """The next load that a message asked for, if nothing is on its way. What is there already is told at once."""
        told: Told = []
        while self._asked and self._now is None:
            load = self._asked.popleft()
            if self._residents.has(load.model) or (load.ahead and not self._residents.fits(load.model)):
                told.append(self._answer(load))
            else:
                self.begin((load.model,), needed, asked=load)
        return told

    def begin(
        self, key: Key, needed: Iterable[wire.Submit], *, session_id: str | None = None, asked: wire.Load | None = None
    ) -> None:
        """Makes room and starts the thread, which has the priority of the one that calls this."""
        self._residents.make_room(key, needed, replaces=asked is not None)
        since, loaded = self._clock(), _in_a_thread(self._residents.reader(key))
        self._now = Loading(key=key, since=since, session_id=session_id, asked=asked, loaded=loaded)
        self._watch.disturbed = True

    def wait(self, at_most_s: float) -> None:
        """For the end of what is on its way."""
        if self._now is not None:
            wait([self._now.loaded], at_most_s)

    def take(self, needed: Iterable[wire.Submit]) -> tuple[Told, tuple[str, wire.ModelRef, Exception] | None]:
        """What has come to its end, well or not: what is to be told, and which session has its load failed by what.

        Raises what the device itself failed with.
        """
        now = self._now
        if now is None or not now.loaded.done():
            return [], None
        self._now, self._watch.disturbed = None, False
        try:
            self._residents.put(now.key, now.loaded.result(), needed)
        except Exception as error:
            if is_device(error):
                raise
            if is_memory(error):
                self._watch.tell(wire.Measured(work=now.work, held=False))
            else:
                log.error("%s could not be loaded", now.ref.id, exc_info=error)
            if now.asked is not None:
                return [self._answer(now.asked, error)], None
            return [], (now.session_id or "", now.ref, error)
        seconds, extra = self._clock() - now.since, self._residents.loads_to(now.ref)
        self._watch.tell(wire.Measured(work=now.work, seconds=seconds, extra_bytes=extra))
        return [] if now.asked is None else [self._answer(now.asked)], None

    def _answer(self, load: wire.Load, error: Exception | None = None) -> tuple[wire.Loaded, bytes]:
        why = None
        if error is not None and is_memory(error):
            why = ErrorInfo(code="out_of_memory", message=f"not enough memory to load {load.model.id!r}")
        elif error is not None:
            why = ErrorInfo(code="model_invalid", message=f"model {load.model.id!r} cannot be loaded; the log says why")
        there = self._residents
        return wire.Loaded(asked=load.asked, resident=there.models, loaded=there.loads, error=why), b""


def _in_a_thread(read: Callable[[], LoadedPart]) -> Future[LoadedPart]:
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")
    try:
        return thread.submit(_read, read)
    except RuntimeError as error:  # there is no memory for one more thread
        failed: Future[LoadedPart] = Future()
        failed.set_exception(MemoryError(str(error)))
        return failed
    finally:
        thread.shutdown(wait=False)  # once it is done


def _read(read: Callable[[], LoadedPart]) -> LoadedPart:
    with torch.no_grad():  # which counts for the one thread that says so
        return read()
