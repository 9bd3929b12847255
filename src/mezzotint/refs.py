"""Models of the catalog as workers are told of them. Must not import torch."""

import asyncio

from mezzotint.catalog import Catalog
from mezzotint.workers.wire import ModelRef


class Refs:
    """Hashes a model when it is first asked for, and remembers it until the catalog has it elsewhere."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[str, ModelRef] = {}

    async def of(self, model_id: str) -> ModelRef | None:
        """None for a model that is gone or cannot be used any more."""
        model = self._catalog.models.get(model_id)
        if model is None or model.state == "invalid":
            return None
        known = self._known.get(model_id)
        if known is None or known.path != model.path:
            sha256 = await asyncio.to_thread(self._catalog.digest, model_id)
            known = self._known[model_id] = ModelRef(
                id=model.id, kind=model.kind, family=model.family, path=model.path, bytes=model.bytes, sha256=sha256
            )
        return known
