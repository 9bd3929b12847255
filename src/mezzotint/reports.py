"""What workers say, and what their end means, as stored facts and events. Must not claim a session."""

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

import structlog

from mezzotint.checkpoints import Checkpoint, Checkpoints
from mezzotint.errors import ErrorInfo, TryLater
from mezzotint.events import Events
from mezzotint.line import Line
from mezzotint.live import Live, Lives
from mezzotint.session import ImageRecord, Phase, Preview, Session, State
from mezzotint.store.blobs import Blobs
from mezzotint.store.sql import Store
from mezzotint.tuning import Choices
from mezzotint.workers import wire
from mezzotint.workers.local import LocalWorker

log = structlog.get_logger(__name__)

AGAIN_S = 0.5  # until a write is tried again
STORING_S = 60.0  # that a picture waits for a disk to take it
MAX_LOSSES = 10


class Reports:
    """The writing half of the dispatcher: ends sessions and sends them back to the line."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        checkpoints: Checkpoints,
        events: Events,
        choices: Choices,
        line: Line,
        lives: Lives,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called when there may be something to claim, or room for it."""
        self._store, self._blobs, self._events, self._choices = store, blobs, events, choices
        self._checkpoints = checkpoints
        self._line, self._lives, self._changed = line, lives, changed
        self._retries: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def stop(self) -> None:
        """Give up what could not be written yet; the next start finds those rows running."""
        self._stopped = True
        for retry in self._retries:
            retry.cancel()
        await asyncio.gather(*self._retries, return_exceptions=True)

    async def heard(self, worker: LocalWorker, message: wire.FromWorker, blob: bytes) -> None:
        live = self._lives.get(getattr(message, "session_id", ""))
        is_theirs = live is not None and live.worker is worker and live.ending is None
        if live is None or not is_theirs or live.session.attempt != getattr(message, "attempt", None):
            return
        session_id = live.session.id
        match message:
            case wire.Phase():
                live.enter(message.phase, message.at_s)
                live.heard = True
                live.loads = message.phase == "loading"
                live.progress = replace(live.progress, phase=Phase(message.phase))
                self._events.tell(session_id, "progress", live.progress)
            case wire.Progress():
                live.advance(message)
                self._events.tell(session_id, "progress", live.progress)
            case wire.Warned():
                warning = {"code": message.code, "message": message.message, "field": message.field}
                await self.warn(live, warning)
            case wire.Preview():
                self._show(live, message, blob)
            case wire.Checkpoint():
                self._keep_state(live, message, blob)
            case wire.ImageDone():
                live.unstored.append((message, blob))
                if live.images_left > len(live.unstored):  # the last is recorded with the end, which follows it
                    await self._keep_images(live)
            case wire.Paused():
                live.ending = message
                await self._pause(live, message)
            case wire.Ended():
                live.ending = message
                await self._keep_images(live)
                if not live.unstored and self._lives.get(session_id) is live:
                    await self._end(live)

    def _show(self, live: Live, message: wire.Preview, file: bytes) -> None:
        live.preview = Preview(
            image_index=message.image_index,
            step=message.step,
            steps=message.steps,
            width=message.width,
            height=message.height,
            format=live.session.request.output.format,
            b64_json=file,
        )
        self._events.tell(live.session.id, "preview", live.preview)

    def _keep_state(self, live: Live, message: wire.Checkpoint, state: bytes) -> None:
        live.usage = message.usage
        live.has_moved |= message.step > live.resumed.get(message.index, 0)
        one = Checkpoint(index=message.index, step=message.step, print=live.print, dtype=live.model.dtype, state=state)
        self._checkpoints.keep(live.session.id, one)

    async def warn(self, live: Live, warning: dict[str, Any]) -> None:
        if warning in live.session.warnings:
            return
        live.session = live.session.having(warnings=(*live.session.warnings, warning))

        async def write() -> None:
            await self._store.add_warning(live.session.id, attempt=live.session.attempt, warning=warning)

        await self._insist(write)

    async def _keep_images(self, live: Live) -> None:
        """A disk that is full or fails may be mended soon: nobody waits for it but the session, and not for ever."""
        if live.waits_for_disk:
            return  # what waits takes these too
        try:
            await self._keep_unstored(live)
        except TryLater as error:
            log.warning("a picture cannot be stored yet", session=live.session.id, code=error.code)
            live.waits_for_disk = True
            self._retry(self._keep_later(live, error))

    async def _keep_later(self, live: Live, error: TryLater) -> None:
        until = time.monotonic() + STORING_S
        while live.unstored and time.monotonic() < until:
            await asyncio.sleep(AGAIN_S)
            if self._lives.get(live.session.id) is not live or isinstance(live.ending, wire.Paused):
                return  # another attempt draws them again
            if live.ending is not None and live.session.cancel_requested:
                break
            try:
                await self._keep_unstored(live)
            except TryLater as latest:
                error = latest
        if live.unstored:
            live.store_error = ErrorInfo(code=error.code, message=error.message, phase="storing", retryable=True)
            live.unstored.clear()
        live.waits_for_disk = False
        if live.ending is not None and self._lives.get(live.session.id) is live:
            await self._end(live)

    async def _keep_unstored(self, live: Live) -> None:
        """Raises TryLater; then those from the first that was not taken on are still there."""
        while live.unstored:
            message, blob = live.unstored[0]
            file = blob[: len(blob) - message.thumbnail_bytes]
            sha256 = await self._blobs.put(live.session.id, file)
            if message.thumbnail_bytes:
                await self._blobs.put_thumbnail(live.session.id, sha256, blob[len(file) :])
            image = ImageRecord(
                index=message.index,
                seed=message.seed,
                width=message.width,
                height=message.height,
                format=message.format,
                bytes=len(file),
                sha256=sha256,
            )
            if len(live.unstored) == 1 and live.has_succeeded:
                await self._write_end(live, State.SUCCEEDED, None, image)
            elif await self._store.add_image(live.session.id, attempt=live.session.attempt, image=image):
                live.images[image.index] = image
                live.usage, live.has_moved = message.usage, True
            del live.unstored[:1]

    async def _pause(self, live: Live, message: wire.Paused) -> None:
        """Its state is on disk before it is paused, and stays until it is resumed."""
        session_id, attempt, spans = live.session.id, live.session.attempt, live.spans_now()
        live.usage = message.usage

        async def write() -> None:
            await self._settle(live)
            paused = await self._store.paused(
                session_id, attempt=attempt, spans=spans, usage=live.usage_so_far, now=time.time()
            )
            if paused is None:  # a cancel came first
                await self._write_end(live, State.CANCELLED, None)
            else:
                self._lives.pop(session_id, None)
                self._changed()

        await self._insist(write)

    async def _settle(self, live: Live) -> None:
        """Its states on disk. Raises TryLater; not of one that is to be cancelled, which needs none."""
        try:
            await self._checkpoints.settle(live.session.id)
        except TryLater:
            if not live.session.cancel_requested:
                raise

    async def _end(self, live: Live) -> None:
        assert isinstance(live.ending, wire.Ended)  # noqa: S101  invariant
        state, error = State(live.ending.outcome), live.ending.error
        if live.timed_out and state is State.CANCELLED and not live.session.cancel_requested:
            limit = live.session.request.timeout_s
            state, error = State.FAILED, ErrorInfo(code="timeout", message=f"ran longer than {limit:g} s")
        if state is State.SUCCEEDED and live.store_error is not None:
            state, error = State.FAILED, live.store_error
        await self.finish(live, state, error)

    async def finish(self, live: Live, state: State, error: ErrorInfo | None) -> None:
        """End it so, however long the store takes."""
        await self._insist(functools.partial(self._write_end, live, state, error))

    async def _write_end(
        self, live: Live, state: State, error: ErrorInfo | None, image: ImageRecord | None = None
    ) -> None:
        """Raises TryLater; then it has not ended."""
        if live.ending is not None:
            live.usage = live.ending.usage
        session_id, attempt, spans = live.session.id, live.session.attempt, live.spans_now()
        usage = live.usage_so_far
        now = time.time()
        ended = await self._store.finish(
            session_id,
            attempt=attempt,
            state=state,
            now=now,
            spans=spans,
            usage=usage,
            image=image,
            warnings=live.session.warnings,
            error=error,
        )
        if ended is None and state is not State.CANCELLED:  # a cancel came first: it was promised
            ended = await self._store.finish(
                session_id, attempt=attempt, state=State.CANCELLED, now=now, spans=spans, usage=usage
            )
        self._lives.pop(session_id, None)
        if ended is not None:
            self.ended(ended)
        self._changed()

    async def _insist(self, write: Callable[[], Awaitable[None]]) -> None:
        """What has happened must be written, however long the database is busy or full; nobody waits for a retry."""

        async def again() -> None:
            while True:
                await asyncio.sleep(AGAIN_S)
                with contextlib.suppress(TryLater):
                    return await write()

        try:
            await write()
        except TryLater as error:
            log.warning("cannot write yet", code=error.code)
            self._retry(again())

    def _retry(self, writing: Coroutine[Any, Any, None]) -> None:
        if self._stopped:
            writing.close()
            return
        retry = asyncio.create_task(writing, name="write again")
        self._retries.add(retry)
        retry.add_done_callback(self._retries.discard)

    async def lost(self, worker: LocalWorker) -> None:
        lives = [live for live in self._lives.on(worker) if live.ending is None]  # else it has drawn its pictures
        for live in lives:
            await self._lose(live, alone=len(lives) == 1)
        self._changed()

    async def _lose(self, live: Live, *, alone: bool) -> None:
        """Its worker is gone: back to the queue, or ended when it is the one that kills workers."""
        if live.loads and live.model.executor != "torch":
            why = "a worker was lost while it loaded the faster form"
            self._choices.distrust(live.model, live.worker.device, why)
        losses = 1 if live.has_moved else live.session.losses + 1
        if (losses >= 2 and alone and live.heard) or losses >= MAX_LOSSES:
            message = f"{losses} workers were lost while they ran it"
            error = ErrorInfo(code="worker_lost", message=message, phase=live.phase)
            await self.finish(live, State.FAILED, error)
            return
        await self.requeue(live, losses)

    async def requeue(self, live: Live, losses: int) -> None:
        session, spans, since = live.session, live.spans_now(), time.monotonic()

        async def write() -> None:
            if live.session.pause_requested:
                await self._settle(live)
            after = await self._store.requeue(
                session.id,
                attempt=session.attempt,
                cause="worker_lost",
                losses=losses,
                spans=spans,
                usage=live.usage_so_far,
                now=time.time(),
            )
            self._lives.pop(session.id, None)
            if after is not None and after.state is State.QUEUED:
                self._line.join(after, spans, since, live.model.dtype)
                self._changed()
            elif after is not None and after.ended:
                self.ended(after)

        await self._insist(write)

    def ended(self, session: Session) -> None:
        self._checkpoints.forget(session.id)
        code = session.error.code if session.error else None
        log.info("session ended", session=session.id, state=str(session.state), code=code, attempt=session.attempt)
