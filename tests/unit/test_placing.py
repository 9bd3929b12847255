"""Where a session begins soonest: a model that is there counts, so does what a device has to do, then its speed."""

from typing import Any

import pytest

from mezzotint.placing import Place, best


def place(device: str, **changes: Any) -> Place:
    return Place(**{"device": device, "resident": (), "images": 0, "gflops": None, "free_bytes": 0, **changes})


@pytest.mark.parametrize(
    ("first", "second", "wins"),
    [
        ({"resident": ("m",)}, {}, "cuda:0"),
        ({"resident": ("m",), "images": 3}, {}, "cuda:0"),
        ({"resident": ("m",), "images": 5}, {}, "cuda:1"),
        ({"images": 1}, {}, "cuda:1"),
        ({"gflops": 10.0}, {"gflops": 90.0}, "cuda:1"),
        ({"gflops": 10.0}, {}, "cuda:0"),
        ({"free_bytes": 1}, {"free_bytes": 2}, "cuda:1"),
        ({}, {}, "cuda:0"),
    ],
)
def test_the_place_with_the_model_wins_then_the_idlest_then_the_fastest(
    first: dict[str, Any], second: dict[str, Any], wins: str
) -> None:
    places = [place("cuda:0", **first), place("cuda:1", **second)]
    assert best("m", places).device == wins
    assert best("m", reversed(places)).device == wins
