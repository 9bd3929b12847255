"""What a caller may ask of Mezzotint, as plain async methods: the one door from the dialects to all below.

Must not know of HTTP. Bodies in, values or bodies out; errors are those of errors.py. One file a domain.
"""

import asyncio
from typing import Any

from mezzotint.operations import envelope
from mezzotint.operations.analytics import AnalyticsVerbs
from mezzotint.operations.assets import AssetVerbs
from mezzotint.operations.batches import BatchVerbs
from mezzotint.operations.capabilities import CapabilityVerbs
from mezzotint.operations.intake import Foreign
from mezzotint.operations.keys import KeyVerbs
from mezzotint.operations.links import LinkVerbs
from mezzotint.operations.models import ModelVerbs
from mezzotint.operations.offline import add_model, offline_checkpoints, offline_model, offline_models, tune, verify
from mezzotint.operations.options import OptionVerbs
from mezzotint.operations.parts import Parts
from mezzotint.operations.sessions import SessionVerbs
from mezzotint.operations.validation import ValidationVerbs

__all__ = [
    "Foreign",
    "Operations",
    "Parts",
    "add_model",
    "offline_checkpoints",
    "offline_model",
    "offline_models",
    "tune",
    "verify",
]


class Operations(
    SessionVerbs,
    BatchVerbs,
    ValidationVerbs,
    CapabilityVerbs,
    AssetVerbs,
    ModelVerbs,
    KeyVerbs,
    LinkVerbs,
    OptionVerbs,
    AnalyticsVerbs,
):
    """Every verb of the contract. Safe to call from any number of coroutines of one loop."""

    async def handle(
        self, message: Any, idempotency_key: str | None = None, leaving: asyncio.Future[None] | None = None
    ) -> dict[str, Any]:
        """Any of the operations by name, in one envelope. What goes wrong is told in it.

        The same key and data again answer the first session or batch. `leaving` is done when the caller has left: one
        who waits is waited with no longer, and what asks for it is cancelled.
        """
        return await envelope.handle(self, message, envelope.Call(key=idempotency_key, leaving=leaving))
