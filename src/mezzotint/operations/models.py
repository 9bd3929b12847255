"""Models on disk and what runs them. Must not read a model folder itself: the catalog does."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mezzotint import bodies, profiles
from mezzotint.catalog import Catalog, Model, fitting
from mezzotint.errors import Fault, InvalidRequest, NotFound
from mezzotint.operations.parts import Verbs
from mezzotint.profiles import Choice
from mezzotint.schema import nearest


class ModelVerbs(Verbs):
    """What a caller may ask of models."""

    def models(self) -> list[dict[str, Any]]:
        return [self._model(model) for model in self._parts.catalog.models.values()]

    def model(self, model_id: str) -> dict[str, Any]:
        found = self._parts.catalog.models.get(model_id)
        if found is None:
            raise no_model(model_id, self._parts.catalog)
        return self._model(found)

    def facts(self) -> Mapping[str, Model]:
        """Every model on disk by id, as the catalog has it."""
        return self._parts.catalog.models

    def checkpoint(self, model_id: str | None) -> Model:
        """The usable checkpoint of an id; of None the default one. Raises InvalidRequest."""
        wanted = self._parts.settings.default_model if model_id is None else model_id
        found = self._parts.catalog.models.get(wanted)
        if found is None or found.kind != "checkpoint":
            message = no_model(wanted, self._parts.catalog).message
            raise InvalidRequest([Fault(field="model", code="model_not_found", message=message)])
        if found.state == "invalid":
            message = f"model {wanted!r} cannot be used: {found.reason}"
            raise InvalidRequest([Fault(field="model", code="model_invalid", message=message)])
        return found

    async def digests(self) -> dict[str, str | None]:
        """Of every usable model, 64 hex digits; None where it was not hashed yet."""
        usable = [one.id for one in self._parts.catalog.models.values() if one.state == "ready"]
        known = self._parts.catalog.known_digest
        return await asyncio.to_thread(lambda: {name: known(name) for name in usable})

    async def rescan(self) -> None:
        """Look at the model folders anew."""
        await asyncio.to_thread(self._parts.catalog.scan)

    def file_time(self, model: Model) -> int:
        """Unix seconds of its last change on disk; 0 when it is gone."""
        try:
            return int(Path(model.path).stat().st_mtime)
        except FileNotFoundError:
            return 0

    def _model(self, model: Model) -> dict[str, Any]:
        fits = fitting(model, self._parts.catalog.models.values())
        return bodies.model(model, self._resident_on(model.id), fits, self._executors(model.id))

    def _executors(self, model_id: str) -> dict[str, Any]:
        """By device. What its worker had to refuse is shown as what serves instead."""
        found: dict[str, Any] = {}
        for device, seat in self._parts.supervisor.seats.items():
            beat = seat.worker.heartbeat if seat.worker else None
            why = beat.refused.get(model_id) if beat else None
            found[device] = profiles.built(Choice(reason=why) if why else self._parts.choices.of(model_id, device))
        return found

    def _resident_on(self, model_id: str) -> list[str]:
        seats = self._parts.supervisor.seats
        beats = {device: seat.worker.heartbeat if seat.worker else None for device, seat in seats.items()}
        return [device for device, beat in beats.items() if beat and model_id in beat.resident]


def no_model(model_id: str, catalog: Catalog) -> NotFound:
    near = nearest(model_id, catalog.models)
    hint = f"; did you mean {near!r}?" if near else ""
    return NotFound(f"model {model_id[:64]!r} is not here{hint}", code="model_not_found")
