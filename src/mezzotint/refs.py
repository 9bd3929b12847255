"""Models of the catalog as workers are told of them. Must not import torch."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mezzotint.catalog import Catalog, Model
from mezzotint.workers.wire import Heartbeat, ModelRef

_UNREAD = "unread:"  # before a model's id, where its digest will be


class Refs:
    """Hashes a model when it is first asked for, and remembers it for as long as the catalog has the same facts.

    A large model takes half a minute and more, so only who needs its digest waits for it.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[str, tuple[Model, ModelRef | None]] = {}  # None: it cannot be read
        self._reading: dict[str, _Reading] = {}
        self.on_read: Callable[[], None] = lambda: None  # a model that `is_read` did not know is known

    @property
    def known(self) -> Mapping[str, ModelRef]:
        """Those that were asked for, by id, as `at_once` tells them."""
        unread = {model_id: _ref(one.model, _UNREAD + model_id) for model_id, one in self._reading.items()}
        return {model_id: ref for model_id, (_, ref) in self._known.items() if ref is not None} | unread

    async def of(self, model_id: str) -> ModelRef | None:
        """None for a model that is gone or cannot be used any more. Waits until it is hashed."""
        model = self._usable(model_id)
        if model is None:
            return None
        read, known = self._known.get(model_id, (None, None))
        return known if known is not None and read == model else await asyncio.shield(self._read(model).whole)

    async def at_once(self, model_id: str) -> ModelRef | None:
        """The same without waiting. One that is being hashed has a digest that nothing was measured under."""
        model = self._usable(model_id)
        if model is None or self.is_read(model_id):
            return await self.of(model_id)
        is_hashed = await asyncio.shield(self._read(model).looked) is not None
        return await self.of(model_id) if is_hashed else _ref(model, _UNREAD + model_id)

    def facts(self, ref: ModelRef) -> Model:
        """What it was made of, by an answer of `of` or `at_once`: the catalog may have lost it since."""
        reading = self._reading.get(ref.id)
        return reading.model if reading is not None and is_unread(ref) else self._known[ref.id][0]

    def now(self, model_id: str) -> ModelRef | None:
        """What is known of it without asking; None when its files were not read, or have changed since."""
        model, (read, known) = self._usable(model_id), self._known.get(model_id, (None, None))
        if model is None or read is None:
            return None
        return known if (read.path, read.stamp, read.vae_path) == (model.path, model.stamp, model.vae_path) else None

    def held(self, beat: Heartbeat | None) -> tuple[str, ...]:
        """Ids of the models that a worker has loaded as they lie on the disk now."""
        if beat is None:
            return ()
        loaded = {work.model for work in beat.loaded}
        return tuple(name for name in beat.resident if (ref := self.now(name)) is not None and ref.sha256 in loaded)

    def is_being_read(self, model_id: str) -> bool:
        return model_id in self._reading

    def is_read(self, model_id: str) -> bool:
        """Whether `of` answers at once. If not, the model is being hashed from now on, and `on_read` tells its end."""
        model = self._usable(model_id)
        if model is None or self._known.get(model_id, (None, None))[0] == model:
            return True
        self._read(model)
        return False

    def _usable(self, model_id: str) -> Model | None:
        model = self._catalog.models.get(model_id)
        return None if model is None or model.state == "invalid" else model

    def _read(self, model: Model) -> "_Reading":
        """What hashes it: that which does so already, or a new one."""
        reading = self._reading.get(model.id)
        if reading is None or reading.model != model:
            looked = asyncio.create_task(asyncio.to_thread(self._catalog.known_digest, model.id))
            whole = asyncio.create_task(self._hash(model, looked), name=f"hash {model.id}")
            reading = self._reading[model.id] = _Reading(model=model, looked=looked, whole=whole)
        return reading

    async def _hash(self, model: Model, looked: asyncio.Task[str | None]) -> ModelRef | None:
        try:
            sha256 = await looked
            if sha256 is None:
                sha256 = await asyncio.wrap_future(self._catalog.hashing(model))
            tensors = await asyncio.to_thread(self._catalog.tensors_digest, model.id)
            _, vae = await asyncio.to_thread(self._catalog.vae, model.id)
            known = _ref(model, sha256, tensors, vae)
        except OSError:
            known = None
        finally:  # however it ended, who asks next begins anew
            reading = self._reading.get(model.id)
            if reading is not None and reading.whole is asyncio.current_task():
                del self._reading[model.id]
        self._known[model.id] = (model, known)
        self.on_read()
        return known


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reading:
    """A model on its way. `looked`: the digest, or None when it has to be hashed; a few milliseconds."""

    model: Model
    looked: asyncio.Task[str | None]
    whole: asyncio.Task[ModelRef | None]


def is_unread(ref: ModelRef) -> bool:
    """Whether its digest is not known yet."""
    return ref.sha256.startswith(_UNREAD)


def _ref(model: Model, sha256: str, tensors_sha256: str = "", vae_sha256: str = "") -> ModelRef:
    return ModelRef(
        id=model.id,
        kind=model.kind,
        family=model.family,
        path=model.path,
        bytes=model.bytes,
        parameters=model.parameters,
        sha256=sha256,
        vae=model.vae_path,
        tensors_sha256=tensors_sha256,
        vae_sha256=vae_sha256,
    )
