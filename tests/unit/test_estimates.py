"""A forecast runs sessions down as the dispatcher admits them and the engine makes its calls."""

import msgspec
import pytest

from mezzotint.costs import Costs
from mezzotint.estimates import Share, forecast
from mezzotint.measurements import Point
from mezzotint.workers.wire import Work

STEP = Work(what="step", model="a", height=8, width=8, windows=1, rows=2)


def costs(seconds: dict[int, float], cap: int = 16) -> Costs:
    """By rows of a call."""
    works = {rows: msgspec.structs.replace(STEP, rows=rows) for rows in seconds}
    points = {
        works[rows]: Point(work=works[rows], recent_s=[one] * 3, calls=3, cap=cap) for rows, one in seconds.items()
    }
    return Costs(points, {})


FLAT = costs({2: 1.0, 16: 1.0})  # a call takes a second, whatever is in it


def share(images: int = 1, calls: float = 10.0, **rest: object) -> Share:
    return Share(work=STEP, images=images, calls_left=calls, after_s=0.0, **rest)  # type: ignore[arg-type]


def test_a_session_that_the_dispatcher_lets_in_beyond_the_room_is_not_forecast_to_wait() -> None:
    beside = share(images=3, calls=100)
    assert forecast(share(images=4), [beside], [], 4, FLAT) == (0.0, 10.0)
    assert forecast(share(images=4), [beside, share()], [], 4, FLAT) == (10.0, 10.0), "four are inside"


def test_one_that_overtakes_is_let_in_and_its_steps_go_first() -> None:
    full = [share(images=8, calls=100) for _ in range(2)]
    assert forecast(share(images=8), full, [], 16, FLAT) == (200.0, 10.0)
    assert forecast(share(images=8, priority=9), full, [], 16, FLAT) == (0.0, 10.0)


def test_an_image_with_guidance_is_not_forecast_in_halves_where_a_call_has_one_row() -> None:
    assert forecast(share(), [], [], 16, costs({2: 1.0}, cap=1)) == (0.0, 10.0)
    three = costs({2: 1.0, 4: 1.0}, cap=3)
    assert forecast(share(images=2), [], [], 16, three) == (0.0, 20.0), "the third row is nobody's"


def test_deterministic_images_are_forecast_alone_in_their_calls() -> None:
    assert forecast(share(images=4, is_alone=True), [], [], 16, FLAT) == (0.0, 40.0)
    assert forecast(share(), [share(images=3, is_alone=True)], [], 16, FLAT) == (0.0, 40.0)
    two = [share(is_alone=True), share(is_alone=True)]
    assert forecast(share(is_alone=True), two, [], 16, FLAT) == (0.0, 30.0)


@pytest.mark.parametrize("images", [1, 4])
def test_what_shares_its_calls_takes_no_longer_for_it(images: int) -> None:
    assert forecast(share(images=images), [share()], [], 16, FLAT) == (0.0, 10.0)
