"""Who asks, and how often they may. Must not say what a route needs."""

from mezzotint.callers import Caller
from mezzotint.operations.parts import Verbs


class KeyVerbs(Verbs):
    """What the layer that reads credentials asks."""

    @property
    def hosts(self) -> frozenset[str]:
        """Names that this server answers to, as a Host header has them, beside those of loopback."""
        settings = self._parts.settings
        address = f"[{settings.host}]" if ":" in settings.host else settings.host
        return frozenset(name.lower() for name in (*settings.hosts, address))

    async def asks_for_keys(self) -> bool:
        return await self._parts.keyring.asks()

    async def caller(self, key: str | None) -> Caller:
        """Raises CallerError `invalid_api_key`."""
        return await self._parts.keyring.caller(key)

    def count_request(self, caller: Caller) -> None:
        """Raises TryLater `quota_exceeded`."""
        self._parts.quotas.count_request(caller)
