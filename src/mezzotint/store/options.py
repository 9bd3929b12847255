"""The rows of what callers of AUTOMATIC1111's dialect set. Must not know what they mean."""

from typing import Any

from sqlalchemy import insert, select, update

from mezzotint.store.changes import Work
from mezzotint.store.database import Database
from mezzotint.store.tables import a1111_options


class Options:
    """Committed when a method returns. Any method raises TryLater; then nothing changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, owner: str) -> dict[str, Any]:
        query = select(a1111_options.c.value).where(a1111_options.c.owner == owner)
        return await self._database.read(lambda connection: connection.scalar(query) or {})

    async def keep(self, owner: str, values: dict[str, Any]) -> None:
        """Put these beside or in place of the owner's others."""
        row = a1111_options.c.owner == owner

        def run(work: Work) -> None:
            known = work.connection.scalar(select(a1111_options.c.value).where(row))
            if known is None:
                work.connection.execute(insert(a1111_options).values(owner=owner, value=values))
            else:
                work.connection.execute(update(a1111_options).where(row).values(value=known | values))

        await self._database.write(run)
