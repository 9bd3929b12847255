"""Who asks, known to all that happens for them. Must not read a database or know of HTTP."""

from contextvars import ContextVar
from dataclasses import dataclass

from mezzotint.api_keys import SCOPES, Limits
from mezzotint.api_keys import Scope as Scope
from mezzotint.errors import CallerError


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """An API key's rights. Without a key: of a program's own engine, or of a server that asks for none, all of them."""

    key: str | None = None  # the id
    scopes: frozenset[Scope] = frozenset(SCOPES)
    limits: Limits | None = None

    def may(self, scope: Scope) -> bool:
        """Who may read everybody's may read their own."""
        reads_all = scope == "read-own" and "read-all" in self.scopes
        return reads_all or scope in self.scopes or "admin" in self.scopes

    def check(self, scope: Scope) -> None:
        """Raises CallerError `forbidden` without the scope."""
        if not self.may(scope):
            raise CallerError(f"this API key lacks the scope {scope}; ask for a key that has it", code="forbidden")

    def sees(self, owner: str | None) -> bool:
        """Whether a session of this owner is there for them at all."""
        return self.may("read-all") or (self.key is not None and self.key == owner)

    def changes(self, owner: str | None) -> bool:
        """Whether they may cancel, pause or delete it."""
        return self.may("admin") or (self.key is not None and self.key == owner)

    @property
    def name(self) -> str:
        """What idempotency keys count by, beside the route."""
        return self.key or "anybody"


# Set for each call by the layer that reads credentials; carried on by every task that the call starts.
asking: ContextVar[Caller] = ContextVar("asking", default=Caller())  # noqa: B039  it is frozen
