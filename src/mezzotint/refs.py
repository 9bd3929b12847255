"""Models of the catalog as workers are told of them. Must not import torch."""

import asyncio
from collections.abc import Mapping

from mezzotint.catalog import Catalog, Model
from mezzotint.workers.wire import ModelRef


class Refs:
    """Hashes a model when it is first asked for, and remembers it for as long as the catalog has the same facts."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[str, tuple[Model, ModelRef]] = {}

    @property
    def known(self) -> Mapping[str, ModelRef]:
        """Those that were asked for, by id."""
        return {model_id: ref for model_id, (_, ref) in self._known.items()}

    async def of(self, model_id: str) -> ModelRef | None:
        """None for a model that is gone or cannot be used any more."""
        model = self._catalog.models.get(model_id)
        if model is None or model.state == "invalid":
            return None
        read, known = self._known.get(model_id, (None, None))
        if known is None or read != model:
            try:
                sha256 = await asyncio.to_thread(self._catalog.digest, model)
            except OSError:
                return None
            known = ModelRef(
                id=model.id,
                kind=model.kind,
                family=model.family,
                path=model.path,
                bytes=model.bytes,
                sha256=sha256,
                vae=model.vae_path,
            )
            self._known[model_id] = (model, known)
        return known
