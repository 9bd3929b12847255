"""What a caller may ask of Mezzotint, as plain async methods: the one door from the dialects to all below.

Must not know of HTTP. Bodies in, values or bodies out; errors are those of errors.py.
"""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import msgspec
from ulid import ULID

from mezzotint import bodies, devices, profiles, tuning
from mezzotint.assets import Asset, Assets
from mezzotint.catalog import Catalog, Model, fitting
from mezzotint.config import Settings
from mezzotint.dispatcher import Dispatcher, input_name
from mezzotint.errors import Conflict, ErrorInfo, Fault, InvalidRequest, MezzotintError, NotFound, RunFailure
from mezzotint.events import Event, Events
from mezzotint.image_wire import Role
from mezzotint.profiles import Choice
from mezzotint.request import Picture, Request, World, resolve
from mezzotint.schema import RequestInput, Source, nearest, parse, sources
from mezzotint.session import FINAL, ImageRecord, Session, State
from mezzotint.store.blobs import Blobs
from mezzotint.store.rows import Attempt, Once
from mezzotint.store.sql import Store
from mezzotint.tuning import Choices
from mezzotint.workers.base import Supervisor

_ANYBODY = "anybody"  # the scope of idempotency keys while there are no API keys
ACTIVE = frozenset(State) - FINAL

# inside Operations, `list` is the method
Bodies = list[dict[str, Any]]
Names = list[str]
Attempts = list[Attempt]


class Operations:
    """Every verb of the contract. Safe to call from any number of coroutines of one loop."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        store: Store,
        blobs: Blobs,
        supervisor: Supervisor,
        dispatcher: Dispatcher,
        events: Events,
        assets: Assets,
        choices: Choices,
    ) -> None:
        self._settings, self._catalog, self._store, self._blobs = settings, catalog, store, blobs
        self._supervisor, self._dispatcher, self._events = supervisor, dispatcher, events
        self._assets, self._choices = assets, choices

    # ---- sessions

    async def create(self, body: Any, idempotency_key: str | None = None) -> Session:
        """Accept a request. Durable when it returns. Raises InvalidRequest with every fault, TryLater when full.

        The same key and body again answer the first session; Conflict when the key came with another body.
        """
        once = None
        if idempotency_key is not None:
            fingerprint = hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()
            once = Once(scope=_ANYBODY, key=idempotency_key, fingerprint=fingerprint)
            if (first := await self._store.first(once)) is not None:  # also when it would not be accepted any more
                return self._dispatcher.view(first)
        sent, faults = parse(body)
        pictures = await self._take(sent, faults)
        resolved = resolve(sent, faults, pictures, self._world(), lambda: secrets.randbelow(2**32))
        session_id = f"ses_{ULID()}"

        async def accept() -> Session:
            try:
                await self._lay_out(session_id, resolved.request)
                session = await self._dispatcher.accept(session_id, resolved, once)
            except MezzotintError:
                await self._blobs.delete(session_id)
                raise
            if session.id != session_id:  # the key stands for an earlier one, which came while this one was read
                await self._blobs.delete(session_id)
            return session

        # a caller who leaves meanwhile must not leave a row that nobody runs
        return await asyncio.shield(accept())

    async def _take(self, sent: RequestInput, faults: list[Fault]) -> dict[str, Picture]:
        """Keep the request's pictures. What is wrong with one is a fault beside the others."""
        taken: dict[str, Picture] = {}
        for source in sources(sent):
            try:
                asset = await self._keep(source)
            except InvalidRequest as error:
                faults += error.faults
            else:
                taken[source.field] = Picture(id=asset.id, width=asset.width, height=asset.height)
        return taken

    async def _keep(self, source: Source) -> Asset:
        data = self._assets.read_source(source.text, source.field)
        if isinstance(data, bytes):
            return await self._assets.put(data, source.role, field=source.field)
        asset = await asyncio.to_thread(self._assets.find, data)
        if asset is None:
            message = f"asset {data!r} is not here; upload the picture to /api/assets, or send it as base64"
            raise InvalidRequest([Fault(field=source.field, code="asset_not_found", message=message)])
        return asset

    async def _lay_out(self, session_id: str, request: Request) -> None:
        """Link the pictures that a session needs into its own folder, control maps made."""
        ids = {field: asset_id for field, asset_id in (("image", request.image), ("mask", request.mask)) if asset_id}
        for index, use in enumerate(request.controlnets):
            source = use.image.removeprefix("asset:")
            field = f"controlnets[{index}]."
            made = await self._assets.preprocess(source, use.preprocessor, use.options, path=field)
            ids[f"{field}image"] = made.id
        for field, asset_id in ids.items():
            folder = self._blobs.folder(session_id)
            await self._assets.link(asset_id.removeprefix("asset:"), folder, input_name(field))

    async def get(self, session_id: str) -> Session:
        session = await self._store.get(session_id)
        if session is None:
            raise NotFound(f"session {session_id[:64]!r} is not here", code="session_not_found")
        return self._dispatcher.view(session)

    async def trace(self, session_id: str) -> tuple[Session, Attempts]:
        """The session and every attempt at it, oldest first. Raises NotFound."""
        return await self.get(session_id), await self._store.attempts(session_id)

    async def list(
        self,
        *,
        active: bool | None = None,
        state: str | None = None,
        type: str | None = None,  # noqa: A002  the contract's word
        model: str | None = None,
        device: str | None = None,
        batch: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Session], str | None]:
        """Newest first. Raises InvalidRequest for a state that does not exist."""
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
        found, next_cursor = await self._store.list(
            states=states, type=type, model=model, device=device, batch_id=batch, limit=limit, cursor=cursor
        )
        return [self._dispatcher.view(session) for session in found], next_cursor

    async def cancel(self, session_id: str) -> Session:
        return await asyncio.shield(self._dispatcher.cancel(session_id))

    async def delete(self, session_id: str) -> None:
        """Remove an ended session and its pictures. Raises NotFound, or Conflict while it is active."""
        session = await self.get(session_id)
        if not session.ended or not await self._store.delete(session_id):
            message = f"session {session_id!r} is {session.state}; cancel it first"
            raise Conflict(message, code="session_active")
        await self._blobs.delete(session_id)
        self._events.forget(session_id)

    async def image(self, session_id: str, index: int) -> tuple[ImageRecord, Path]:
        session = await self.get(session_id)
        found = next((image for image in session.images if image.index == index), None)
        if found is None:
            message = f"session {session_id!r} has no image {index}; it has {len(session.images)}"
            raise NotFound(message, code="image_not_found")
        return found, self._blobs.path(session_id, found.sha256)

    async def events(self, session_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Events above `after`, ending after `end`. Raises NotFound before the first."""
        session = await self.get(session_id)
        known = self._events.knows(session_id) or not session.ended
        live = self._events.follow(session_id, after) if known else None  # from now on, before what was is read
        return _replayed(await self._store.replay(session_id, after=after), live, session, after)

    async def wait(self, session_id: str, limit_s: float | None = None) -> Session:
        """Until the session has ended or the time is over; returns it as it is then."""
        try:
            async with asyncio.timeout(limit_s):
                while not (await self.get(session_id)).ended:
                    async for _ in await self.events(session_id):
                        pass
        except TimeoutError:
            pass
        return await self.get(session_id)

    # ---- assets

    @property
    def max_upload_bytes(self) -> int:
        return self._settings.max_upload_bytes

    async def add_asset(self, data: bytes, role: str = "image") -> Asset:
        """Keep a picture. On disk when it returns. Raises InvalidRequest, or TryLater when there is no room."""
        if role not in get_args(Role):
            message = f"role must be {' or '.join(get_args(Role))}; got {role[:64]!r}"
            raise InvalidRequest([Fault(field="role", code="invalid_value", message=message)])
        return await self._assets.put(data, "mask" if role == "mask" else "image")

    async def asset(self, asset_id: str) -> tuple[Asset, Path]:
        found = await asyncio.to_thread(self._assets.find, asset_id)
        if found is None:
            raise NotFound(f"asset {asset_id[:64]!r} is not here", code="asset_not_found")
        return found, self._assets.path(asset_id)

    # ---- what there is

    def check_ready(self) -> None:
        """Raises TryLater when no session would be accepted."""
        self._dispatcher.check_accepting()

    def devices(self) -> Bodies:
        return [
            devices.body(seat, self._dispatcher.sessions_on(name), self._dispatcher.queued)
            for name, seat in self._supervisor.seats.items()
        ]

    def device(self, device_id: str) -> dict[str, Any]:
        found = next((one for one in self.devices() if one["id"] == device_id), None)
        if found is None:
            known = ", ".join(self._supervisor.seats)
            raise NotFound(f"device {device_id[:64]!r} is not here; devices: {known}", code="device_not_found")
        return found

    def models(self) -> Bodies:
        return [self._model(model) for model in self._catalog.models.values()]

    def model(self, model_id: str) -> dict[str, Any]:
        found = self._catalog.models.get(model_id)
        if found is None:
            raise _no_model(model_id, self._catalog)
        return self._model(found)

    def workers(self) -> Bodies:
        return [self._worker(name) for name in self._supervisor.seats]

    def _worker(self, device: str) -> dict[str, Any]:
        seat = self._supervisor.seats[device]
        worker = seat.worker
        beat = worker.heartbeat if worker else None
        return {
            "id": worker.id if worker else None,
            "pid": worker.pid if worker else None,
            "device": device,
            "state": "ready" if worker and worker.hello else "starting",
            "resident_models": list(beat.resident) if beat else [],
            "sessions": self._dispatcher.sessions_on(device),
            "restarts": seat.restarts,
            "uptime_s": worker.uptime_s if worker else None,
            "last_exit": seat.last_exit,
        }

    def _model(self, model: Model) -> dict[str, Any]:
        fits = fitting(model, self._catalog.models.values())
        return bodies.model(model, self._resident_on(model.id), fits, self._executors(model.id))

    def _executors(self, model_id: str) -> dict[str, Any]:
        """By device. What its worker had to refuse is shown as what serves instead."""
        found: dict[str, Any] = {}
        for device, seat in self._supervisor.seats.items():
            beat = seat.worker.heartbeat if seat.worker else None
            why = beat.refused.get(model_id) if beat else None
            found[device] = profiles.built(Choice(reason=why) if why else self._choices.of(model_id, device))
        return found

    def _resident_on(self, model_id: str) -> Names:
        return [worker["device"] for worker in self.workers() if model_id in worker["resident_models"]]

    def _world(self) -> World:
        return World(
            models=self._catalog.models,
            default_model=self._settings.default_model,
            devices=frozenset(self._supervisor.seats),
            max_pixels=self._settings.max_pixels,
        )


def offline_models(settings: Settings) -> list[dict[str, Any]]:
    """The models that a server with these settings would have, without one."""
    catalog = Catalog(settings.models, settings.cache)
    catalog.scan()
    there = catalog.models.values()
    return [bodies.model(model, [], fitting(model, there), {}) for model in there]


async def tune(settings: Settings, model_id: str) -> list[profiles.Profile]:
    """Measure a model on every device of these settings, without a server; one that runs adopts it when it is idle.

    Raises InvalidRequest for a model that cannot be used, RunFailure when it cannot be measured.
    """
    catalog = Catalog(settings.models, settings.cache)
    catalog.scan()
    model = catalog.models.get(model_id)
    if model is None:
        raise _no_model(model_id, catalog)
    if model.state == "invalid":
        message = f"model {model_id!r} cannot be used: {model.reason}"
        raise InvalidRequest([Fault(field="model", code="model_invalid", message=message)])
    choices = Choices(settings.cache, settings.threads or devices.default_threads())
    sha256 = catalog.digest(model_id)
    measured: list[profiles.Profile] = []
    for device in settings.devices or devices.find():
        why = await tuning.measure(tuning.subject(catalog, model_id, sha256, device, choices))
        found = profiles.read(settings.cache, sha256, device, choices.threads)
        if why is not None or found is None:
            raise RunFailure(ErrorInfo(code="internal", message=f"{model_id} on {device}: {why}"))
        measured.append(found)
    return measured


def _no_model(model_id: str, catalog: Catalog) -> NotFound:
    near = nearest(model_id, catalog.models)
    hint = f"; did you mean {near!r}?" if near else ""
    return NotFound(f"model {model_id[:64]!r} is not here{hint}", code="model_not_found")


async def _replayed(
    stored: list[Event], live: AsyncIterator[Event] | None, session: Session, after: int
) -> AsyncIterator[Event]:
    """What was kept above `after`, then what this process tells; of an old session told no more, its state and end."""
    for event in stored:
        yield event
        if event.kind == "end":
            return
    last = stored[-1].id if stored else after
    if live is None:
        yield Event(id=last + 1, kind="state", data=session)
        yield Event(id=last + 2, kind="end", data=session)
        return
    async for event in live:
        if event.id > last:
            yield event
