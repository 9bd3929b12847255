"""What a piece of work costs on a device, from measurements: as measured, read off between two, or drawn on from the
nearest. Pure: knows no session, no clock. Never invents a number: what has no measured neighbour is None.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from mezzotint.measurements import Point
from mezzotint.workers.wire import ModelRef, Work

MOST_PACKED_BYTES = 1 << 30  # families/packing.py leaves large parts as they are
ENOUGH_CALLS = 3  # timed ones before a step counts as measured


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds or bytes. `measured`: at this very model and shape, or between two of its numbers of rows."""

    value: float
    measured: bool

    def times(self, factor: float) -> "Cost":
        return Cost(self.value * factor, False)


Kind = tuple[str, str, str, int, bool]
Table = Mapping[int, Mapping[int, float]]  # latent area -> rows -> value


class Costs:
    """Of one device. `sizes` has the bytes of weights by digest, to draw on from one model of a family to another."""

    def __init__(self, points: Mapping[Work, Point], families: Mapping[str, tuple[str, int]]) -> None:
        """`families`: digest -> (family, bytes of weights)."""
        self._families = families
        self._kinds: dict[Kind, list[Point]] = {}
        for work, point in points.items():
            self._kinds.setdefault(_kind(work), []).append(point)
        self._known: dict[tuple[str, Work], Cost | None] = {}

    def seconds(self, work: Work) -> Cost | None:
        """Of one piece of work; a cap on rows is the caller's to keep."""
        return self._once("seconds", work, _seconds)

    def extra_bytes(self, work: Work) -> Cost | None:
        """Memory that is in use meanwhile beside what is there before; of a load what stays."""
        return self._once("bytes", work, _extra_bytes)

    def most_rows(self, work: Work) -> int | None:
        """Rows that the engine has learned to put into one call of this shape at most."""
        shape = (work.model, work.height, work.width)
        kin = [
            one for one in self._kind(work) if (one.work.model, one.work.height, one.work.width) == shape and one.cap
        ]
        return max(kin, key=lambda one: one.seen_at).cap if kin else None

    def _once(self, name: str, work: Work, value: Callable[[Point], float | None]) -> Cost | None:
        if (name, work) not in self._known:
            self._known[name, work] = self._of(work, value)
        return self._known[name, work]

    def _kind(self, work: Work) -> list[Point]:
        return self._kinds.get(_kind(work), [])

    def _of(self, work: Work, value: Callable[[Point], float | None]) -> Cost | None:
        own = self._table(work, value)
        if own:
            return read_off(own, work.height * work.width, work.rows)
        if work.loras or work.nets:  # adapters cost extra; how much is learned when one has run
            return None
        return self._of_family(work, value)

    def _of_family(self, work: Work, value: Callable[[Point], float | None]) -> Cost | None:
        """From the measured model of the same family whose weights are nearest in size, by the ratio of the sizes."""
        family, size = self._families.get(work.model, ("", 0))
        if not family or not size:
            return None
        measured = {one.work.model for one in self._kind(work)} - {work.model}
        there = {
            model: self._families[model][1] for model in measured if self._families.get(model, ("", 0))[0] == family
        }
        for model in sorted(there, key=lambda one: abs(math.log(there[one] / size))):
            table = self._table(msgspec.structs.replace(work, model=model), value)
            if table:
                return read_off(table, work.height * work.width, work.rows).times(size / there[model])
        return None

    def _table(self, work: Work, value: Callable[[Point], float | None]) -> Table:
        """Values by area and rows; of texts of several lengths those of the length nearest to `work.windows`."""
        found: dict[tuple[int, int], tuple[int, float]] = {}
        for point in self._kind(work):
            other, known = point.work, value(point)
            if known is None or other.model != work.model:
                continue
            place, distance = (other.height * other.width, other.rows), abs(other.windows - work.windows)
            if place not in found or distance < found[place][0]:
                found[place] = (distance, known)
        table: dict[int, dict[int, float]] = {}
        for (area, rows), (_, known) in found.items():
            table.setdefault(area, {})[rows] = known
        return table


def read_off(table: Table, area: int, rows: int) -> Cost:
    """From a table that has at least one value."""
    if area in table:
        return _line(table[area], rows)
    at_rows = {known: _line(values, rows).value for known, values in table.items()}
    return Cost(_power(at_rows, area), False)


def _line(values: Mapping[int, float], rows: int) -> Cost:
    """Linear between two numbers of rows; beyond them as the nearest two rise, or in proportion to the only one."""
    if rows in values:
        return Cost(values[rows], True)
    known = sorted(values)
    if len(known) == 1:
        return Cost(values[known[0]] * rows / known[0], False)
    low, high = _around(known, rows)
    slope = max(0.0, (values[high] - values[low]) / (high - low))
    return Cost(max(values[low] + slope * (rows - low), 0.0), known[0] < rows < known[-1])


def _power(values: Mapping[int, float], area: int) -> float:
    """A power of the area, through the two nearest. Upwards at least in proportion, since small shapes do not fill a
    device, downwards at most."""
    known = sorted(values)
    if len(known) == 1:
        return values[known[0]] * area / known[0]
    low, high = _around(known, area)
    if min(values[low], values[high]) <= 0:
        return max(values[low], values[high]) * max(1.0, area / high)
    slope = math.log(values[high] / values[low]) / math.log(high / low)
    if area > high:
        return values[high] * math.pow(area / high, max(1.0, slope))
    if area < low:
        return values[low] * math.pow(area / low, min(1.0, max(0.0, slope)))
    return values[low] * math.pow(area / low, slope)


def _around(known: list[int], wanted: int) -> tuple[int, int]:
    """The two that stand on both sides, or the nearest two."""
    above = next((index for index, one in enumerate(known) if one > wanted), len(known) - 1)
    above = max(1, above)
    return known[above - 1], known[above]


def _kind(work: Work) -> Kind:
    return work.what, work.executor, work.dtype, work.nets, work.loras


def _seconds(point: Point) -> float | None:
    return None if point.work.what == "step" and point.calls < ENOUGH_CALLS else point.seconds


def _extra_bytes(point: Point) -> float | None:
    return point.extra_bytes


def weights_bound(executor: str, dtype: str, parameters: int) -> float:
    """Bytes that a model's weights take at most. torch has texts read in float32 whatever the UNet runs in, and copies
    of small parts packed; other executors have their graphs beside torch float32."""
    if executor != "torch":
        return 8.0 * parameters
    loaded = (4.0 if dtype == "float32" else 3.0) * parameters
    return loaded + min(loaded, MOST_PACKED_BYTES)


def families(refs: Iterable[ModelRef]) -> dict[str, tuple[str, int]]:
    return {ref.sha256: (ref.family, ref.bytes) for ref in refs}
