"""Devices and the workers that own them, as they are now. Must not start or stop one."""

import asyncio
from typing import Any

from mezzotint import devices
from mezzotint.callers import asking
from mezzotint.errors import NotFound
from mezzotint.operations.parts import Verbs
from mezzotint.workers.base import Seat
from mezzotint.workers.local import LocalWorker

Bodies = list[dict[str, Any]]


class DeviceVerbs(Verbs):
    """What a caller may ask of devices and workers."""

    async def check_ready(self) -> None:
        """Raises TryLater when no session would be accepted: the server stops, or its database does not answer."""
        self._parts.dispatcher.check_accepting()
        await self._parts.store.get("")

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
        return devices.body(seat, self._sessions(name), dispatcher.queued, reading, speed)

    def _sessions(self, device: str) -> list[str]:
        """Ids of those that run there and that the caller sees."""
        caller = asking.get()
        return [one.id for one in self._parts.dispatcher.sessions_on(device) if caller.sees(one.owner)]

    def status(self) -> dict[str, Any]:
        """The workers and the queue."""
        dispatcher, size = self._parts.dispatcher, self._parts.settings.queue_size
        queue = {"depth": dispatcher.queued, "size": size, "free": max(0, size - dispatcher.queued)}
        return {"workers": self.workers(), "queue": queue}

    def workers(self) -> Bodies:
        """One of each device, then the one in reserve, if there is one."""
        supervisor = self._parts.supervisor
        found = [self._worker(seat, seat.worker) for seat in supervisor.seats.values()]
        if (spare := supervisor.spare) is not None:
            reserve = self._worker(supervisor.seats[spare.device], spare)
            known = {"sessions": [], "restarts": 0, "last_exit": None}
            found.append(reserve | known | {"state": "spare" if spare.hello else "starting"})
        return found

    def _worker(self, seat: Seat, worker: LocalWorker | None) -> dict[str, Any]:
        beat = worker.heartbeat if worker else None
        return {
            "id": worker.id if worker else None,
            "pid": worker.pid if worker else None,
            "network": worker.hello.network if worker and worker.hello else None,
            "device": seat.device,
            "state": devices.state(seat)[0],
            "resident_models": list(beat.resident) if beat else [],
            "sessions": self._sessions(seat.device),
            "restarts": seat.restarts,
            "uptime_s": worker.uptime_s if worker else None,
            "last_exit": seat.last_exit,
        }
