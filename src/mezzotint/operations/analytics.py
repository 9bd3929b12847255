"""How sessions went lately: percentiles by model and type, from the rows of the store; and what Prometheus reads."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mezzotint.callers import asking
from mezzotint.operations.parts import Verbs
from mezzotint.session import SPANS, State
from mezzotint.store.analytics import Ended

DAY_S = 86_400.0
MAX_WINDOW_S = 90 * DAY_S
MAX_SESSIONS = 20_000
PERCENTILES = (50, 90, 95, 99)


class AnalyticsVerbs(Verbs):
    def metrics(self) -> bytes:
        """Prometheus' text format."""
        return self._parts.metrics.text()

    async def analytics(self, window_s: float = DAY_S) -> dict[str, Any]:
        """The caller's sessions that ended within the last `window_s` seconds, by model and type, busiest first.

        Times are of those that succeeded. Of more than MAX_SESSIONS the latest count, and `truncated` says so.
        """
        caller = asking.get()
        owner = None if caller.may("read-all") else caller.name
        found = await self._parts.store.ended(since=time.time() - window_s, owner=owner, limit=MAX_SESSIONS + 1)
        found, beyond = found[:MAX_SESSIONS], found[MAX_SESSIONS:]
        groups: dict[tuple[str, str], list[Ended]] = {}
        for one in found:
            groups.setdefault((one.model, one.type), []).append(one)
        ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
        return {
            "window_s": window_s,
            "truncated": bool(beyond),
            "all": _summary(found),
            "groups": [{"model": model, "type": kind, **_summary(members)} for (model, kind), members in ranked],
        }


def _summary(members: Sequence[Ended]) -> dict[str, Any]:
    good = [one for one in members if one.state is State.SUCCEEDED]
    steps = sum(one.usage.steps_run for one in good)
    spent = sum(one.spans.get("denoising", 0.0) for one in good)
    peaks = (one.usage.peak_memory_bytes for one in good if one.usage.peak_memory_bytes is not None)
    told = {
        "total_s": percentiles(sum(one.spans.values()) for one in good),
        "steps_per_s": round(steps / spent, 4) if spent else None,  # of one session, beside its neighbours
        "peak_memory_bytes": percentiles(peaks),
    }
    why = "nothing of it was measured" if good else "no session succeeded"
    return {
        "sessions": len(members),
        "states": dict(Counter(str(one.state) for one in members)),
        "errors": dict(Counter(one.error.code for one in members if one.error)),
        "spans": {f"{name}_s": percentiles(one.spans.get(name, 0.0) for one in good) for name in SPANS},
        **told,
        "unknown": {name: why for name, known in told.items() if known is None} | ({} if good else {"spans": why}),
    }


def percentiles(values: Iterable[float]) -> dict[str, float] | None:
    """By nearest rank, so that each is a value that there was; None of none."""
    ordered = sorted(values)
    if not ordered:
        return None
    ranks = {p: math.ceil(p / 100 * len(ordered)) - 1 for p in PERCENTILES}
    return {f"p{p}": round(ordered[rank], 6) for p, rank in ranks.items()}
