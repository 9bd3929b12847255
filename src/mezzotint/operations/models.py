"""Models on disk and what runs them. Must not read a model folder itself: the catalog does."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ulid import ULID

from mezzotint import bodies, preferences, profiles
from mezzotint.catalog import Catalog, Model, fitting, thumbnail, thumbnail_file
from mezzotint.errors import Conflict, Fault, InvalidRequest, NotFound, RunFailure, TryLater
from mezzotint.operations.parts import Verbs
from mezzotint.profiles import Choice
from mezzotint.resolving import own_steps
from mezzotint.schema import nearest, parse
from mezzotint.session import Session
from mezzotint.workers import wire
from mezzotint.workers.local import LocalWorker


class ModelVerbs(Verbs):
    """What a caller may ask of models."""

    @property
    def default_model(self) -> str:
        return self._parts.settings.default_model

    def models(self) -> list[dict[str, Any]]:
        return [self._model(model) for model in self._parts.catalog.models.values()]

    def model(self, model_id: str) -> dict[str, Any]:
        found = self._parts.catalog.models.get(model_id)
        if found is None:
            raise no_model(model_id, self._parts.catalog)
        return self._model(found)

    def model_thumbnail(self, model_id: str) -> Path:
        """The PNG by which people know a model. Raises NotFound when there is no such model, or none for it."""
        found = self._parts.catalog.models.get(model_id)
        if found is None:
            raise no_model(model_id, self._parts.catalog)
        picture = thumbnail(found)
        if picture is None:
            message = (
                f"model {model_id!r} has no thumbnail; put {thumbnail_file(found).name} beside it, of 4 MiB at most"
            )
            raise NotFound(message, code="image_not_found")
        return picture

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

    def own_steps(self, model_id: str | None, body: Any) -> int:
        """What `num_inference_steps` of a request is that does not say. Raises InvalidRequest as `checkpoint` does."""
        return own_steps(parse(body)[0], self.checkpoint(model_id), self._parts.catalog.models)

    async def digests(self) -> dict[str, str | None]:
        """Of every usable model, 64 hex digits; None where it was not hashed yet."""
        usable = [one.id for one in self._parts.catalog.models.values() if one.state == "ready"]
        known = self._parts.catalog.known_digest
        return await asyncio.to_thread(lambda: {name: known(name) for name in usable})

    async def hashes(self, session: Session) -> dict[str, list[tuple[str, str]]]:
        """Of what the session draws with beside its model, as they are now and as AUTOMATIC1111's texts have them."""
        catalog, request = self._parts.catalog, session.request
        return await asyncio.to_thread(
            lambda: {
                "Lora hashes": [(lora.name, catalog.tensors_digest(lora.name)) for lora in request.loras],
                "TI hashes": [(name, catalog.known_digest(name) or "") for name in request.embeddings],
            }
        )

    async def vae(self, session: Session) -> tuple[str, str]:
        """What the session's model uses in place of its own autoencoder, as `Catalog.vae` tells it now."""
        return await asyncio.to_thread(self._parts.catalog.vae, session.request.model)

    def file_time(self, model: Model) -> int:
        """Unix seconds of its last change on disk; 0 when it is gone."""
        try:
            return int(Path(model.path).stat().st_mtime)
        except FileNotFoundError:
            return 0

    async def rescan(self) -> list[dict[str, Any]]:
        """Look at the model folders now; returns all models as they are then."""
        await asyncio.to_thread(self._parts.catalog.scan)
        return self.models()

    async def set_model(self, model_id: str, body: Any) -> dict[str, Any]:
        """Change what a model uses by default; on disk when it returns. Raises NotFound, InvalidRequest, TryLater."""
        catalog, most = self._parts.catalog, self._parts.settings.max_pixels
        own = self._usable(model_id, catalog.own)  # one that its settings have made unusable can be mended
        changes = preferences.check(body, own, catalog.preferred(model_id), catalog.models.values(), most)
        await asyncio.to_thread(catalog.prefer, model_id, changes)
        if "dtype" in changes:
            self._parts.choices.prefer(model_id, changes["dtype"] or "auto")
        return self.model(model_id)

    async def load_model(self, model_id: str, device: str | None = None) -> dict[str, Any]:
        """Have a worker load it, beside what runs there; returns when it is loaded.

        Raises NotFound, InvalidRequest, RunFailure, or TryLater while no worker is up.
        """
        model = self._usable(model_id, self._parts.catalog.models)
        worker = self._worker_for(device, model_id)
        ref = await self._parts.refs.of(model.id)
        if ref is None:
            raise _unusable(model_id, "it is gone")
        ref = self._parts.choices.ref(ref, worker.device)
        _raise(await self._parts.supervisor.ask(worker, wire.Load(model=ref, asked=str(ULID()))))
        return self.model(model_id)

    async def unload_model(self, model_id: str, device: str | None = None) -> dict[str, Any]:
        """Have every worker, or that of `device`, let go of it if it is there. Raises NotFound, or Conflict while a
        session there uses it."""
        if model_id not in self._parts.catalog.models and not self._resident_on(model_id):
            raise no_model(model_id, self._parts.catalog)
        if device is not None:
            self._check_device(device)
        self._parts.dispatcher.forget_use(model_id)
        supervisor = self._parts.supervisor
        workers = [seat.worker for name, seat in supervisor.seats.items() if device in (None, name)]
        asking = (
            supervisor.ask(worker, wire.Unload(model_id=model_id, asked=str(ULID())))
            for worker in workers
            if worker is not None and worker.alive
        )
        for answer in await asyncio.gather(*asking):
            _raise(answer)
        found = self._parts.catalog.models.get(model_id)
        return self._model(found) if found is not None else {"id": model_id, "resident_on": self._resident_on(model_id)}

    def _usable(self, model_id: str, among: Mapping[str, Model]) -> Model:
        model = among.get(model_id)
        if model is None:
            raise no_model(model_id, self._parts.catalog)
        if model.state == "invalid":
            raise _unusable(model_id, str(model.reason))
        if model.kind != "checkpoint":
            message = (
                f"model {model_id!r} is a {model.kind}, which goes with the checkpoint it is used with; name that one"
            )
            raise InvalidRequest([Fault(field=None, code="invalid_value", message=message)])
        return model

    def _worker_for(self, device: str | None, model_id: str) -> LocalWorker:
        """The device's, or one that has the model, or the one that holds least."""
        if device is not None:
            self._check_device(device)
        ready = [one for one in self._parts.supervisor.ready() if device in (None, one.device)]
        if not ready:
            raise TryLater("no worker is up yet; come back", code="not_ready", retry_after_s=5)
        there = self._resident_on(model_id)
        return min(
            ready, key=lambda one: (one.device not in there, one.heartbeat.weights_bytes if one.heartbeat else 0)
        )

    def _check_device(self, device: str) -> None:
        known = self._parts.supervisor.seats
        if device not in known:
            message = f"device {device[:64]!r} is not here; devices: {', '.join(known)}"
            raise InvalidRequest([Fault(field="device", code="device_not_found", message=message)])

    def _model(self, model: Model) -> dict[str, Any]:
        fits = fitting(model, self._parts.catalog.models.values())
        settings = self._parts.catalog.preferred(model.id)
        shown = thumbnail(model) is not None
        held = {device: self._parts.refs.held(beat) for device, beat in self._beats().items()}
        resident_on = [device for device, names in held.items() if model.id in names]
        return bodies.model(model, resident_on, fits, self._executors(model.id, resident_on), settings, shown)

    def _executors(self, model_id: str, resident_on: list[str]) -> dict[str, Any]:
        """By device. What its worker had to refuse is shown as what serves instead."""
        found: dict[str, Any] = {}
        ref = self._parts.refs.now(model_id)
        for device, beat in self._beats().items():
            why = beat.refused.get(model_id) if beat and device in resident_on else None
            choice = self._parts.choices.of(model_id, ref.sha256 if ref else "", device)
            found[device] = profiles.built(Choice(reason=why) if why else choice)
        return found

    def _resident_on(self, model_id: str) -> list[str]:
        """Where something is loaded under that id, though it may have been replaced on the disk since."""
        return [device for device, beat in self._beats().items() if beat and model_id in beat.resident]

    def _beats(self) -> dict[str, wire.Heartbeat | None]:
        seats = self._parts.supervisor.seats
        return {device: seat.worker.heartbeat if seat.worker else None for device, seat in seats.items()}


def _unusable(model_id: str, why: str) -> InvalidRequest:
    message = f"model {model_id!r} cannot be used: {why}"
    return InvalidRequest([Fault(field=None, code="model_invalid", message=message)])


def _raise(answer: wire.Loaded) -> None:
    if answer.error is None:
        return
    if answer.error.code == "model_in_use":
        raise Conflict(answer.error.message, code=answer.error.code)
    raise RunFailure(answer.error)


def no_model(model_id: str, catalog: Catalog) -> NotFound:
    near = nearest(model_id, catalog.models)
    hint = f"; did you mean {near!r}?" if near else ""
    return NotFound(f"model {model_id[:64]!r} is not here{hint}", code="model_not_found")
