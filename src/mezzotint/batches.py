"""Many requests accepted as one: a batch as pure values. Must not do I/O or read a clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mezzotint.errors import ErrorInfo
from mezzotint.session import FINAL, State


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One request of a batch, by its place there: a session, or why it never became one."""

    index: int
    session_id: str | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What was accepted together. How it goes is told by its sessions."""

    id: str
    created_at: float  # Unix seconds
    items: tuple[Item, ...]
    stop_on_first_error: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    owner: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How one session of a batch stands."""

    state: State
    error: ErrorInfo | None = None


def standing(item: Item, sessions: Mapping[str, Standing]) -> Standing | None:
    """None: its session was removed."""
    if item.session_id is None:
        return Standing(state=State.FAILED, error=item.error)
    return sessions.get(item.session_id)


def state(batch: Batch, sessions: Mapping[str, Standing]) -> str | None:
    """`running` until all have ended; then what they all ended as, or `partially_succeeded`.

    An expired session counts as failed. Without a success it is cancelled when anything was, else failed. None: all
    that could tell was removed.
    """
    known = {one.state for item in batch.items if (one := standing(item, sessions)) is not None}
    if not known:
        return None
    if known - FINAL:
        return "running"
    if State.SUCCEEDED in known:
        return "succeeded" if known == {State.SUCCEEDED} else "partially_succeeded"
    return "cancelled" if State.CANCELLED in known else "failed"
