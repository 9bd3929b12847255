import torch

from mezzotint.engine.meter import HostMeter


def test_a_peak_is_that_of_the_call_and_is_forgotten_by_the_next() -> None:
    meter = HostMeter()
    meter.start()
    before = meter.peak()
    torch.ones(32 << 20)  # 128 MiB, let go at once
    high = meter.peak()
    meter.start()
    after = meter.peak()
    assert before is not None
    assert high is not None
    assert after is not None
    assert high - before > 100 << 20
    assert high - after > 100 << 20
