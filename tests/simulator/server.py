"""The server of a simulation: put together as `Mezzotint` does it, all real but for the models and the workers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mezzotint.catalog import TYPES, Model
from mezzotint.checkpoints import Checkpoints
from mezzotint.dispatcher import Dispatcher
from mezzotint.errors import TryLater
from mezzotint.events import Events
from mezzotint.measurements import Measurements
from mezzotint.refs import Refs
from mezzotint.store.blobs import Blobs
from mezzotint.store.outbox import Outbox, Post
from mezzotint.store.sql import Store
from mezzotint.tuning import Choices
from mezzotint.webhook_rules import Policy
from mezzotint.webhooks import Webhooks
from mezzotint.workers.base import SPARE_BUDGET, Supervisor
from mezzotint.workers.wire import ModelRef
from tests.simulator.worker import MODEL, PlayedWorker
from tests.simulator.world import World

THREADS = 1


class Server:
    """One life of it, on a data folder."""

    def __init__(self, data: Path, world: World, devices: tuple[str, ...]) -> None:
        self._data, self._world, self._devices = data, world, devices
        self.store: Store
        self.dispatcher: Dispatcher

    async def start(self) -> None:
        data, world = self._data, self._world
        self.events = Events()
        self.store = await Store.open(f"sqlite:///{data / 'mezzotint.db'}", events=self.events)
        blobs = _Blobs(data / "sessions", world)
        blobs.sweep()
        measurements = Measurements(data / "cache", THREADS, keep=False)
        self._supervisor = Supervisor(
            self._devices,
            THREADS,
            SPARE_BUDGET,
            measurements,
            keeps_spare=True,
            start_worker=self._start_worker,
            free_memory=lambda: 2 * SPARE_BUDGET,
        )
        self._checkpoints = Checkpoints(data / "checkpoints")
        choices = Choices(data / "cache", THREADS, executor="torch", dtype="float32")
        self.dispatcher = Dispatcher(
            self.store, blobs, self._checkpoints, _Refs(), self._supervisor, self.events, choices, measurements
        )
        await self.dispatcher.start()
        self._checkpoints.start()
        self._supervisor.start()
        self._webhooks = _Webhooks(self.store.outbox, world)
        self._webhooks.start()

    @property
    def spare(self) -> PlayedWorker | None:
        found = self._supervisor.spare
        assert found is None or isinstance(found, PlayedWorker)
        return found

    async def stop(self, drain_s: float) -> None:
        await self.dispatcher.drain(drain_s)
        await self._supervisor.stop()
        await self._webhooks.stop()
        await self._checkpoints.stop()
        await self.store.close()

    async def _start_worker(
        self,
        worker_id: str,
        device: str,
        threads: int,
        memory_bytes: int,
        on_message: Any,
        on_end: Any,
        on_exit: Any,
        *,
        is_spare: bool = False,
    ) -> PlayedWorker:
        worker = PlayedWorker(worker_id, device, self._world, is_spare=is_spare)
        worker.listen(on_message, on_end, on_exit)
        return worker


class _Refs(Refs):
    """Of one model, which is always there."""

    def __init__(self) -> None:
        no_catalog: Any = SimpleNamespace(models={})
        super().__init__(no_catalog)

    async def of(self, model_id: str) -> ModelRef | None:
        return self.now(model_id)

    def now(self, model_id: str) -> ModelRef | None:
        return MODEL if model_id == MODEL.id else None

    def facts(self, ref: ModelRef) -> Model:
        return Model(id=ref.id, kind=ref.kind, path=ref.path, state="ready", types=TYPES, size_multiple=1)

    def is_read(self, model_id: str) -> bool:
        return True


class _Blobs(Blobs):
    """On a disk that is full when the world says so."""

    def __init__(self, root: Path, world: World) -> None:
        super().__init__(root)
        self._world = world

    async def put(self, session_id: str, data: bytes) -> str:
        if self._world.now < self._world.full_until:
            raise TryLater("the disk that holds the pictures is full", code="storage_full", retry_after_s=10)
        return await super().put(session_id, data)


class _Webhooks(Webhooks):
    """To the receivers of the world."""

    def __init__(self, outbox: Outbox, world: World) -> None:
        super().__init__(outbox, Policy(hosts=("example.org",)))
        self._world = world

    async def _call(self, post: Post) -> int:
        return await self._world.receives(post.session_id, post.type)
