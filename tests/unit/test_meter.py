import os

import pytest
import torch

from mezzotint.engine import meter
from mezzotint.engine.meter import CudaMeter, HostMeter


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


def test_on_a_gpu_what_the_allocator_keeps_for_later_counts_as_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for torch's allocator, of which there may be none here."""
    kept = {"now": 300, "most": 300}
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: kept.update(now=200))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: kept.update(most=kept["now"]))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: kept["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: kept["most"])
    gpu = CudaMeter(torch.device("cuda:0"))
    assert gpu.start() is None
    assert gpu.peak() == 300
    assert gpu.start(exactly=True) == 200  # only then is it given back, since the next call is slower for it
    kept["most"] = 900
    assert gpu.peak() == 900
