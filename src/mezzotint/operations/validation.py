"""A dry run: every rule of acceptance, and what a session would cost. Must not keep anything of what it is shown."""

import time
from typing import Any

import msgspec

from mezzotint import advice, bodies
from mezzotint.errors import InvalidRequest
from mezzotint.operations import forecast, intake
from mezzotint.operations.parts import Verbs
from mezzotint.request import Request
from mezzotint.schema import RequestInput, parse, sources


class ValidationVerbs(Verbs):
    """What a caller may ask of a request before sending it."""

    async def validate(self, body: Any) -> dict[str, Any]:
        """`Validation` of the contract. What is valid here is never refused later for a parameter."""
        started = time.perf_counter()
        told: dict[str, Any] = {"valid": True, "errors": [], "warnings": [], "recommendations": []}
        told |= {"resolved": None, "estimate": None, "unknown": {}}
        try:
            resolved = await intake.read(self._parts, body, keeps=False)
        except InvalidRequest as error:
            told |= {"valid": False, "errors": [bodies.fault(one) for one in error.faults]}
        else:
            shown, told["unknown"] = _shown(parse(body)[0], resolved.request)
            told["warnings"] = list(resolved.warnings)
            told["recommendations"] = self._recommendations(resolved.request)
            told["resolved"] = shown
            told["estimate"] = msgspec.to_builtins(await forecast.estimate(self._parts, resolved.request))
        return told | {"validation_time_s": round(time.perf_counter() - started, 6)}

    def _recommendations(self, request: Request) -> list[dict[str, Any]]:
        models, seats = self._parts.catalog.models, self._parts.supervisor.seats
        if not models.keys() >= {request.model, *(one.name for one in request.loras)}:
            return []  # one has gone since the request was read
        there = [seat for name, seat in seats.items() if request.device in (None, name)]
        beats = [seat.worker.heartbeat for seat in there if seat.worker is not None]
        resident = frozenset(name for beat in beats for name in self._parts.refs.held(beat))
        model = self._parts.catalog.own.get(request.model, models[request.model])
        return list(advice.recommendations(request, model, models, resident))


def _shown(sent: RequestInput, request: Request) -> tuple[dict[str, Any], dict[str, str]]:
    """The request as it would run, and why parts of it are null: what is drawn or kept only at acceptance."""
    unknown: dict[str, str] = {}
    inline = {source.field for source in sources(sent) if not source.text.strip().startswith("asset:")}
    body: dict[str, Any] = msgspec.to_builtins(request)
    for field in inline:
        unknown[field] = "checked and not kept; upload it to /api/assets to have an id for it"
    body |= dict.fromkeys(inline & {"image", "mask"})
    for index, net in enumerate(body["controlnets"]):
        if f"controlnets[{index}].image" in inline:
            net["image"] = None
    if sent.seed is None:
        body["seed"], unknown["seed"] = None, "drawn at acceptance"
    return body, unknown
