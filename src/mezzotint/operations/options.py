"""Options that callers of AUTOMATIC1111's dialect set and expect to find again. Must not know what they mean."""

from typing import Any

from mezzotint.operations.parts import Verbs


class OptionVerbs(Verbs):
    """One set for each API key; the empty name is that of everybody while there are none."""

    async def options(self, owner: str) -> dict[str, Any]:
        return await self._parts.store.options.of(owner)

    async def keep_options(self, owner: str, values: dict[str, Any]) -> None:
        """Put these beside or in place of what is kept. On disk when it returns."""
        await self._parts.store.options.keep(owner, values)
