"""What is heard of a child process that is killed. `held` is the child."""

import asyncio
import ctypes
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mezzotint import children
from tests.process.held import HELD_S

SIZE = 100_000
CLONE_FILES = 0x400  # unshare(2)
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no thread has its files to itself"),
]


def may_have_files_to_itself() -> bool:
    """Whether the system lets a thread: a container may forbid it."""
    with ThreadPoolExecutor(1) as pool:
        return bool(pool.submit(ctypes.CDLL(None).unshare, CLONE_FILES).result() == 0)


def tables_of_files(pid: int) -> set[frozenset[str]]:
    """What the threads of a process have open, each set once."""
    return {frozenset(os.listdir(task / "fd")) for task in Path(f"/proc/{pid}/task").iterdir()}


async def test_a_killed_child_is_noticed_before_the_system_has_closed_its_connection() -> None:
    root = Path(__file__).parents[2]
    env = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    process, (reader, writer) = await children.start_connected("tests.process.held", str(SIZE), env=env, has_pulse=True)
    transport = writer.transport
    assert isinstance(transport, asyncio.Transport)
    assert process.stderr is not None
    transport.pause_reading()
    writer.write(b"x")
    assert await process.stderr.readline() == b"sent\n"
    assert len(tables_of_files(process.pid)) == 1 + may_have_files_to_itself(), "one thread has its files to itself"
    began = time.monotonic()
    children.kill(process)
    await asyncio.sleep(0.2)
    transport.resume_reading()
    assert await reader.read() == bytes(SIZE), "what it sent before is read"
    assert time.monotonic() - began < HELD_S, "its connection is open all the while"
    writer.close()
    assert await process.wait() == -9


async def test_a_line_without_end_is_told_cut_and_holds_nobody_up() -> None:
    long = (
        "import sys; print('x' * 300_000, file=sys.stderr); print('after it', file=sys.stderr); sys.stderr.write('y')"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", long, stderr=asyncio.subprocess.PIPE)
    told: list[str] = []
    async with asyncio.timeout(20):
        await children.each_line(process, told.append)
        assert await process.wait() == 0
    assert told == ["x" * children.LONGEST_LINE, "after it", "y"]
