"""What a kind of database has to do in its own way. Must not know one."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import URL, Connection

T = TypeVar("T")

# An execution option of a transaction that a power cut may undo, since then whoever acted upon it is gone too: where
# that holds, its commit need not wait for the disk. What is committed behind it is never kept without it. A database
# on a server, which may lose its power alone, waits all the same.
UNSYNCED = "unsynced"


class Engine(Protocol):
    """Connections on which whole transactions run: a caller waits for one answer, not for each statement's."""

    async def run(self, body: Callable[[Connection], T]) -> T:
        """Call the body with a connection, and roll back what it has not committed. It must not touch the loop."""

    async def dispose(self) -> None:
        """Close the connections. The next `run` opens one anew."""


class Kind(Protocol):
    """What one kind of database does in its own way. Everything else is the same SQL."""

    def address(self, url: URL) -> URL:
        """The address with its driver. Raises SetupError when sessions cannot be kept there. Opens nothing."""

    def open(self, url: URL, wait_s: float) -> tuple[Engine, Engine]:
        """One writer whose commits are fsynced, and readers whose transactions see one instant and cannot write.

        Each waits so long for what another process holds.
        """

    def open_beside(self, url: URL, wait_s: float) -> Engine:
        """For a few rows written by another process than the server's, which it does not disturb."""

    def meaning(self, error: BaseException) -> tuple[str, str] | None:
        """Code and message of what waiting can mend. None: a bug, or a broken disk."""

    def reason(self, error: BaseException) -> str | None:
        """Why the database cannot be opened, for the operator; without secrets. None: not for that."""

    async def back_up(self, url: URL, name: str) -> None:
        """Keep a copy under this name before the schema changes, in place of earlier ones; where files are ours."""

    async def mend(self, writer: Engine) -> None:
        """After a write that failed in an unknown way: raises until all that is committed is on the disk again."""

    def broke(self, error: BaseException) -> bool:
        """Whether it is not known any more what of the database is on the disk."""

    def mark(self, connection: Connection) -> str | None:
        """Begin a transaction; a mark to ask for its fate by, None where a failed commit is never in doubt."""

    def committed(self, connection: Connection, mark: str) -> bool:
        """Whether the marked transaction, which can go on no more, was committed."""

    async def set_aside(self, url: URL, writer: Engine) -> bool:
        """Make whole the room on the disk that is kept for when it is full. False while there is not enough."""

    async def draw_on(self, url: URL) -> bool:
        """Give up a piece of that room; only for what frees or stops something. False when none is left."""

    async def tidy(self, writer: Engine) -> None:
        """Leave the files as small as they can be. The last use of the writer."""
