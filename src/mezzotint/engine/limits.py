"""How many rows of a shape share one model call, learned from the calls as they run. Pure: no clock, no tensors.

More rows in a call cost less each, until the device is full; from there on they only make everybody wait. Where memory
ends is learned by meeting it, and met again now and then: who else took room may have gone.

A device is slower at one time than at another, by more than a larger call saves. So what all calls have in common is
its pace, and what is left of a call's time counts for its rows; and of those the straight line decides that fits best:
what a call costs, and what each row adds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from mezzotint.engine.trajectory import BatchKey
from mezzotint.workers import wire

ENOUGH_CALLS = 3  # before a number of rows counts as measured
NO_GAIN = 1.03  # a row may cost so much more in a smaller call
LEFT_BEHIND = 4 / 3  # of the rows that are enough may come, so that none is left behind
LOOK_AGAIN = 100  # calls after which one is made larger than the cap, in case the machine was busy before
TRY_AGAIN = 1000  # calls after which rows that memory did not hold are; each time that it still does not, twice as many
OF_PACE, OF_ROWS = 0.3, 0.03  # of what a call took more or less than expected, as factors; more while little is known
MOST_WEIGHT = 50  # calls; more of them know no better
HICCUP = 2.0  # what it took beyond that says nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Calls of one number of rows."""

    seconds: float  # of one call, were the pace 1
    calls: int


@dataclass(kw_only=True, slots=True)
class Learned:
    """What is known of one shape."""

    seen: dict[int, Seen] = field(default_factory=dict)  # by rows
    enough: int | None = None  # rows; more would not cost less each. None: as many as there are, as far as is seen
    too_many: int | None = None  # rows that memory did not hold
    refusals: int = 0  # how often it was tried in vain
    refused_at: int = 0  # calls that had ended well by then
    calls: int = 0
    pace: float = 1.0  # how many times longer calls take by now
    paced: int = 0  # calls that said so


class Limits:
    """The caps of every shape. `most` is never passed, whatever was learned."""

    def __init__(self, most: int = wire.MAX_ROWS) -> None:
        self._most = most
        self._learned: dict[BatchKey, Learned] = {}

    def rows(self, key: BatchKey, waiting: int = 0) -> int:
        """The most rows that one call of this shape should have; at least 1.

        When not many more than those are `waiting` it is all of them: a few left behind would run in small calls.
        """
        if (known := self._learned.get(_shape(key))) is None:
            return self._most
        held, enough = self._held(known), self._cap(known)
        if known.calls % LOOK_AGAIN == LOOK_AGAIN - 1:
            return held
        return min(held, waiting) if enough < waiting <= enough * LEFT_BEHIND else enough

    def cap(self, key: BatchKey) -> int:
        """The same without looking at what waits, or what may have changed."""
        known = self._learned.get(_shape(key))
        return self._most if known is None else self._cap(known)

    def _cap(self, known: Learned) -> int:
        return min(self._held(known), known.enough or self._most)

    def _held(self, known: Learned) -> int:
        """Rows that memory holds, as far as is known."""
        return self._most if known.too_many is None else min(self._most, max(1, known.too_many // 2))

    def measured(self, key: BatchKey, rows: int, seconds: float) -> None:
        """One call that ended well."""
        known = self._learned.setdefault(_shape(key), Learned())
        known.calls += 1
        if known.too_many is not None and rows >= known.too_many:
            known.too_many, known.refusals = None, 0  # one image is never split: what had its room has gone since
        elif known.too_many is not None and known.calls - known.refused_at >= TRY_AGAIN << (known.refusals - 1):
            known.too_many = None
        before = known.seen.get(rows)
        if before is None or before.calls == 1:  # the first call of a shape is slow: it sets things up
            calls = 1 if before is None else 2
            known.seen[rows] = Seen(seconds=seconds / known.pace, calls=calls)
            return
        change = min(HICCUP, max(1 / HICCUP, seconds / (known.pace * before.seconds)))
        known.paced += 1
        known.pace *= change ** max(OF_PACE, 1 / known.paced)
        own = before.seconds * change ** max(OF_ROWS, 1 / (before.calls + 1))
        known.seen[rows] = Seen(seconds=own, calls=before.calls + 1)
        known.enough = _enough(known.seen)

    def exhausted(self, key: BatchKey, rows: int) -> None:
        """One call that memory did not hold. Half as many rows are tried from here on."""
        known = self._learned.setdefault(_shape(key), Learned())
        known.refusals += known.too_many is None
        known.refused_at = known.calls
        known.too_many = rows if known.too_many is None else min(rows, known.too_many)

    def know(self, things: Iterable[wire.Thing]) -> None:
        """What earlier workers found out. What is measured here counts from there on."""
        for thing in sorted(things, key=lambda one: not one.held):  # from their calls on it counts when to try again
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
                known.enough = _enough(known.seen)


def _shape(key: BatchKey) -> BatchKey:
    return msgspec.structs.replace(key, alone="") if key.alone else key


def _enough(seen: dict[int, Seen]) -> int | None:
    """By weighted least squares of the times of calls, which are all known equally well in proportion."""
    points = [
        (rows, one.seconds, min(one.calls, MOST_WEIGHT) / one.seconds**2)
        for rows, one in seen.items()
        if one.calls >= ENOUGH_CALLS and one.seconds > 0
    ]
    if len(points) < 2:
        return None
    weights = sum(weight for _, _, weight in points)
    mean_rows = sum(weight * rows for rows, _, weight in points) / weights
    mean_s = sum(weight * seconds for _, seconds, weight in points) / weights
    spread = sum(weight * (rows - mean_rows) ** 2 for rows, _, weight in points)
    each_s = sum(weight * (rows - mean_rows) * (seconds - mean_s) for rows, seconds, weight in points) / spread
    call_s = mean_s - each_s * mean_rows
    most = max(rows for rows, _, _ in points)
    if call_s <= 0:
        return min(rows for rows, _, _ in points)
    if call_s / most + each_s <= 0:
        return None  # times of hours too different: they say nothing
    highest = NO_GAIN * (call_s / most + each_s)
    enough = min(rows for rows in range(1, most + 1) if call_s / rows + each_s <= highest)
    enough += enough % 2  # an image with guidance has two
    return None if enough >= most else enough
