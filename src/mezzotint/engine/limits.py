"""How many rows of a shape share one model call, learned from the calls as they run. Pure: no clock, no tensors.

More rows in a call cost less each, until the device is full; from there on they only make everybody wait. Where memory
ends is learned by meeting it once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mezzotint.engine.trajectory import BatchKey
from mezzotint.workers import wire

MAX_ROWS = 16
ENOUGH_CALLS = 3  # before a number of rows counts as measured
NO_GAIN = 1.05  # a row may cost so much more in a smaller call
LOOK_AGAIN = 100  # calls after which one is made larger than the cap, in case the machine was busy before
_NEW_WEIGHT = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Calls of one number of rows."""

    seconds: float  # of one call; recent calls count more
    calls: int


@dataclass(kw_only=True, slots=True)
class Learned:
    """What is known of one shape."""

    seen: dict[int, Seen] = field(default_factory=dict)  # by rows
    too_many: int | None = None  # rows that memory did not hold
    calls: int = 0


class Limits:
    """The caps of every shape. `most` is never passed, whatever was learned."""

    def __init__(self, most: int = MAX_ROWS) -> None:
        self._most = most
        self._learned: dict[BatchKey, Learned] = {}

    def rows(self, key: BatchKey) -> int:
        """The most rows that one call of this shape should have; at least 1."""
        known = self._learned.get(_shape(key))
        if known is None:
            return self._most
        cap = self._most if known.too_many is None else min(self._most, max(1, known.too_many // 2))
        if known.calls % LOOK_AGAIN == LOOK_AGAIN - 1:
            return cap
        costs = {rows: seen.seconds / rows for rows, seen in known.seen.items() if seen.calls >= ENOUGH_CALLS}
        if len(costs) < 2:
            return cap
        enough = min(rows for rows, cost in costs.items() if cost <= NO_GAIN * min(costs.values()))
        return cap if enough == max(costs) else min(cap, enough)

    def measured(self, key: BatchKey, rows: int, seconds: float) -> None:
        """One call that ended well."""
        known = self._learned.setdefault(_shape(key), Learned())
        known.calls += 1
        before = known.seen.get(rows)
        if before is None or before.calls == 1:  # the first call of a shape is slow: it sets things up
            calls = 1 if before is None else 2
            known.seen[rows] = Seen(seconds=seconds, calls=calls)
            return
        known.seen[rows] = replace(
            before,
            seconds=(1 - _NEW_WEIGHT) * before.seconds + _NEW_WEIGHT * seconds,
            calls=before.calls + 1,
        )

    def exhausted(self, key: BatchKey, rows: int) -> None:
        """One call that memory did not hold. Half as many rows are tried from here on."""
        known = self._learned.setdefault(_shape(key), Learned())
        known.too_many = rows if known.too_many is None else min(rows, known.too_many)

    def know(self, things: Iterable[wire.Thing]) -> None:
        """What earlier workers found out. What is measured here counts from there on."""
        for thing in things:
            work = thing.work
            if work.what != "step" or work.nets or work.loras:
                continue
            key = BatchKey(
                model=work.model,
                executor=work.executor,
                dtype=work.dtype,
                height=work.height,
                width=work.width,
                windows=work.windows,
                alone="",
            )
            if not thing.held:
                self.exhausted(key, work.rows)
            elif thing.seconds is not None:
                known = self._learned.setdefault(key, Learned())
                known.seen[work.rows] = Seen(seconds=thing.seconds, calls=thing.calls)
                known.calls += thing.calls

    def learned(self) -> dict[BatchKey, Learned]:
        return self._learned


def _shape(key: BatchKey) -> BatchKey:
    return replace(key, alone="") if key.alone else key
