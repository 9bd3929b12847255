"""The tables as today's code sees them, and how values become columns. Must not create a table: migrations do."""

from typing import Any

import msgspec
from sqlalchemy import BigInteger, Boolean, Column, Dialect, Double, ForeignKey, Integer, MetaData, Table, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from mezzotint.api_keys import Limits, Scope
from mezzotint.batches import Item
from mezzotint.errors import ErrorInfo
from mezzotint.request import Request
from mezzotint.session import Usage


class Json(TypeDecorator[Any]):
    """A value of one type as JSON text. None is NULL. Fields that a stored value lacks take their defaults."""

    impl = Text
    cache_ok = True

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.of = of
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(of)

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else self._decoder.decode(value)


class prompt_of(FunctionElement[str]):  # noqa: N801  used as SQL's own functions are
    """The prompt inside a stored request."""

    type = Text()
    inherit_cache = True


@compiles(prompt_of, "sqlite")
def _(element: prompt_of, compiler: Any, **how: Any) -> str:
    return f"json_extract({compiler.process(element.clauses, **how)}, '$.prompt')"


@compiles(prompt_of, "postgresql")
def _(element: prompt_of, compiler: Any, **how: Any) -> str:
    # Postgres reads no JSON that holds a NUL, wherever it is; metadata may
    without_nul = f"replace({compiler.process(element.clauses, **how)}, '\\u0000', '\\ufffd')"
    return f"({without_nul}::json ->> 'prompt')"


metadata = MetaData()

sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("device", Text),  # where it runs or last ran; NULL until first claimed
    Column("priority", Integer, nullable=False),
    Column("batch_id", Text),
    Column("owner", Text),  # id of the API key that sent it; NULL where nobody is asked for one
    Column("attempt", Integer, nullable=False, default=0),  # the fence: one more with every claim
    Column("losses", Integer, nullable=False, default=0),
    Column("worker", Text),  # NULL unless running
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("expires_at", Double),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("pause_requested", Boolean, nullable=False, default=False),
    Column("request", Json(Request), nullable=False),
    Column("spans", Json(dict[str, float]), nullable=False),
    Column("usage", Json(Usage), nullable=False),
    Column("error", Json(ErrorInfo)),
    Column("warnings", Json(tuple[dict[str, Any], ...]), nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("stop_on_first_error", Boolean, nullable=False),
    Column("metadata", Json(dict[str, Any]), nullable=False),
    Column("items", Json(tuple[Item, ...]), nullable=False),
    Column("owner", Text),
    Column("scope", Text),  # with key: of its idempotency key, if it came with one
    Column("key", Text),
    Column("fingerprint", Text),
)

images = Table(
    "images",
    metadata,
    Column("session_id", Text, ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("idx", Integer, primary_key=True),
    Column("seed", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("format", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
)

transitions = Table(
    "transitions",
    metadata,
    Column("session_id", Text, ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True),  # from 1
    Column("from_state", Text),  # NULL for the first
    Column("to_state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("cause", Text, nullable=False),
    Column("device", Text),  # of a claim
    Column("steps_resumed", Integer),  # of a claim: done in earlier attempts and not to be run again
    Column("at", Double, nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("session_id", Text, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Double, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("scopes", Json(tuple[Scope, ...]), nullable=False),
    Column("limits", Json(Limits), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)

a1111_options = Table(
    "a1111_options",
    metadata,
    Column("owner", Text, primary_key=True),  # an API key's id; empty: everybody, while there are none
    Column("value", Json(dict[str, Any]), nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Text, primary_key=True),
    Column("session_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("session", Text, nullable=False),  # JSON of it or of its batch, as it was then
    Column("at", Double, nullable=False),
    Column("tries", Integer, nullable=False, default=0),
    Column("next_at", Double, nullable=False),
)

starts = Table(
    "starts",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 0
    Column("at", Double, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("session_id", Text, ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("data", Text, nullable=False),  # JSON; of a session all but its request, which never changes
)
