"""Sessions, from the caller's side: accepted, looked at, listened to, cancelled, removed. Must not know of HTTP."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mezzotint.callers import Caller, asking
from mezzotint.errors import CallerError, Conflict, Fault, InvalidRequest, NotFound, TryLater
from mezzotint.events import Event
from mezzotint.operations import intake
from mezzotint.operations.parts import Verbs
from mezzotint.schema import nearest
from mezzotint.session import FINAL, ImageRecord, Preview, Session, State
from mezzotint.store.rows import Attempt

ACTIVE = frozenset(State) - FINAL

_PAGE = 200

# inside the class, `list` is the method
Attempts = list[Attempt]
Sessions = list[Session]


class SessionVerbs(Verbs):
    """What a caller may do with sessions."""

    async def create(
        self,
        body: Any,
        idempotency_key: str | None = None,
        foreign: intake.Foreign | None = None,
        route: str = "",
        beside: Sequence[Fault] = (),
    ) -> Session:
        """Accept a request. Durable when it returns. Raises InvalidRequest with every fault, TryLater when full.

        `beside`: faults of what came with the body, which refuse it too.

        The same key and body again, by the same `route`, answer the first session; Conflict when the key came with
        another body.
        """
        compared, route = (body, route) if foreign is None else (foreign.compared, foreign.route)
        once = intake.once(compared, idempotency_key, route)
        if once is not None and not beside:  # what was accepted once is answered, also when it would not be any more
            first = await self._as_now(await self._parts.store.first(once))
            if first is not None:
                return first
        resolved = await intake.read(self._parts, body, foreign, beside=beside)
        # a caller who leaves meanwhile must not leave a row that nobody runs
        return await asyncio.shield(intake.accept(self._parts, resolved, once))

    async def get(self, session_id: str) -> Session:
        """Raises NotFound, also for another's session."""
        session = await self._as_now(await self._parts.store.get(session_id))
        if session is None or not asking.get().sees(session.owner):
            raise NotFound(f"session {session_id[:64]!r} is not here", code="session_not_found")
        return session

    async def _as_now(self, stored: Session | None) -> Session | None:
        """With what only memory knows. What memory does not know has changed since it was read: it is read again."""
        if stored is not None and not self._parts.dispatcher.knows(stored):
            stored = await self._parts.store.get(stored.id)
        return None if stored is None else self._parts.dispatcher.view(stored)

    async def own(self, session_id: str) -> Session:
        """One that the caller may change. Raises NotFound, or CallerError `forbidden` where they may only look."""
        session = await self.get(session_id)
        if not asking.get().changes(session.owner):
            message = f"session {session_id!r} is another API key's; only one with the scope admin may change it"
            raise CallerError(message, code="forbidden")
        return session

    async def preview(self, session_id: str) -> Preview | None:
        """How its image looks on its way, if it runs and was asked to be shown. Raises NotFound."""
        return self._parts.dispatcher.preview((await self.get(session_id)).id)

    async def trace(self, session_id: str) -> tuple[Session, Attempts]:
        """The session and every attempt at it, oldest first. Raises NotFound."""
        return await self.get(session_id), await self._parts.store.attempts(session_id)

    async def list(
        self,
        *,
        active: bool | None = None,
        state: str | None = None,
        type: str | None = None,  # noqa: A002  the contract's word
        model: str | None = None,
        device: str | None = None,
        batch: str | None = None,
        text: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Session], str | None]:
        """Newest first, those that the caller sees; `text` is looked for in the prompts. Raises InvalidRequest."""
        states = frozenset(State)
        if active is not None:
            states &= ACTIVE if active else FINAL
        if state is not None:
            if state not in set(State):
                near = nearest(state, State)
                message = (
                    f"state {state[:64]!r} does not exist; {f'did you mean {near}?' if near else ', '.join(State)}"
                )
                raise InvalidRequest([Fault(field="state", code="invalid_value", message=message)])
            states &= {State(state)}
        if not states:
            return [], None
        caller = asking.get()
        found, next_cursor = await self._parts.store.list(
            states=states,
            type=type,
            model=model,
            device=device,
            batch_id=batch,
            owner=None if caller.may("read-all") else caller.name,
            text=text,
            limit=limit,
            cursor=cursor,
        )
        now = [await self._as_now(session) for session in found]
        return [session for session in now if session is not None and session.state in states], next_cursor

    async def active(self) -> Sessions:
        """All that have not ended, newest first."""
        sessions, cursor = await self.list(active=True, limit=_PAGE)
        while cursor is not None:
            more, cursor = await self.list(active=True, limit=_PAGE, cursor=cursor)
            sessions += more
        return sessions

    async def cancel(self, session_id: str) -> Session:
        await self.own(session_id)
        return await asyncio.shield(self._parts.dispatcher.cancel(session_id))

    async def pause(self, session_id: str) -> Session:
        """Stop it at the next step, to go on from there. Raises NotFound, or Conflict when it does not run."""
        await self.own(session_id)
        return await asyncio.shield(self._parts.dispatcher.pause(session_id))

    async def resume(self, session_id: str) -> Session:
        """Raises NotFound, or Conflict when it is not paused."""
        await self.own(session_id)
        return await asyncio.shield(self._parts.dispatcher.resume(session_id))

    async def delete(self, session_id: str) -> None:
        """Remove an ended session and its pictures. Raises NotFound, or Conflict while it is active."""
        session = await self.own(session_id)
        if not session.ended:
            message = f"session {session_id!r} is {session.state}; cancel it first"
            raise Conflict(message, code="session_active")
        if not await self._parts.store.delete(session_id):
            raise NotFound(f"session {session_id[:64]!r} has just been removed", code="session_not_found")
        await self._parts.blobs.delete(session_id)
        self._parts.events.forget(session_id)

    async def thumbnail(self, session_id: str, index: int) -> tuple[ImageRecord, Path, Path | None]:
        """A picture, where it is, and where the small one of it is; None when it is small itself. Raises NotFound."""
        record, path = await self.image(session_id, index)
        return record, path, await asyncio.to_thread(self._parts.blobs.thumbnail, session_id, record.sha256)

    async def image(self, session_id: str, index: int) -> tuple[ImageRecord, Path]:
        session = await self.get(session_id)
        found = next((image for image in session.images if image.index == index), None)
        if found is None:
            message = f"session {session_id!r} has no image {index}; it has {len(session.images)}"
            raise NotFound(message, code="image_not_found")
        return found, self._parts.blobs.path(session_id, found.sha256)

    async def events(self, session_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Events above `after`, ending after `end`. Raises NotFound before the first."""
        session = await self.get(session_id)
        after = min(after, self._parts.events.last_id(session_id))  # nobody has been told more
        # from now on, before what was is read; one that has ended tells no more than that
        live = None if session.ended else self._parts.events.follow(session_id, after)
        return self._replayed(await self._parts.store.replay(session_id, after=after), live, session, after)

    def everything(self) -> AsyncIterator[Sequence[tuple[str, Event]]]:
        """Events of all sessions that the caller sees from now on, in bundles, each with its session's id.

        Nothing is replayed.
        """
        everybodys, caller = self._parts.events.everything(), asking.get()
        return self._all_placed(everybodys if caller.may("read-all") else self._seen(everybodys, caller))

    async def _all_placed(
        self, told: AsyncIterator[Sequence[tuple[str, Event]]]
    ) -> AsyncIterator[Sequence[tuple[str, Event]]]:
        async for bundle in told:
            yield [(session_id, self._placed(event)) for session_id, event in bundle]

    async def _seen(
        self, told: AsyncIterator[Sequence[tuple[str, Event]]], caller: Caller
    ) -> AsyncIterator[Sequence[tuple[str, Event]]]:
        visible: dict[str, bool] = {}  # of sessions that have not ended
        async for bundle in told:
            seen = []
            for session_id, event in bundle:
                if session_id not in visible:
                    session = event.data if isinstance(event.data, Session) else await self._parts.store.get(session_id)
                    visible[session_id] = session is not None and caller.sees(session.owner)
                if visible[session_id]:
                    seen.append((session_id, event))
                if event.kind == "end":
                    del visible[session_id]
            if seen:
                yield seen

    async def _replayed(
        self, stored: Sequence[Event], live: AsyncIterator[Event] | None, session: Session, after: int
    ) -> AsyncIterator[Event]:
        """What was kept above `after`, then what this process tells; where no end is left to tell, state and end."""
        for event in stored:
            yield self._placed(event)
            if event.kind == "end":
                return
        last = stored[-1].id if stored else after
        if live is None:
            yield Event(id=last + 1, kind="state", data=session)
            yield Event(id=last + 2, kind="end", data=session)
            return
        async for event in live:
            if event.id > last:
                yield self._placed(event)

    def _placed(self, event: Event) -> Event:
        """With its place in the queue, if it waits: a session gets one once its row and this event are stored."""
        if event.kind != "state" or event.data.state is not State.QUEUED:
            return event
        position = self._parts.dispatcher.view(event.data).queue_position
        return replace(event, data=event.data.having(queue_position=position))

    async def wait(
        self, session: Session, limit_s: float | None = None, leaving: asyncio.Future[None] | None = None
    ) -> Session:
        """Until a session that the caller was shown has ended or the time is over; returns it as it is then. Raises
        TryLater `not_ready` when the server stops first and there is no limit.

        It also returns when `leaving` is done, with the session cancelled if its request wants that.
        """
        if leaving is None:
            return await self._end(session, limit_s)
        ending = asyncio.ensure_future(self._end(session, limit_s))
        both: set[asyncio.Future[Any]] = {ending, leaving}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return ending.result()
            await self.left(session)
            return await self.get(session.id)
        finally:
            ending.cancel()

    async def left(self, session: Session) -> None:
        """Its caller waits for it no more: it is cancelled if its request wants that and it has not ended."""
        if session.request.cancel_on_disconnect:
            with contextlib.suppress(Conflict, NotFound):  # it ended, or was removed, in the same moment
                await self.cancel(session.id)

    async def _end(self, session: Session, limit_s: float | None) -> Session:
        if not session.ended and not self._parts.events.knows(session.id):
            session = await self.get(session.id)  # it may have ended so long ago that nobody tells of it any more
        if session.ended:
            return session
        try:
            async with asyncio.timeout(limit_s):
                return self._parts.dispatcher.view(await self._parts.events.over(session.id))
        except TimeoutError:
            return await self.get(session.id)
        except TryLater:
            if limit_s is None:
                raise
            return await self.get(session.id)  # who waits for so long only knows that it may not have ended
