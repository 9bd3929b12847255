"""Devices and the workers that own them, as they are now. Must not start or stop one."""

import asyncio
from typing import Any

from mezzotint import devices
from mezzotint.errors import NotFound
from mezzotint.operations.parts import Verbs

Bodies = list[dict[str, Any]]


class DeviceVerbs(Verbs):
    """What a caller may ask of devices and workers."""

    def check_ready(self) -> None:
        """Raises TryLater when no session would be accepted."""
        self._parts.dispatcher.check_accepting()

    async def devices(self) -> Bodies:
        return [await self._device(name) for name in self._parts.supervisor.seats]

    async def device(self, device_id: str) -> dict[str, Any]:
        if device_id not in self._parts.supervisor.seats:
            known = ", ".join(self._parts.supervisor.seats)
            raise NotFound(f"device {device_id[:64]!r} is not here; devices: {known}", code="device_not_found")
        return await self._device(device_id)

    async def _device(self, name: str) -> dict[str, Any]:
        reading = await asyncio.to_thread(devices.read, name)
        dispatcher = self._parts.dispatcher
        seat, speed = self._parts.supervisor.seats[name], self._parts.measurements.speed(name)
        return devices.body(seat, dispatcher.sessions_on(name), dispatcher.queued, reading, speed)

    def status(self) -> dict[str, Any]:
        """The workers and the queue."""
        dispatcher, size = self._parts.dispatcher, self._parts.settings.queue_size
        queue = {"depth": dispatcher.queued, "size": size, "free": max(0, size - dispatcher.queued)}
        return {"workers": self.workers(), "queue": queue}

    def workers(self) -> Bodies:
        return [self._worker(name) for name in self._parts.supervisor.seats]

    def _worker(self, device: str) -> dict[str, Any]:
        seat = self._parts.supervisor.seats[device]
        worker = seat.worker
        beat = worker.heartbeat if worker else None
        return {
            "id": worker.id if worker else None,
            "pid": worker.pid if worker else None,
            "device": device,
            "state": devices.state(seat)[0],
            "resident_models": list(beat.resident) if beat else [],
            "sessions": self._parts.dispatcher.sessions_on(device),
            "restarts": seat.restarts,
            "uptime_s": worker.uptime_s if worker else None,
            "last_exit": seat.last_exit,
        }
