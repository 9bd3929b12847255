import os

import pytest
import torch

from mezzotint.engine import meter
from mezzotint.engine.meter import HostMeter


def test_a_peak_is_that_of_the_call_and_is_forgotten_by_the_next() -> None:
    host = HostMeter()
    host.start()
    before = host.peak()
    torch.ones(32 << 20)  # 128 MiB, let go at once
    high = host.peak()
    host.start()
    after = host.peak()
    assert before is not None
    assert high is not None
    assert after is not None
    assert high - before > 100 << 20
    assert high - after > 100 << 20


def test_a_peak_below_that_of_the_program_before_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way knows one mark for both: what ran here before this program, and this program."""
    program = HostMeter()
    monkeypatch.setattr(meter, "_most", lambda: 1 << 50)
    behind_a_larger_one = HostMeter()
    monkeypatch.undo()
    told, expected = behind_a_larger_one.peak(), program.peak()
    assert told is not None
    assert expected is not None
    assert abs(told - expected) < 8 << 20


def test_where_the_mark_cannot_be_reset_it_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "pwrite", refused)
    host = HostMeter()
    host.start()
    assert (host.peak() or 0) > 0
