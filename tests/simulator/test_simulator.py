"""Histories by seed: the real dispatcher, supervisor, store and files in virtual time, and all that can go wrong.

SIMULATIONS=2000 plays so many; what fails is played again, told step by step, by
`python -m tests.simulator.run --seed N`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulator.run import play, template, workspace

SIMULATIONS = int(os.environ.get("SIMULATIONS", "16"))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with workspace() as found:
        template(found)
        yield found


def test_no_history_breaks_a_promise(folder: Path) -> None:
    broken = {seed: faults for seed in range(SIMULATIONS) if (faults := play(seed, folder)[0])}
    assert not broken


def test_a_seed_tells_the_same_history_each_time(folder: Path) -> None:
    assert play(5, folder)[1] == play(5, folder)[1]
