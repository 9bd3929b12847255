"""Devices and the workers that own them, as they are now. Must not start or stop one."""

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

    def devices(self) -> Bodies:
        return [
            devices.body(seat, self._parts.dispatcher.sessions_on(name), self._parts.dispatcher.queued)
            for name, seat in self._parts.supervisor.seats.items()
        ]

    def device(self, device_id: str) -> dict[str, Any]:
        found = next((one for one in self.devices() if one["id"] == device_id), None)
        if found is None:
            known = ", ".join(self._parts.supervisor.seats)
            raise NotFound(f"device {device_id[:64]!r} is not here; devices: {known}", code="device_not_found")
        return found

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
            "state": "ready" if worker and worker.hello else "starting",
            "resident_models": list(beat.resident) if beat else [],
            "sessions": self._parts.dispatcher.sessions_on(device),
            "restarts": seat.restarts,
            "uptime_s": worker.uptime_s if worker else None,
            "last_exit": seat.last_exit,
        }
