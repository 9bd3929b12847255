"""Checkpoints in memory and on disk: the newest sound one is found, and none outlives its session."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from mezzotint import checkpoints
from mezzotint.checkpoints import Checkpoint, Checkpoints, fingerprint
from mezzotint.workers.wire import ModelRef
from tests.requests import request

pytestmark = pytest.mark.anyio

ID = "ses_1"


def one(step: int, index: int = 0, state: bytes | None = None) -> Checkpoint:
    state = state if state is not None else f"state after {step}".encode()
    return Checkpoint(index=index, step=step, print="p", dtype="float32", state=state)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def written(root: Path, *steps: int) -> Checkpoints:
    """A process that kept these, one after the other, each on disk, and has ended."""
    for step in steps:
        kept = Checkpoints(root)
        kept.keep(ID, one(step))
        kept.start()
        await kept.stop()
    return Checkpoints(root)


async def steps(kept: Checkpoints) -> list[int]:
    return [found.step for found in await kept.of(ID, [0])]


async def test_the_newest_is_found_in_memory_and_by_the_next_process(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        kept.keep(ID, one(step))
        kept.keep(ID, one(step + 5, index=4))
    assert [found.step for found in await kept.of(ID, [0, 1, 4])] == [3, 8]
    assert not names(tmp_path), "nothing is written before its time"
    kept.start()
    await kept.stop()
    assert await Checkpoints(tmp_path).of(ID, [0, 1, 4]) == [one(3), one(8, index=4)]


@pytest.mark.parametrize("spoil", ["cut", "flipped", "empty", "foreign", "head"])
async def test_in_place_of_a_spoilt_one_the_one_before_is_found(tmp_path: Path, spoil: str) -> None:
    kept = await written(tmp_path, 1, 2)
    assert await steps(kept) == [2]
    newest = tmp_path / ID / "0"
    data = newest.read_bytes()
    other = await written(tmp_path / "other", 9)
    assert await steps(other) == [9]
    newest.write_bytes(
        {
            "cut": data[:-1],
            "flipped": data[:-1] + b"X",
            "empty": b"",
            "foreign": data.replace(b"ses_1", b"ses_2"),
            "head": b"\xff" * 20,
        }[spoil]
    )
    assert await steps(kept) == [1]
    (tmp_path / ID / "0.before").unlink()
    assert await steps(kept) == []


async def test_a_settled_one_is_on_disk_and_out_of_memory(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.keep(ID, one(7))
    await kept.settle(ID)
    assert await steps(Checkpoints(tmp_path)) == [7]
    assert await steps(kept) == [7]
    await kept.settle("ses_unknown")


async def test_what_leaves_memory_meanwhile_is_settled_all_the_same(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, memory_bytes=10)
    for index in range(2):
        kept.keep(ID, one(5, index=index, state=b"x" * 8))
    kept.start()
    stopping = asyncio.create_task(kept.stop())  # writes, and lets go of what is over its memory
    await asyncio.sleep(0)
    await asyncio.gather(kept.settle(ID), stopping)
    assert [found.step for found in await Checkpoints(tmp_path).of(ID, range(2))] == [5, 5]
    assert not kept._kept


async def test_what_memory_does_not_hold_is_read_from_disk(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, memory_bytes=25)
    for index in range(4):
        kept.keep(ID, one(index, index=index, state=b"x" * 10))
    kept.start()
    await kept.stop()
    assert [found.step for found in await kept.of(ID, range(4))] == [0, 1, 2, 3]
    assert kept._bytes <= 25


async def test_a_state_that_is_too_large_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MAX_STATE_BYTES", 10)
    kept = Checkpoints(tmp_path)
    kept.keep(ID, one(1, state=b"x" * 11))
    assert await steps(kept) == []


async def test_nothing_is_left_of_a_session_that_ended(tmp_path: Path) -> None:
    kept = await written(tmp_path, 1, 2)
    kept.keep(ID, one(3))
    kept.keep("ses_2", one(1))
    kept.forget(ID)
    kept.start()
    await kept.stop()
    assert names(tmp_path) == ["ses_2"]
    assert await steps(kept) == []


async def test_a_start_tells_whose_are_left_and_removes_half_written_ones(tmp_path: Path) -> None:
    kept = await written(tmp_path, 1)
    (tmp_path / ID / ".0.tmp").write_bytes(b"half")
    assert await kept.sessions() == [ID]
    assert names(tmp_path / ID) == ["0"]
    assert await Checkpoints(tmp_path / "absent").sessions() == []


def test_a_fingerprint_tells_apart_what_may_not_go_on_from_another() -> None:
    model = ModelRef(id="m", kind="checkpoint", family="sd", path="/m", bytes=1, sha256="a")
    lora = ModelRef(id="l", kind="lora", family="sd", path="/l", bytes=1, sha256="b")
    same = fingerprint(request(), [model])
    assert same == fingerprint(request(), [msgspec.structs.replace(model, path="/moved", executor="openvino")])
    others = [
        fingerprint(request(seed=8), [model]),
        fingerprint(request(), [model, lora]),
        fingerprint(request(), [msgspec.structs.replace(model, sha256="c")]),
        fingerprint(request(), [msgspec.structs.replace(model, dtype="bfloat16")]),
    ]
    assert len({same, *others}) == 5
