"""Batches, from the caller's side: many requests accepted together, looked at, cancelled. Must not know of HTTP."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ulid import ULID

from mezzotint import bodies
from mezzotint.batches import Batch, Item, Standing
from mezzotint.callers import asking
from mezzotint.errors import CallerError, Conflict, ErrorInfo, Fault, InvalidRequest, NotFound
from mezzotint.inputs import BatchInput, checked, with_defaults
from mezzotint.operations import intake
from mezzotint.operations.parts import Verbs
from mezzotint.request import Resolved
from mezzotint.schema import MAX_BATCH_RECEIVERS
from mezzotint.session import FINAL

YIELD_EVERY = 20  # requests read at a stretch, so that others are answered meanwhile


class BatchVerbs(Verbs):
    """What a caller may do with batches."""

    async def create_batch(
        self, body: Any, idempotency_key: str | None = None, route: str = "batches"
    ) -> dict[str, Any]:
        """Accept up to 1,000 requests, all or none; with `skip_invalid` those that are valid. Durable when it returns.

        Raises InvalidRequest with every fault of every request, TryLater when the queue has no room for all, Conflict
        for a key that meant another body by the same `route`.
        """
        once = intake.once(body, idempotency_key, route)
        if once is not None and (first := await self._parts.store.batches.first(once)) is not None:
            return await self.batch(first.id)
        sent, beside = checked(body, BatchInput)
        if sent is None or any(fault.field == "defaults" for fault in beside):  # without which nothing can be judged
            raise InvalidRequest(beside)
        accepted: dict[str, Resolved] = {}
        items: list[Item] = []
        faults: list[Fault] = []
        for index, request in enumerate(sent.requests):
            if index % YIELD_EVERY == 0:
                await asyncio.sleep(0)
            try:
                filled = with_defaults(request, sent.defaults)
                resolved = await intake.read(self._parts, filled, keeps=not beside, in_batch=True)
            except InvalidRequest as error:
                faults += [_within(index, fault) for fault in error.faults]
                items.append(Item(index=index, error=_told(error)))
            else:
                session_id = f"ses_{ULID()}"
                accepted[session_id] = resolved
                items.append(Item(index=index, session_id=session_id))
        if beside or (faults and (not sent.skip_invalid or not accepted)):
            raise InvalidRequest([*beside, *faults])
        _check_receivers(accepted.values())
        batch = Batch(
            id=f"bat_{ULID()}",
            created_at=time.time(),
            items=tuple(items),
            stop_on_first_error=sent.stop_on_first_error,
            metadata=sent.metadata,
            owner=asking.get().key,
        )
        # a caller who leaves meanwhile must not leave rows that nobody runs
        stored = await asyncio.shield(intake.accept_batch(self._parts, batch, accepted, once))
        return await self.batch(stored.id)

    async def batch(self, batch_id: str) -> dict[str, Any]:
        """How it stands. Raises NotFound."""
        return bodies.batch(*await self._batch(batch_id))

    async def cancel_batch(self, batch_id: str) -> dict[str, Any]:
        """Cancel what has not ended. Raises NotFound, or Conflict when all has."""
        batch, sessions = await self._batch(batch_id)
        if not asking.get().changes(batch.owner):
            message = f"batch {batch_id!r} is another API key's; only one with the scope admin may change it"
            raise CallerError(message, code="forbidden")
        active = {session_id for session_id, one in sessions.items() if one.state not in FINAL}
        if not active:
            raise Conflict(f"batch {batch_id!r} has ended; nothing is left to cancel", code="batch_ended")
        await asyncio.shield(self._parts.dispatcher.cancel_all(active))
        return await self.batch(batch_id)

    async def _batch(self, batch_id: str) -> tuple[Batch, Mapping[str, Standing]]:
        found = await self._parts.store.batches.get(batch_id)
        if found is None or not asking.get().sees(found[0].owner):
            raise NotFound(f"batch {batch_id[:64]!r} is not here", code="batch_not_found")
        return found


def _within(index: int, fault: Fault) -> Fault:
    place = f"requests[{index}]"
    field = f"{place}.{fault.field}" if fault.field else place
    return Fault(field=field, code=fault.code, message=f"{place}: {fault.message}")


def _check_receivers(accepted: Iterable[Resolved]) -> None:
    webhooks = [one.request.webhook for one in accepted if one.request.webhook is not None]
    urls = {webhook.url for webhook in webhooks if "batch.ended" in webhook.events}
    if len(urls) > MAX_BATCH_RECEIVERS:
        message = f"{len(urls)} URLs ask for batch.ended; at most {MAX_BATCH_RECEIVERS} are told of one batch"
        raise InvalidRequest([Fault(field="requests", code="invalid_value", message=message)])


def _told(error: InvalidRequest) -> ErrorInfo:
    return ErrorInfo(code=error.code, message=error.message[:1000], field=error.field)
