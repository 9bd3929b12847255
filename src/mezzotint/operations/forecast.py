"""What a request would take on the devices as they are now, and whether one can hold it. Must not accept anything."""

from mezzotint.claims import IMAGES_AT_ONCE
from mezzotint.errors import InvalidRequest
from mezzotint.estimates import Estimate
from mezzotint.operations.parts import Parts
from mezzotint.request import Request

LONG_LINE = 16  # sessions that wait


async def check(parts: Parts, request: Request) -> None:
    """Raises InvalidRequest `over_budget` when no device that may run it can hold it."""
    refused: InvalidRequest | None = None
    for device in _devices(parts, request):
        try:
            await parts.estimates.check(request, device)
            return
        except InvalidRequest as error:
            refused = refused or error
    if refused is not None:
        raise refused


async def estimate(parts: Parts, request: Request) -> Estimate:
    """What it would take on the device where it would end first."""
    dispatcher = parts.dispatcher
    found = [
        await parts.estimates.of(
            request, device, dispatcher.running_on(device), dispatcher.ahead_of(request, device), IMAGES_AT_ONCE
        )
        for device in _devices(parts, request)
    ]
    return min(found, key=lambda one: (one.queue_s is None, (one.queue_s or 0.0) + (one.duration_s or 0.0)))


async def promise(parts: Parts, request: Request) -> tuple[float, str] | None:
    """Seconds from start to end of what is about to be accepted, and their basis, to be compared with what it takes.

    Behind a long line nothing is promised: it would have to be forecast anew for every one of them.
    """
    if parts.dispatcher.queued > LONG_LINE:
        return None
    found = await estimate(parts, request)
    return None if found.duration_s is None else (found.duration_s, found.basis)


def _devices(parts: Parts, request: Request) -> list[str]:
    return [request.device] if request.device else list(parts.supervisor.seats)
