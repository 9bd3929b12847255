"""What workers measured: medians, bounds, and that it outlives the process that learned it."""

from pathlib import Path

import msgspec
import pytest
import structlog

from mezzotint import measurements
from mezzotint.measurements import Measurements
from mezzotint.workers import wire

STEP = wire.Work(what="step", model="a", height=8, width=8, windows=1, rows=2)


def measured(work: wire.Work = STEP, seconds: float | None = 1.0, **more: object) -> wire.Measured:
    return msgspec.convert({"work": msgspec.to_builtins(work), "seconds": seconds, **more}, wire.Measured)


def learned(cache: Path, *told: wire.Measured, keep: bool = True) -> Measurements:
    found = Measurements(cache, 2, keep=keep)
    for one in told:
        found.take("cpu:0", one)
    return found


def test_one_slow_call_changes_nothing(tmp_path: Path) -> None:
    found = learned(tmp_path, *(measured(seconds=seconds) for seconds in (1.0, 1.1, 60.0, 1.2, 1.1)))
    assert found.of("cpu:0")[STEP].seconds == 1.1
    assert found.of("cuda:0") == {}


def test_only_recent_times_count(tmp_path: Path) -> None:
    found = learned(tmp_path, *[measured(seconds=1.0)] * 40, *[measured(seconds=3.0)] * measurements.RECENT)
    point = found.of("cpu:0")[STEP]
    assert (point.seconds, point.calls, len(point.recent_s)) == (3.0, 40 + measurements.RECENT, measurements.RECENT)


def test_what_was_learned_outlives_the_process_and_goes_to_the_next_worker(tmp_path: Path) -> None:
    full = msgspec.structs.replace(STEP, rows=16)
    learned(
        tmp_path, measured(), measured(extra_bytes=7), measured(extra_bytes=5), measured(full, None, held=False)
    ).close()
    known = Measurements(tmp_path, 2, keep=True).known("cpu:0")
    assert known.things == (
        wire.Thing(work=STEP, seconds=1.0, calls=3, held=True, has_memory=True),
        wire.Thing(work=full, seconds=None, calls=0, held=False, has_memory=False),
    )
    assert Measurements(tmp_path, 2, keep=True).of("cpu:0")[STEP].extra_bytes == 7
    assert Measurements(tmp_path, 3, keep=True).of("cpu:0") == {}, "with other threads other times hold"


def test_measurements_are_written_only_where_they_are_to_be_kept(tmp_path: Path) -> None:
    learned(tmp_path, measured(), keep=False).close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"device": 1}', b"\xff\xfe"])
def test_a_spoilt_file_is_left_out_with_a_warning_and_replaced(tmp_path: Path, content: bytes) -> None:
    found = learned(tmp_path)
    file = found.file("cpu:0")
    file.parent.mkdir()
    file.write_bytes(content)
    with structlog.testing.capture_logs() as logs:
        found.take("cpu:0", measured())
    assert [line["log_level"] for line in logs] == ["warning"]
    assert str(file) in logs[0]["file"]
    found.close()
    assert STEP in Measurements(tmp_path, 2, keep=True).of("cpu:0")
    assert [path.name for path in file.parent.iterdir()] == [file.name], "no draft is left"


def test_of_more_kinds_of_work_than_are_kept_the_oldest_go(tmp_path: Path) -> None:
    works = [msgspec.structs.replace(STEP, rows=rows) for rows in range(measurements.MAX_POINTS + 2)]
    found = learned(tmp_path, *map(measured, works))
    assert list(found.of("cpu:0")) == works[2:]
