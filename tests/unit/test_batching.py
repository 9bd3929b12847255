from types import SimpleNamespace
from typing import Any

from mezzotint.engine.batching import pick_batch
from mezzotint.engine.trajectory import BatchKey

WIDE = BatchKey(model="a", height=8, width=16, windows=1, alone="")
TALL = BatchKey(model="a", height=16, width=8, windows=1, alone="")


def trajectory(key: BatchKey = WIDE, *, rows: int = 2, remaining: int = 10, **others: Any) -> Any:
    facts = {"waited": 0, "waited_s": 0.0, "priority": 5} | others
    return SimpleNamespace(
        key=key, rows=rows, remaining=remaining, sampler=SimpleNamespace(done=not remaining), **facts
    )


def picked(running: list[Any], served: dict[BatchKey, int] | None = None, max_rows: int = 8) -> list[int]:
    batch = pick_batch(running, served or {}, lambda key, waiting: max_rows)
    numbers = {id(one): number for number, one in enumerate(running)}
    return [] if batch is None else [numbers[id(one)] for one in batch.trajectories]


def test_nothing_denoises_nothing_is_picked() -> None:
    assert picked([]) == []
    assert picked([trajectory(remaining=0)]) == []


def test_equal_keys_share_up_to_the_cap_of_rows() -> None:
    assert picked([trajectory() for _ in range(6)]) == [0, 1, 2, 3]
    assert picked([trajectory(rows=1) for _ in range(9)]) == list(range(8))


def test_one_trajectory_is_picked_even_over_the_cap() -> None:
    assert picked([trajectory(rows=2)], max_rows=1) == [0]


def test_different_keys_never_share_and_take_turns() -> None:
    running = [trajectory(WIDE), trajectory(TALL), trajectory(WIDE)]
    assert picked(running) == [0, 2]
    assert picked(running, {WIDE: 1}) == [1]
    assert picked(running, {WIDE: 1, TALL: 2}) == [0, 2]


def test_the_shortest_goes_first_when_not_all_fit() -> None:
    running = [trajectory(remaining=50), trajectory(remaining=5), trajectory(remaining=20)]
    assert picked(running, max_rows=4) == [1, 2]


def test_waiting_makes_a_long_one_short() -> None:
    running = [trajectory(remaining=50, waited=46), trajectory(remaining=5)]
    assert picked(running, max_rows=2) == [0]


def test_nobody_is_passed_for_more_than_a_minute() -> None:
    running = [trajectory(priority=0, waited_s=61.0), trajectory(priority=9)]
    assert picked(running, max_rows=2) == [0]
    assert picked([trajectory(priority=0, waited_s=59.0), trajectory(priority=9)], max_rows=2) == [1]


def test_priority_goes_before_length() -> None:
    running = [trajectory(remaining=5), trajectory(remaining=50, priority=9)]
    assert picked(running, max_rows=2) == [1]


def test_the_cap_is_asked_for_with_the_rows_that_wait_for_that_key() -> None:
    asked = []

    def limit(key: BatchKey, waiting: int) -> int:
        asked.append((key, waiting))
        return 8

    pick_batch([trajectory(), trajectory(rows=1), trajectory(TALL), trajectory(remaining=0)], {}, limit)
    assert asked == [(WIDE, 3)]
