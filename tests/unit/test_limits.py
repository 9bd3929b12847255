from msgspec.structs import replace

from mezzotint.engine.limits import ENOUGH_CALLS, LOOK_AGAIN, TRY_AGAIN, Limits
from mezzotint.engine.trajectory import BatchKey
from mezzotint.workers.wire import Thing, Work

KEY = BatchKey(model="a", height=8, width=8, windows=1, alone="")


def after(*calls: tuple[int, float]) -> Limits:
    """Limits that saw each (rows, seconds of a call) often enough."""
    limits = Limits(16)
    for rows, seconds in calls:
        for _ in range(ENOUGH_CALLS):
            limits.measured(KEY, rows, seconds)
    return limits


def test_nothing_known_is_the_most() -> None:
    assert Limits(16).rows(KEY) == 16


def test_rows_that_get_cheaper_in_company_fill_the_call() -> None:
    assert after((2, 1.0), (8, 2.0)).rows(KEY) == 16


def test_rows_that_cost_the_same_in_company_do_not_wait_for_one_another() -> None:
    assert after((2, 1.0), (4, 1.96), (8, 4.0)).rows(KEY) == 2
    assert after((2, 1.2), (4, 2.2), (8, 4.2)).rows(KEY) == 6, "0.533 a row for 0.525"
    assert after((2, 1.0), (8, 5.0)).rows(KEY) == 2


def test_a_few_rows_more_are_not_left_behind() -> None:
    limits = after((2, 1.2), (4, 2.2), (8, 4.2))
    assert [limits.rows(KEY, waiting) for waiting in (2, 6, 7, 8, 9, 16)] == [6, 6, 7, 8, 6, 6]
    limits.exhausted(KEY, 14)
    assert limits.rows(KEY, 8) == 7, "memory holds no more"
    assert after((2, 1.0), (8, 5.0)).rows(KEY, 4) == 2


def test_a_machine_that_is_slower_by_now_says_nothing_of_rows() -> None:
    limits = after((2, 0.4), (8, 0.7), (16, 1.1))
    assert limits.rows(KEY) == 16
    for _ in range(100):
        limits.measured(KEY, 16, 2.2)
    limits.measured(KEY, 8, 1.4)
    assert limits.rows(KEY) >= 14
    for _ in range(100):
        for rows, seconds in ((2, 0.6), (8, 2.2), (16, 4.4)):  # but this does: what a row costs has changed
            limits.measured(KEY, rows, seconds)
    assert limits.rows(KEY) <= 8


def test_one_call_that_was_held_up_changes_nothing() -> None:
    limits = after((2, 0.4), (8, 0.7), (16, 1.1))
    limits.measured(KEY, 16, 30.0)
    for _ in range(ENOUGH_CALLS):
        limits.measured(KEY, 16, 1.1)
    assert limits.rows(KEY) == 16


def test_what_memory_did_not_hold_is_halved_and_remembered() -> None:
    limits = after((2, 1.0), (8, 2.0))
    limits.exhausted(KEY, 12)
    assert limits.rows(KEY) == 6
    limits.exhausted(KEY, 6)
    limits.exhausted(KEY, 16)
    assert limits.rows(KEY) == 3
    limits.exhausted(KEY, 1)
    assert limits.rows(KEY) == 1


def test_an_image_that_memory_held_at_last_may_have_company_again() -> None:
    """One is never split: it waited until a neighbour had ended."""
    limits = Limits(16)
    limits.exhausted(KEY, 2)
    assert limits.rows(KEY) == 1
    limits.measured(KEY, 2, 1.0)
    assert limits.rows(KEY) == 16
    limits.exhausted(KEY, 4)
    limits.measured(KEY, 2, 1.0)
    assert limits.rows(KEY) == 2


def calls_until_tried_again(limits: Limits) -> int:
    for calls in range(10 * TRY_AGAIN):
        if limits.cap(KEY) > 6:
            return calls
        limits.measured(KEY, 2, 1.0)
    raise AssertionError("never")


def test_rows_that_memory_did_not_hold_are_tried_again_later_and_later() -> None:
    limits = Limits(16)
    for expected in (TRY_AGAIN, 2 * TRY_AGAIN, 4 * TRY_AGAIN):
        limits.exhausted(KEY, 16)
        limits.exhausted(KEY, 12)
        assert calls_until_tried_again(limits) == expected
    limits.exhausted(KEY, 12)
    limits.measured(KEY, 12, 1.0)  # it went well in the end: from here on as at first
    limits.exhausted(KEY, 12)
    assert calls_until_tried_again(limits) == TRY_AGAIN


def test_what_an_earlier_worker_had_no_memory_for_is_not_tried_at_once() -> None:
    def thing(rows: int, seconds: float | None, calls: int, *, held: bool) -> Thing:
        work = Work(what="step", model="a", height=8, width=8, windows=1, rows=rows)
        return Thing(work=work, seconds=seconds, calls=calls, held=held, has_memory=True)

    limits = Limits(16)
    limits.know((thing(12, None, 0, held=False), thing(2, 1.0, 5 * TRY_AGAIN, held=True)))
    assert calls_until_tried_again(limits) == TRY_AGAIN


def test_the_cap_that_is_told_is_not_the_one_that_is_tried_now_and_then() -> None:
    limits = after((2, 1.0), (8, 4.0))
    caps = set()
    for _ in range(2 * LOOK_AGAIN):
        caps.add(limits.cap(KEY))
        limits.measured(KEY, 2, 1.0)
    assert caps == {2}


def test_a_shape_says_nothing_of_another() -> None:
    limits = after((2, 1.0), (8, 4.0))
    assert limits.rows(replace(KEY, height=16)) == 16
    assert limits.rows(replace(KEY, alone="x")) == 2


def test_now_and_then_a_larger_call_is_tried_again() -> None:
    limits = after((2, 1.0), (8, 4.0))
    seen = []
    for _ in range(2 * LOOK_AGAIN):
        seen.append(limits.rows(KEY))
        limits.measured(KEY, 2, 1.0)
    assert seen.count(16) == 2
    assert set(seen) == {2, 16}


def test_the_slow_first_call_of_a_shape_is_forgotten() -> None:
    limits = after((2, 1.0))
    for seconds in (50.0, *[2.0] * ENOUGH_CALLS):
        limits.measured(KEY, 8, seconds)
    assert limits.rows(KEY) == 16


def test_times_that_no_line_fits_break_nothing() -> None:
    """Two rows timed while the machine was half as fast, so that many would cost less than nothing."""

    def thing(rows: int, seconds: float, calls: int) -> Thing:
        work = Work(what="step", model="a", height=8, width=8, windows=1, rows=rows)
        return Thing(work=work, seconds=seconds, calls=calls, held=True, has_memory=True)

    limits = Limits(16)
    limits.know((thing(2, 4.2, 200), thing(3, 3.1, 200), thing(16, 32.2, 3)))
    assert limits.rows(KEY) == 16
    limits.measured(KEY, 16, 32.2)
