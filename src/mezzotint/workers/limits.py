"""What every child process does first: it limits itself and binds its life to its parent's. Linux does most of it.

Must not start a thread before it has left the network: Linux takes it from the thread that asks and those it starts.
"""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

_CLONE_FILES = 0x400
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

UNTOUCHED_BYTES = 256 << 20  # reserved by torch and what it loads, thread stacks mostly, and never touched
MEMORY_SHARE = 0.7  # of what is free, for one child; the rest is for the API process and the page cache


def limit_myself(*, niceness: int = 0, memory_bytes: int | None = None) -> str:
    """Call before any import that takes memory and before any thread. `memory_bytes` bounds what the process may use.

    The system counts what is reserved, so it gets what libraries never touch and a third more: freed memory is kept for
    later, in pieces. Returns the network that is left: `none`, or `guarded` where Python refuses what uses it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes is not None:
        reserved = memory_bytes + memory_bytes // 3 + UNTOUCHED_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (reserved, reserved))
    os.nice(niceness)
    with contextlib.suppress(PermissionError):  # it leads a session: nothing to leave
        os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):  # for the API process alone to turn into a clean stop
        signal.signal(number, signal.SIG_IGN)
    network = "none" if sys.platform == "linux" and _leave_network() else "guarded"
    if network == "guarded":
        guard_network()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return network


def _leave_network() -> bool:
    """Into a network namespace of its own, which has none; whether the system allowed it.

    Who is not root needs a namespace of users for it, where it stays who it is. Sockets that are open stay open.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWNET) == 0:
        return True
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    told = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
    with contextlib.suppress(OSError):  # then it has no names for its ids, and still the rights
        for name, text in told.items():
            Path("/proc/self", name).write_text(text)
    return True


def guard_network() -> None:
    """From here on Python raises PermissionError for what would use a network. Compiled code is not held back."""

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"):
            refused = args[0].family in (socket.AF_INET, socket.AF_INET6)
        else:
            refused = event in ("socket.getaddrinfo", "socket.gethostbyname")
        if refused:
            raise PermissionError(f"{event}: this process has no network")

    sys.addaudithook(refuse)


def hold_pulse(pipe: int) -> None:
    """Have this end of a pipe closed the moment that the process is killed. Call right after `limit_myself`.

    The system closes what a process had open after it has taken back its memory, which takes a worker tens of
    milliseconds. Of a thread that has its files to itself they are closed with the thread, and all others may still be
    on their way. Where the system allows no such thread the pipe is closed with the rest.
    """
    held = threading.Event()
    is_alone = False

    def hold() -> None:
        nonlocal is_alone
        is_alone = sys.platform == "linux" and ctypes.CDLL(None).unshare(_CLONE_FILES) == 0
        held.set()
        if is_alone:
            os.closerange(0, pipe)
        threading.Event().wait()

    threading.Thread(target=hold, name="pulse", daemon=True).start()
    held.wait()
    if is_alone:
        os.close(pipe)


def memory_budget() -> int:
    """Bytes that a child may take: a share of what is free now."""
    return max(1 << 30, int(free_memory() * MEMORY_SHARE))


def free_memory() -> int:
    """Bytes on the machine and in this control group; pages of files count as free where the system can drop them."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        free = min(free, int((group / "memory.max").read_text()) - used)
    return free


def own_memory(pid: int) -> int:
    """Bytes that a process shares with no file; 0 for one that has ended."""
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(pid).memory_info()
        return found.rss - getattr(found, "shared", 0)
    return 0
