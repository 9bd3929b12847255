"""How often a model is there when a session needs it: keeping what the queue needs, beside plain recency.

`python -m benchmarks.residency` replays made-up days of a studio (seeded: projects that each use a model for some
pictures in a row, twelve models of unequal popularity, another favourite now and then, requests that come in bursts and
wait); `--data DIR` replays what a server's database recorded. The worker's own room-making is run, with models of equal
size. "Use" keeps what was used most, by the same count that decides what an idle worker loads ahead. "Knows the future"
drops what is needed last of all (Belady 1966): no policy does better.
"""

import argparse
import math
import random
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import machine
from mezzotint.engine.memory import Residents
from mezzotint.request import plain
from mezzotint.residency import LOOK_AHEAD, Demand, needed
from mezzotint.workers.wire import ModelRef, Submit

MODELS, DAYS, A_DAY = 12, 5, 2000
ROOM = (2, 3, 4, 6)
Trace = list[tuple[float, str]]  # second of arrival, model
Keep = Callable[[int, Sequence[str]], Sequence[str]]  # number of the session, those that wait -> what to keep


class Part:
    bytes = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a server's data folder")
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="that a session takes, so that others wait meanwhile"
    )
    asked = parser.parse_args()
    trace = made_up(random.Random(1)) if asked.data is None else recorded(asked.data / "mezzotint.db")
    names = len({name for _, name in trace})
    print(f"{len(trace)} sessions, {names} models; loads avoided, of all sessions")
    print(f"{'room for':>8} {'recency':>9} {'use':>9} {'queue, recency':>15} {'knows the future':>17}")
    found: dict[int, dict[str, float]] = {}
    for room in ROOM:
        found[room] = {
            "recency": hits(trace, room, asked.seconds, lambda *_: ()),
            "use": hits(trace, room, asked.seconds, by_use(trace)),
            "queue, recency": hits(trace, room, asked.seconds, by_queue),
            "knows the future": hits(trace, room, asked.seconds, by_future(trace)),
        }
        shares = [f"{100 * share:.1f} %" for share in found[room].values()]
        print(f"{room:8} {shares[0]:>9} {shares[1]:>9} {shares[2]:>15} {shares[3]:>17}")
    machine.keep("residency", {"sessions": len(trace), "models": names, "hits": found})


def hits(trace: Trace, room: int, seconds: float, keep: Keep) -> float:
    """One worker, one session at a time, first come first served."""
    load: Any = lambda ref: Part()  # noqa: E731
    residents, hit, free_at = Residents(load, budget_bytes=room), 0, 0.0
    with mock.patch("mezzotint.engine.memory.loaded_bytes", return_value=1):
        for number, (arrived, name) in enumerate(trace):
            begins = max(arrived, free_at)
            free_at = begins + seconds
            waits = [other for at, other in trace[number + 1 : number + 1 + LOOK_AHEAD] if at <= begins]
            residents.keep(keep(number, waits))
            model = ModelRef(id=name, kind="checkpoint", family="sd", path=name, bytes=1, sha256=name)
            submit = Submit(session_id=str(number), attempt=1, request=plain(name, "", 0), model=model)
            missing = residents.missing(submit)
            hit += not missing
            for key in missing:
                residents.make_room(key, [submit])
                residents.put(key, residents.reader(key)(), [submit])
            residents.family(model)
    return hit / len(trace)


def by_queue(_: int, waits: Sequence[str]) -> Sequence[str]:
    """What the server tells a worker."""
    return needed(plain(name, "", 0) for name in waits)


def by_use(trace: Trace) -> Keep:
    demand = Demand()

    def keep(number: int, _: Sequence[str]) -> Sequence[str]:
        at, name = trace[number]
        demand.used(name, at)
        return demand.order()

    return keep


def by_future(trace: Trace) -> Keep:
    places: dict[str, list[int]] = {}
    for number, (_, name) in enumerate(trace):
        places.setdefault(name, []).append(number)

    def keep(number: int, _: Sequence[str]) -> Sequence[str]:
        return sorted(places, key=lambda name: next((one for one in places[name] if one > number), math.inf))

    return keep


def made_up(rng: random.Random) -> Trace:
    trace: Trace = []
    names = [f"model-{number}" for number in range(MODELS)]
    at, projects = 0.0, [rng.choice(names) for _ in range(4)]
    shares = [1 / (place + 1) for place in range(MODELS)]
    while len(trace) < DAYS * A_DAY:
        if rng.random() < 0.002:  # another favourite
            rng.shuffle(names)
        at += rng.expovariate(1 / 240)
        project = rng.randrange(len(projects))
        if rng.random() < 0.3:
            projects[project] = rng.choices(names, shares)[0]
        for _ in range(1 + int(rng.expovariate(1 / 5))):  # pictures in a row
            trace.append((at, projects[project]))
            at += rng.expovariate(1 / 8)
    return sorted(trace)


def recorded(file: Path) -> Trace:
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        rows = database.execute("select created_at, model from sessions order by created_at").fetchall()
    at = [one if isinstance(one, float) else datetime.fromisoformat(one).timestamp() for one, _ in rows]
    return [(when, model) for when, (_, model) in zip(at, rows, strict=True)]


if __name__ == "__main__":
    main()
