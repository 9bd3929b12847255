"""What is loaded: models, and the ControlNets, LoRAs and embeddings read for them, within a budget of bytes.

Must not decide which session runs; it is told what the sessions need and what is likely to be needed, and lets the
rest go by recency.
"""

import contextlib
import ctypes
import gc
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from mezzotint.families.base import ControlNet, Family
from mezzotint.families.embedding import Embedding
from mezzotint.families.lora import Lora
from mezzotint.families.weights import loaded_bytes
from mezzotint.workers.wire import ModelRef, Submit, Work, load_of

Key = tuple[ModelRef, ...]  # a model alone, or (model, adapter)
LoadedPart = Family | ControlNet | Lora | Embedding


class Residents:
    """Loaded parts, the least recently used first. Adapters belong to the model they were fitted to."""

    def __init__(self, load: Callable[[ModelRef], Family], budget_bytes: int) -> None:
        self._load, self._budget = load, budget_bytes
        self._parts: OrderedDict[Key, LoadedPart] = OrderedDict()
        self._sizes: dict[ModelRef, int] = {}
        self._places: dict[str, int] = {}  # of ids, the most wanted at 0

    @property
    def models(self) -> tuple[str, ...]:
        """Ids of the models that are loaded. Any thread may ask."""
        return tuple(dict.fromkeys(key[0].id for key in list(self._parts) if len(key) == 1))

    @property
    def loads(self) -> tuple[Work, ...]:
        """Of each executor and dtype that a model is loaded in. Any thread may ask."""
        return tuple(load_of(key[0]) for key in list(self._parts) if len(key) == 1)

    @property
    def bytes(self) -> int:
        """Of all that is loaded. Any thread may ask."""
        return sum(self._sizes[key[-1]] for key in list(self._parts))

    def has(self, model: ModelRef) -> bool:
        return (model,) in self._parts

    def fits(self, model: ModelRef) -> bool:
        """Whether it has room beside all that is loaded."""
        return self.bytes + self.loads_to(model) <= self._budget

    def keep(self, names: Sequence[str]) -> None:
        """Ids, the most wanted first: when room is short they go last, and what is not named goes first."""
        self._places = {name: place for place, name in enumerate(names)}

    def let_go(self, model_id: str) -> None:
        """Of a model with its adapters, or of an adapter; freed memory goes back to the system."""
        for key in [key for key in self._parts if any(ref.id == model_id for ref in key)]:
            self._parts.pop(key, None)
        give_back()

    def missing(self, submit: Submit) -> list[Key]:
        """What a session needs that is not loaded, the model first."""
        return [key for key in _keys(submit) if key not in self._parts]

    def make_room(self, key: Key, needed: Iterable[Submit], *, replaces: bool = False) -> None:
        """For a part to be loaded: lets go of what no session in `needed` needs, for as long as room is short.

        `replaces`: also of the same model run otherwise.
        """
        in_use = {used for submit in needed for used in _keys(submit)}
        same = [other for other in self._parts if len(other) == 1 and other[0].id == key[0].id] if replaces else []
        for other in set(same) - in_use:
            self._drop(other)
        self._shrink(self.loads_to(key[-1]), in_use)

    def reader(self, key: Key) -> Callable[[], LoadedPart]:
        """What loads a part, for any thread to call; it blocks, and raises whatever the loading raises."""
        model, *adapters = key
        if not adapters:
            return partial(self._load, model)
        family, path = self.family(model), Path(adapters[0].path)
        readers: dict[str, Callable[[Path], LoadedPart]] = {
            "lora": family.load_lora,
            "embedding": family.load_embedding,
            "controlnet": family.load_controlnet,
        }
        return partial(readers[adapters[0].kind], path)

    def put(self, key: Key, loaded: LoadedPart, needed: Iterable[Submit]) -> None:
        """In its place, unless it was read for a model that has gone meanwhile."""
        if len(key) > 1 and key[:1] not in self._parts:
            return
        self._sizes[key[-1]] = loaded.bytes  # asked once: to add up a model's tensors takes more than a millisecond
        self._parts[key] = loaded
        self._shrink(0, {key, *(used for submit in needed for used in _keys(submit))})  # it may have come out larger

    def free(self, needed: Iterable[Submit]) -> bool:
        """Let go of all that no session in `needed` needs. False when there is nothing of the kind."""
        in_use = {used for submit in needed for used in _keys(submit)}
        idle = [key for key in self._parts if key not in in_use]
        for key in idle:
            self._drop(key)
        return bool(idle)

    def family(self, model: ModelRef) -> Family:
        found: Family = self._use((model,))
        return found

    def lora(self, model: ModelRef, adapter: ModelRef) -> Lora:
        found: Lora = self._use((model, adapter))
        return found

    def embedding(self, model: ModelRef, adapter: ModelRef) -> Embedding:
        found: Embedding = self._use((model, adapter))
        return found

    def controlnet(self, model: ModelRef, adapter: ModelRef) -> ControlNet:
        found: ControlNet = self._use((model, adapter))
        return found

    def _use(self, key: Key):  # type: ignore[no-untyped-def]
        self._parts.move_to_end(key)
        return self._parts[key]

    def loads_to(self, ref: ModelRef) -> int:
        """Bytes that it took the last time, else as much as its headers say: twice if something else than torch is to
        run it, which has its twin beside it."""
        if ref not in self._sizes:
            self._sizes[ref] = loaded_bytes(Path(ref.path), torch.float32) * (1 if ref.executor == "torch" else 2)
        return self._sizes[ref]

    def _shrink(self, wanted: int, in_use: set[Key]) -> None:
        for key in sorted(self._parts, key=lambda key: -self._places.get(key[-1].id, math.inf)):  # else by recency
            if self.bytes + wanted <= self._budget:
                return
            if key not in in_use and key in self._parts:
                self._drop(key)

    def _drop(self, key: Key) -> None:
        for other in [other for other in self._parts if other[: len(key)] == key]:
            del self._parts[other]


def names_of(submit: Submit) -> set[str]:
    """Ids of all that a session needs."""
    return {ref.id for ref in (submit.model, *_adapters(submit))}


def give_back() -> None:
    """A worker's allocator keeps what is freed (workers/local.py); here it is to give all of it back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).malloc_trim(0)


def _keys(submit: Submit) -> Sequence[Key]:
    return [(submit.model,), *dict.fromkeys((submit.model, adapter) for adapter in _adapters(submit))]


def _adapters(submit: Submit) -> tuple[ModelRef, ...]:
    return *submit.controlnets, *submit.loras, *submit.embeddings
