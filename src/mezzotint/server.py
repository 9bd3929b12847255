"""Composition root: builds the whole from Settings, opens and closes it in order. Must not hold logic of its own."""

import asyncio
import contextlib
import fcntl
import gc
import json
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
import uvicorn

from mezzotint import devices
from mezzotint.assets import Assets
from mezzotint.batch_watch import BatchWatch
from mezzotint.catalog import Catalog
from mezzotint.checkpoints import Checkpoints
from mezzotint.config import Settings, load_settings
from mezzotint.dispatcher import Dispatcher
from mezzotint.errors import BadSetting, ErrorInfo, MezzotintError, RunFailure, SetupError
from mezzotint.estimates import Estimates
from mezzotint.events import Event, Events
from mezzotint.keyring import Keyring
from mezzotint.measurements import Measurements
from mezzotint.metrics import Metrics
from mezzotint.operations import Operations, Parts
from mezzotint.preferences import Preferences
from mezzotint.quotas import Quotas
from mezzotint.refs import Refs
from mezzotint.retention import Retention
from mezzotint.session import ImageRecord, Session, State
from mezzotint.store import beside
from mezzotint.store.blobs import Blobs
from mezzotint.store.sql import Store
from mezzotint.telemetry import hide_variables
from mezzotint.tuning import Choices, Tuner
from mezzotint.verbs import written
from mezzotint.watching import Watcher
from mezzotint.webhooks import Webhooks
from mezzotint.workers.base import Supervisor
from mezzotint.workers.limits import memory_budget

log = structlog.get_logger(__name__)


class Mezzotint:
    """The whole engine inside a program. `async with Mezzotint() as m:` opens the data folder and starts the workers.

    Raises SetupError when the folder is in use or its database is from a newer version.
    """

    def __init__(
        self,
        *,
        models: Iterable[str | Path] = (),
        data: str | Path | None = None,
        settings: Settings | None = None,
        tunes: bool = False,
        keeps_spare: bool = False,
    ) -> None:
        """With `tunes`, models are measured whenever nothing is to be done for a while, and what is learned is kept.

        With `keeps_spare`, a second worker stands by to take over when one is lost.
        """
        given = {"models": tuple(map(Path, models)) or None, "data": Path(data) if data is not None else None}
        self.settings = settings or load_settings(**given)
        self._tunes, self._keeps_spare = tunes, keeps_spare
        self._operations: Operations | None = None

    @property
    def operations(self) -> Operations:
        """Every verb. Raises MezzotintError `not_ready` when it is not open."""
        if self._operations is None:
            raise MezzotintError("it is not open; `async with Mezzotint(...) as m:` opens it", code="not_ready")
        return self._operations

    async def __aenter__(self) -> "Mezzotint":
        settings = self.settings
        policy = settings.webhooks
        hide_variables()
        async with AsyncExitStack() as opened:
            opened.enter_context(own(settings.data))
            metrics = Metrics()
            events = Events(metrics.ended)
            opened.callback(events.close)
            self._events = events
            store = await Store.open(settings.database_url, queue_size=settings.queue_size, events=events)
            opened.push_async_callback(store.close)
            keyring = Keyring(store, always=not settings.on_loopback, never=settings.insecure_no_auth)
            await keyring.start()
            preferences = Preferences(settings.data / "model_settings.json")
            catalog = Catalog(settings.models, settings.cache, preferences)
            opened.callback(catalog.close)
            await asyncio.to_thread(catalog.scan)
            for root in settings.models:
                if not root.is_dir():
                    log.warning("a folder of models is not there", folder=str(root))
            if (default := settings.default_model) not in (there := catalog.checkpoints):
                log.warning("the default model is not there", default_model=default, models=there)
            blobs = Blobs(settings.data / "sessions")
            blobs.sweep()
            self.assets = Assets(settings.data / "assets", settings.max_upload_bytes)
            await asyncio.to_thread(self.assets.sweep)
            opened.push_async_callback(self.assets.close)
            found = settings.devices or devices.find()
            threads = settings.threads or devices.default_threads()
            measurements = Measurements(settings.cache, threads, keep=self._tunes, told=metrics.measured)
            opened.callback(measurements.close)
            self.supervisor = Supervisor(
                found, threads, settings.memory_bytes or memory_budget(), measurements, keeps_spare=self._keeps_spare
            )
            choices = Choices(
                settings.cache,
                threads,
                executor=settings.executor,
                dtype=settings.dtype,
                devices=self.supervisor.seats,
            )
            for model in catalog.models.values():
                choices.prefer(model.id, model.dtype)
            refs = Refs(catalog)
            estimates = Estimates(measurements, catalog, refs, choices, self.supervisor)
            checkpoints = Checkpoints(settings.data / "checkpoints")
            self._dispatcher = Dispatcher(
                store, blobs, checkpoints, refs, self.supervisor, events, choices, measurements, keyring.most_running
            )
            metrics.watch(self.supervisor.seats, self._dispatcher)
            await self._dispatcher.start()
            batch_watch = BatchWatch(store, self._dispatcher)
            await batch_watch.start()
            opened.push_async_callback(batch_watch.stop)
            checkpoints.start()
            opened.push_async_callback(checkpoints.stop)
            retention = Retention(store, blobs, events, settings.retention_days)
            retention.start()
            opened.push_async_callback(retention.stop)
            webhooks = Webhooks(store.outbox, policy)
            webhooks.start()
            opened.push_async_callback(webhooks.stop)
            opened.push_async_callback(self.supervisor.stop)
            opened.push_async_exit(self._drain)
            self.supervisor.start()
            watcher = Watcher(catalog)
            watcher.start()
            opened.push_async_callback(watcher.stop)
            if self._tunes:
                idle, default = self._is_idle, settings.default_model
                tuner = Tuner(choices, catalog, refs, self.supervisor, measurements, idle, default)
                tuner.start()
                opened.push_async_callback(tuner.stop)
            self._operations = Operations(
                Parts(
                    settings=settings,
                    catalog=catalog,
                    store=store,
                    blobs=blobs,
                    supervisor=self.supervisor,
                    dispatcher=self._dispatcher,
                    refs=refs,
                    measurements=measurements,
                    events=events,
                    assets=self.assets,
                    choices=choices,
                    batch_watch=batch_watch,
                    estimates=estimates,
                    keyring=keyring,
                    quotas=Quotas(store, self._dispatcher.waiting_of),
                    metrics=metrics,
                    webhooks=policy,
                )
            )
            self._opened = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Running sessions get `drain_s` to end, else go back to the queue; then workers end and files close."""
        try:
            await self._opened.__aexit__(kind, error, trace)
        finally:
            self._operations = None

    async def drain(self) -> None:
        """Accept no more, give running sessions `drain_s` to end, send the others back to the queue, and tell whoever
        still waits for one that it goes on when this is opened again."""
        await self._dispatcher.drain(self.settings.drain_s)
        self._events.close()

    async def _drain(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._dispatcher.drain(self.settings.drain_s if kind is None else 0.0)

    def _is_idle(self) -> bool:
        return self._dispatcher.idle

    def stop_draining(self) -> None:
        """Whatever still runs goes back to the queue now."""
        if self._operations is not None:
            self._dispatcher.stop_draining()

    async def submit(self, /, **request: Any) -> "Submitted":
        """Accept a request; fields and errors as in the HTTP contract. Raises InvalidRequest with every fault."""
        return Submitted(await self.operations.create(_as_sent(request)), self.operations)

    async def get_capabilities(self, device_id: str | None = None) -> dict[str, Any]:
        return await self.operations.capabilities(device_id)

    async def get_supported_types(self, device_id: str | None = None) -> dict[str, Any]:
        return await self.operations.supported_types(device_id)

    async def validate_request(self, /, **request: Any) -> dict[str, Any]:
        """A dry run: every fault at once, the request as it would run, what it would cost."""
        return await self.operations.validate(_as_sent(request))

    async def get_session_status(self, session_id: str) -> Session:
        return await self.operations.get(session_id)

    async def cancel_session(self, session_id: str) -> Session:
        return await self.operations.cancel(session_id)

    async def get_active_sessions(self) -> list[Session]:
        return await self.operations.active()

    async def handle(self, message: dict[str, Any]) -> dict[str, Any]:
        """Any operation by name: {type, data, request_id} -> {success, data or error, request_id}."""
        return await self.operations.handle(_as_sent(message))


def _as_sent(body: dict[str, Any]) -> Any:
    """What a server would read of it: a tuple is a list there too. Raises CallerError `invalid_json`."""
    return json.loads(written(body))


@dataclass(frozen=True, slots=True)
class Picture:
    record: ImageRecord
    path: Path

    def save(self, path: str | Path) -> None:
        Path(path).write_bytes(self.path.read_bytes())


@dataclass(frozen=True, slots=True)
class Result:
    session: Session
    images: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Submitted:
    """A session that was accepted."""

    accepted: Session
    _operations: Operations

    @property
    def id(self) -> str:
        return self.accepted.id

    async def events(self) -> AsyncIterator[Event]:
        async for event in await self._operations.events(self.id):
            yield event

    async def cancel(self) -> Session:
        return await self._operations.cancel(self.id)

    async def result(self) -> Result:
        """Wait for the end. Raises RunFailure when it did not succeed."""
        session = await self._operations.wait(self.accepted)
        if session.state is not State.SUCCEEDED:
            raise RunFailure(session.error or ErrorInfo(code="cancelled", message=f"session {self.id} was cancelled"))
        pictures = [await self._operations.image(self.id, image.index) for image in session.images]
        return Result(session, tuple(Picture(record, path) for record, path in pictures))


async def serve(settings: Settings) -> None:
    """Run the HTTP server until SIGTERM or SIGINT; a second signal skips the draining. Raises SetupError."""
    from mezzotint.api.app import build
    from mezzotint.api.patience import Connection

    if settings.insecure_no_auth:
        log.warning("asking nobody for an API key: whoever reaches this server may use it", host=settings.host)
    elif not settings.on_loopback and not await _has_key(settings):
        message = (
            f"host {settings.host!r} is not loopback, and there is no API key; make one with "
            f"`mezzotint keys create --data {settings.data}`, or listen on 127.0.0.1"
        )
        raise BadSetting(message)
    _open_many_files()
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    mezzotint = Mezzotint(settings=settings, tunes=True, keeps_spare=settings.spare)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: mezzotint.stop_draining() if told.is_set() else told.set())
    with _listen(settings.host, settings.port) as listener:
        async with mezzotint:
            await mezzotint.assets.start()
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            url = f"http://{host}:{listener.getsockname()[1]}"
            config = uvicorn.Config(
                build(mezzotint.operations),
                http=Connection,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                proxy_headers=bool(settings.hosts),  # of a proxy on this machine, which docs/production.md has
                timeout_graceful_shutdown=2,
            )
            if settings.hosts and not settings.insecure_no_auth and not await mezzotint.operations.asks_for_keys():
                log.warning("asking nobody for an API key until the first is made", hosts=settings.hosts)
            server = _Server(config, lambda: log.info("listening", url=url, data=str(settings.data)))
            stopping = asyncio.create_task(_stop(told, mezzotint, server), name="stop")
            await server.serve(sockets=[listener])
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
    log.info("stopped")


async def _stop(told: asyncio.Event, mezzotint: Mezzotint, server: "_Server") -> None:
    """Once told: the server answers, also those who wait for a session, until the sessions have ended or had to go."""
    await told.wait()
    log.info("stopping", drain_s=mezzotint.settings.drain_s)
    try:
        await mezzotint.drain()
    finally:
        server.stop()


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn's own handling ends the process before workers and store are closed. And it wakes
    once a second, for the date in its answers; uvicorn looks ten times a second whether it is to stop.
    """

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening
        self._stopping = asyncio.Event()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stopping.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _collect_seldom()
        self._on_listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()


def _collect_seldom() -> None:
    """While Python collects garbage it answers nobody: 130 to 200 ms each second at 50 callers, of what was there at
    the start and of all that wait. What is here now stays; requests leave next to no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def _open_many_files() -> None:
    """As many as the system allows: each caller who follows events has one, and the usual limit is 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # one that the system has only told
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        message = f"cannot listen on {host}:{port}: {error.strerror}; choose another with --host or --port"
        raise SetupError(message) from error
    return listener


async def _has_key(settings: Settings) -> bool:
    with own(settings.data):
        await beside.bring_up(settings.database_url)
        return any(key.usable(time.time()) for key in await beside.list_keys(settings.database_url))


@contextlib.contextmanager
def own(data: Path) -> Iterator[None]:
    """Hold the data folder for this process. Raises SetupError when another has it."""
    lock = _lock(data)
    try:
        yield
    finally:
        os.close(lock)


def _lock(data: Path) -> int:
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"the data folder {data} cannot be used: {error.strerror}; make it yours or choose another --data"
        raise SetupError(message) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise SetupError(
            f"the data folder {data} is in use by another server; stop it or choose another --data"
        ) from error
    return lock
