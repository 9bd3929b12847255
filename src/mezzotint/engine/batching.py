"""Which trajectories share the next model call. Pure: no tensors are touched, nothing is remembered here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mezzotint.engine.trajectory import BatchKey, Trajectory

PATIENCE_S = 60.0  # that others may go before a trajectory, all in all


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    key: BatchKey
    trajectories: tuple[Trajectory, ...]


def pick_batch(
    running: Sequence[Trajectory], served: Mapping[BatchKey, int], limit: Callable[[BatchKey, int], int]
) -> Batch | None:
    """The next call: the key served longest ago (`served`: key -> number of the call that served it last), and of its
    trajectories those that others went before for long, then those with the highest priority, then the least work left,
    less what they have waited.

    Fills up to `limit(key, rows that wait)` rows, at least one trajectory. None when nothing denoises.
    """
    waiting = [trajectory for trajectory in running if not trajectory.sampler.done]
    if not waiting:
        return None
    keys = dict.fromkeys(trajectory.key for trajectory in waiting)  # in order of arrival
    key = min(keys, key=lambda candidate: served.get(candidate, -1))
    members = [trajectory for trajectory in waiting if trajectory.key == key]
    members.sort(key=lambda one: (one.waited_s <= PATIENCE_S, -one.priority, one.remaining - one.waited))
    max_rows = limit(key, sum(one.rows for one in members))
    chosen: list[Trajectory] = []
    rows = 0
    for trajectory in members:
        if chosen and rows + trajectory.rows > max_rows:
            break
        chosen.append(trajectory)
        rows += trajectory.rows
    return Batch(key=key, trajectories=tuple(chosen))
