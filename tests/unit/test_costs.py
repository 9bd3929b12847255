"""Times and memory read off what was measured, between it, and drawn on from it."""

import msgspec
import pytest

from mezzotint.costs import Cost, Costs, read_off
from mezzotint.measurements import Point
from mezzotint.workers.wire import Work

STEP = Work(what="step", model="a", height=8, width=8, windows=1, rows=2)


def step(**changes: object) -> Work:
    return msgspec.structs.replace(STEP, **changes)


def costs(*points: tuple[Work, float], families: dict[str, tuple[str, int]] | None = None) -> Costs:
    known = {
        work: Point(work=work, recent_s=[value] * 3, calls=3, extra_bytes=int(value * 100)) for work, value in points
    }
    return Costs(known, families or {})


def test_what_was_measured_is_told_as_it_is() -> None:
    found = costs((STEP, 0.5), (step(height=16), 2.0))
    assert found.seconds(STEP) == Cost(0.5, True)
    assert found.extra_bytes(STEP) == Cost(50, True)
    assert found.seconds(step(height=16)) == Cost(2.0, True)


def test_between_two_numbers_of_rows_it_is_on_their_line_and_counts_as_measured() -> None:
    table = {64: {2: 1.0, 6: 3.0}}
    assert read_off(table, 64, 4) == Cost(2.0, True)
    assert read_off(table, 64, 8) == Cost(4.0, False)
    assert read_off(table, 64, 1) == Cost(0.5, False)
    assert read_off({64: {2: 1.0}}, 64, 4) == Cost(2.0, False)


def test_another_size_is_drawn_on_from_the_nearest_and_says_so() -> None:
    assert read_off({64: {2: 1.0}}, 256, 2) == Cost(4.0, False)
    between = read_off({64: {2: 1.0}, 1024: {2: 16.0}}, 256, 2)
    assert (round(between.value, 6), between.measured) == (4.0, False)
    steeper = read_off({64: {2: 1.0}, 128: {2: 4.0}}, 256, 2)
    assert steeper.value == pytest.approx(16.0)


def test_small_shapes_that_do_not_fill_the_device_promise_nothing_for_large_ones() -> None:
    flat = {64: {2: 1.0}, 128: {2: 1.0}}
    assert read_off(flat, 256, 2).value == pytest.approx(2.0), "at least in proportion"
    assert read_off(flat, 32, 2).value == pytest.approx(1.0)


def test_a_model_that_never_ran_is_drawn_on_from_its_family_by_size() -> None:
    families = {"a": ("sd", 100), "b": ("sd", 300), "c": ("sdxl", 100), "far": ("sd", 9000)}
    found = costs((STEP, 0.5), (step(model="far"), 80.0), families=families)
    assert found.seconds(step(model="b")) == Cost(1.5, False)
    assert found.seconds(step(model="c")) is None
    assert found.seconds(step(model="unheard of")) is None
    assert costs((STEP, 0.5)).seconds(step(model="b")) is None, "no family is nobody's family"


def test_models_of_which_too_little_is_known_are_not_drawn_on() -> None:
    begun = [step(model=name) for name in ("a", "b")]
    points = {work: Point(work=work, recent_s=[1.0], calls=1) for work in begun}
    found = Costs(points, {"a": ("sd", 100), "b": ("sd", 300)})
    assert [found.seconds(work) for work in begun] == [None, None]


def test_work_unlike_all_that_was_measured_has_no_cost() -> None:
    assert costs().seconds(STEP) is None
    found = costs((STEP, 0.5))
    for other in (
        step(nets=1),
        step(loras=True),
        step(executor="openvino"),
        step(dtype="bfloat16"),
        step(what="decode"),
    ):
        assert found.seconds(other) is None
    few = Costs({STEP: Point(work=STEP, recent_s=[1.0], calls=1)}, {})
    assert few.seconds(STEP) is None, "one call says too little"
    assert few.extra_bytes(STEP) is None


def test_a_text_of_another_length_counts_when_there_is_none_of_the_same() -> None:
    found = costs((step(windows=3), 3.0), (step(windows=5), 5.0))
    assert found.seconds(STEP) == Cost(3.0, True)


def test_the_cap_is_the_one_that_was_last_seen() -> None:
    points = {
        STEP: Point(work=STEP, cap=16, seen_at=1.0),
        step(rows=4): Point(work=step(rows=4), cap=4, seen_at=2.0),
    }
    assert Costs(points, {}).most_rows(step(rows=8)) == 4
    assert Costs(points, {}).most_rows(step(height=16)) is None
