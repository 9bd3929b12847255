"""Which of several devices a waiting session goes to. Pure: it is handed how they stand. Must not claim."""

from collections.abc import Iterable
from dataclasses import dataclass

LOADING_IMAGES = 4  # what loading a model counts as, in images that are still to come


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A worker that has room, as it stands now."""

    device: str
    resident: tuple[str, ...]  # ids of models
    images: int  # still to come from it
    gflops: float | None  # in float32; None: not measured
    free_bytes: int  # of its weights' budget


def best(model_id: str, places: Iterable[Place]) -> Place:
    """Where it begins soonest: the fewest images before it, a load counting as some; then the faster, then the one with
    more room. `places` has one at least."""
    return min(places, key=lambda one: (_before(model_id, one), -(one.gflops or 0.0), -one.free_bytes, one.device))


def _before(model_id: str, place: Place) -> int:
    return place.images + (0 if model_id in place.resident else LOADING_IMAGES)
