"""What is heard of a child process that is killed. `held` is the child."""

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from mezzotint import children
from tests.process.held import HELD_S

SIZE = 100_000
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no thread has its files to itself"),
]


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
    began = time.monotonic()
    children.kill(process)
    await asyncio.sleep(0.2)
    transport.resume_reading()
    assert await reader.read() == bytes(SIZE), "what it sent before is read"
    assert time.monotonic() - began < HELD_S, "its connection is open all the while"
    writer.close()
    assert await process.wait() == -9
