"""Starts the child processes of the API process and ends them. Must not know what they are for or what they say."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Mapping

Process = asyncio.subprocess.Process
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_READ_AHEAD_BYTES = 1 << 20
LONGEST_LINE = 8 << 10
_DRAIN_S = 0.001  # between two looks at whether all is read that a dead child had sent


def environment(kept: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Of our own environment what is named, and what is given beside it. Nothing else of ours: it may hold secrets."""
    return {name: os.environ[name] for name in kept if name in os.environ} | dict(given)


async def start(module: str, *arguments: str, env: Mapping[str, str], pass_fds: tuple[int, ...] = ()) -> Process:
    """Run a module of ours in a process of its own, stderr piped. Raises OSError. Call from the main thread: a child
    that dies with its parent dies with the thread that made it."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # never import from the current folder
        "-m",
        module,
        *arguments,
        pass_fds=pass_fds,
        env=dict(env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        # Not in a session of its own: Linux shares a CPU evenly between sessions, whatever the niceness of their
        # processes (sched(7), autogroup). It leaves the terminal's process group itself: workers/limits.py.
    )


async def start_connected(
    module: str, *arguments: str, env: Mapping[str, str], has_pulse: bool = False
) -> tuple[Process, Streams]:
    """The same, on a socketpair whose other end the child finds as `--fd`. Raises OSError; then nothing is left.

    With a pulse it also finds `--pulse`, a pipe that it must hold as workers/limits.py does: the streams then end as
    soon as the child is killed, not when the system has taken all of its memory back.
    """
    with contextlib.ExitStack() as handed, contextlib.ExitStack() as kept:  # closed in the end; closed on failure
        ours, theirs = socket.socketpair()
        kept.callback(ours.close)
        handed.callback(theirs.close)
        given = {"--fd": theirs.fileno()}
        if has_pulse:
            pulse, given["--pulse"] = os.pipe()
            kept.callback(os.close, pulse)
            handed.callback(os.close, given["--pulse"])
        reader, writer = await asyncio.open_connection(sock=ours, limit=_READ_AHEAD_BYTES)
        kept.callback(writer.close)
        told = [text for name, descriptor in given.items() for text in (name, str(descriptor))]
        process = await start(module, *told, *arguments, env=env, pass_fds=tuple(given.values()))
        kept.pop_all()
        if has_pulse:
            _end_with(pulse, writer.transport)
    return process, (reader, writer)


def _end_with(pulse: int, transport: asyncio.WriteTransport) -> None:
    """Once nobody holds the other end of the pipe: read what was sent before, then nothing more."""
    loop = asyncio.get_running_loop()
    unread = select.poll()
    unread.register(transport.get_extra_info("socket"), select.POLLIN)

    def drain() -> None:
        if not transport.is_closing() and unread.poll(0):
            loop.call_later(_DRAIN_S, drain)
        else:
            transport.abort()

    def missed() -> None:
        loop.remove_reader(pulse)
        os.close(pulse)
        drain()

    loop.add_reader(pulse, missed)


def kill(process: Process) -> None:
    """SIGKILL, if it has not ended yet."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)  # Popen's own would reap it behind the loop's back


async def each_line(process: Process, told: Callable[[str], None]) -> None:
    """What it writes to stderr, line by line, until it has ended. Of a line only the first `LONGEST_LINE` bytes.

    The rest is read and dropped, or the child would wait for a reader, and its end for the pipe's.
    """
    assert process.stderr is not None  # noqa: S101  invariant: start asked for the pipe
    begun = b""
    while block := await process.stderr.read(LONGEST_LINE):
        *lines, rest = block.split(b"\n")
        for line in lines:
            told((begun + line)[:LONGEST_LINE].decode(errors="replace").rstrip())
            begun = b""
        begun = (begun + rest)[:LONGEST_LINE]
    if begun:
        told(begun.decode(errors="replace").rstrip())


def exit_text(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exited with {code}"
