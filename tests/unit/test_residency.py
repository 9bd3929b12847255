"""What is kept when room is short, and what is loaded ahead: what waits; what is used most of late."""

from dataclasses import dataclass
from typing import Any

import pytest

from mezzotint.engine.memory import Residents
from mezzotint.request import LoraUse
from mezzotint.residency import MOST_NAMES, Demand, needed
from mezzotint.workers.wire import ModelRef, Submit
from tests.requests import request

HOUR = 3600.0


@pytest.fixture
def demand() -> Demand:
    return Demand(half_life_s=HOUR)


def test_what_waits_is_needed_in_its_order_with_its_adapters() -> None:
    adapted = request(model="b", loras=(LoraUse(name="ink", scale=1.0),))
    assert needed([request(model="a"), adapted, request(model="a")]) == ("a", "b", "ink")
    assert len(needed(request(model=str(number)) for number in range(2 * MOST_NAMES))) == MOST_NAMES


def test_often_outweighs_last_until_it_is_long_ago(demand: Demand) -> None:
    for _ in range(8):
        demand.used("often", 0)
    demand.used("last", HOUR)  # counts one; the eight count four
    assert demand.order() == ["often", "last"]
    demand.used("last", 5 * HOUR)
    assert demand.order() == ["last", "often"]


def test_the_order_of_telling_does_not_matter() -> None:
    uses = [("a", 0.0), ("b", 3 * HOUR), ("a", 1e9), ("c", 1e9 - HOUR), ("c", 1e9 - HOUR), ("c", 1e9 - HOUR)]
    told, backwards = Demand(), Demand()
    for name, at in uses:
        told.used(name, at)
    for name, at in reversed(uses):
        backwards.used(name, at)
    assert told.order() == backwards.order() == ["c", "a", "b"]


def test_what_was_unloaded_is_not_wanted_before_its_next_use(demand: Demand) -> None:
    demand.used("a", 0)
    demand.used("b", 0)
    demand.forget("a")
    demand.forget("never seen")
    assert demand.order() == ["b"]
    demand.used("a", 1)
    assert demand.order() == ["a", "b"]


@dataclass
class Part:
    bytes: int = 100


def model(name: str) -> ModelRef:
    return ModelRef(id=name, kind="checkpoint", family="sd", path=name, bytes=100, sha256=name)


@pytest.fixture
def residents(monkeypatch: pytest.MonkeyPatch) -> Residents:
    """Room for three models of equal size."""
    monkeypatch.setattr("mezzotint.engine.memory.loaded_bytes", lambda path, dtype: 100)
    load: Any = lambda ref: Part()  # noqa: E731
    return Residents(load, budget_bytes=300)


def use(residents: Residents, name: str) -> None:
    submit = Submit(session_id="s", attempt=1, request=request(), model=model(name))
    for key in residents.missing(submit):
        residents.make_room(key, [submit])
        residents.put(key, residents.reader(key)(), [submit])
    residents.family(submit.model)


def test_without_a_word_the_least_recently_used_goes(residents: Residents) -> None:
    for name in ("a", "b", "c", "a", "d"):
        use(residents, name)
    assert set(residents.models) == {"a", "c", "d"}


def test_the_least_wanted_goes_first_and_what_is_not_named_before_it(residents: Residents) -> None:
    for name in ("a", "b", "c"):
        use(residents, name)
    residents.keep(["a", "b"])
    use(residents, "d")
    assert set(residents.models) == {"a", "b", "d"}
    residents.keep(["d", "a", "b"])
    use(residents, "e")
    assert set(residents.models) == {"a", "d", "e"}


def test_what_a_session_uses_stays_however_little_it_is_wanted(residents: Residents) -> None:
    for name in ("a", "b", "c"):
        use(residents, name)
    residents.keep(["a", "b", "c"])
    use(residents, "unwanted")
    assert "unwanted" in residents.models


def test_room_is_room_beside_what_is_loaded(residents: Residents) -> None:
    for name in ("a", "b"):
        use(residents, name)
    assert residents.fits(model("c"))
    use(residents, "c")
    assert not residents.fits(model("d"))
