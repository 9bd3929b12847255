"""What can be done here now. Must not remember an answer: models and devices change."""

from typing import Any

from mezzotint import capabilities
from mezzotint.capabilities import Facts
from mezzotint.operations.devices import DeviceVerbs
from mezzotint.schema import MAX_BATCH


class CapabilityVerbs(DeviceVerbs):
    """What a caller may ask before asking for a picture."""

    async def capabilities(self, device_id: str | None = None) -> dict[str, Any]:
        """Of the whole server, or with one device alone. Raises NotFound."""
        return capabilities.body(await self._facts(device_id))

    async def supported_types(self, device_id: str | None = None) -> dict[str, Any]:
        """Of the whole server, or with one device alone. Raises NotFound."""
        return capabilities.types(await self._facts(device_id))

    async def _facts(self, device_id: str | None) -> Facts:
        parts = self._parts
        shown = await self.devices() if device_id is None else [await self.device(device_id)]
        seats = {one["id"]: parts.supervisor.seats[one["id"]] for one in shown}
        beats = {name: seat.worker.heartbeat if seat.worker else None for name, seat in seats.items()}
        settings = parts.settings
        return Facts(
            models=parts.catalog.models,
            own=parts.catalog.own,
            default_model=settings.default_model,
            resident={name: parts.refs.held(beat) for name, beat in beats.items()},
            room={name: seat.facts.memory_budget_bytes if seat.facts else None for name, seat in seats.items()},
            devices=shown,
            limits={
                "max_pixels": settings.max_pixels,
                "queue_size": settings.queue_size,
                "queue_free": max(0, settings.queue_size - parts.dispatcher.queued),
                "max_upload_bytes": settings.max_upload_bytes,
                "max_batch_requests": MAX_BATCH,
            },
            batching=capabilities.batching(
                parts.catalog.models,
                {ref.sha256: ref.id for ref in parts.refs.known.values()},
                {name: parts.measurements.of(name) for name in seats},
            ),
        )
