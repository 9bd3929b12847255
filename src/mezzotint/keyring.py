"""Tells who holds an API key. Must not know of HTTP, or make or revoke a key."""

import math
import time

from mezzotint.api_keys import ApiKey, Limits, id_of, opens
from mezzotint.callers import Caller
from mezzotint.errors import CallerError
from mezzotint.store.sql import Store

FRESH_S = 1.0  # a revoked key opens nothing after so long
MAX_REMEMBERED = 4096
_USUAL = Limits()


class Keyring:
    """Keys are asked for as soon as one was ever made, and always off loopback; never if the operator said so."""

    def __init__(self, store: Store, *, always: bool, never: bool) -> None:
        self._store, self._always, self._never = store, always, never
        self._any_made = False
        self._looked = float("-inf")
        self._known: dict[str, tuple[ApiKey, float]] = {}

    async def start(self) -> None:
        """Know the limits of those whose sessions wait from before: they may not call for long."""
        keys = await self._store.api_keys()
        self._known = {key.id: (key, float("-inf")) for key in keys[-MAX_REMEMBERED:]}

    async def asks(self) -> bool:
        """Whether a caller needs a key. Once true it stays so: revoking the last key opens nothing."""
        if self._never:
            return False
        if not self._any_made and time.monotonic() - self._looked > FRESH_S:
            self._any_made, self._looked = await self._store.any_api_key(), time.monotonic()
        return self._always or self._any_made

    async def caller(self, text: str | None) -> Caller:
        """Raises CallerError `invalid_api_key` for none, a wrong, a revoked and an expired one alike."""
        key = await self._find(text)
        if text is None or not opens(text, key, time.time()) or key is None:
            message = (
                "this server asks for an API key that is in force: send Authorization: Bearer KEY, or in a browser "
                "give it as the password of any user"
            )
            raise CallerError(message, code="invalid_api_key")
        return Caller(key=key.id, scopes=frozenset(key.scopes), limits=key.limits)

    def most_running(self, owner: str | None) -> float:
        """How many sessions of a key may run at one time; the usual limit of one that is not remembered."""
        if owner is None or self._never:
            return math.inf
        known = self._known.get(owner)
        return (known[0].limits if known else _USUAL).running

    async def _find(self, text: str | None) -> ApiKey | None:
        key_id = id_of(text or "")
        if key_id is None:
            return None
        known = self._known.get(key_id)
        if known is not None and time.monotonic() - known[1] < FRESH_S:
            return known[0]
        key = await self._store.api_key(key_id)
        if key is None:
            return None  # not remembered: there are more ids than memory
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[key_id] = (key, time.monotonic())
        return key
