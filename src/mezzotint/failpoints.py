"""Faults on purpose at named points, for tests of what happens when a process dies or a disk fails right there.

Inert unless MEZZOTINT_FAILPOINTS is set: `NAME=ACTION[@NTH]`, several by commas. The fault comes the NTH time (1) that
the process reaches the point. Actions: kill, stop, segv (signals to itself), raise, oom, enospc (errors), delay:MS.
"""

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from mezzotint.errors import BadSetting

VARIABLE = "MEZZOTINT_FAILPOINTS"
WORKERS = frozenset({
    "load.start", "load.mid", "encode", "step", "checkpoint.before_send", "decode", "pause.at_boundary",
    "ipc.mid_frame",
})  # fmt: skip
SPARES = frozenset({"spare.warming"})
SERVERS = frozenset({
    "checkpoint.before_write", "store.tmp_written", "store.renamed", "store.before_commit", "store.after_commit",
    "accept.before_commit", "accept.after_commit", "claim.after_commit", "cancel.before_update",
    "webhook.before_ack",
})  # fmt: skip


@dataclass(kw_only=True, slots=True)
class _Fault:
    happen: Callable[[], None]
    left: int  # times that the point is reached before


def reached(name: str) -> None:
    """What was asked for this point happens here, or nothing."""
    fault = _armed.get(name)
    if fault is None:
        return
    fault.left -= 1
    if fault.left == 0:
        fault.happen()


def is_armed(name: str) -> bool:
    return name in _armed


def handed_on(*, is_spare: bool) -> dict[str, str]:
    """For the environment of the first worker and of the first spare; those after them would meet the same again."""
    if is_spare in _served:
        return {}
    _served.add(is_spare)
    theirs = SPARES if is_spare else WORKERS
    kept = [one for one in _asked() if one.partition("=")[0] in theirs]
    return {VARIABLE: ",".join(kept)} if kept else {}


def _asked() -> list[str]:
    return [one.strip() for one in os.environ.get(VARIABLE, "").split(",") if one.strip()]


def _arm() -> dict[str, _Fault]:
    """Raises BadSetting for what it does not know."""
    found = {}
    for one in _asked():
        name, _, rest = one.partition("=")
        action, _, nth = rest.partition("@")
        verb, _, ms = action.partition(":")
        happen = _faults(float(ms) if ms.isdecimal() else 0.0).get(verb)
        if name not in WORKERS | SPARES | SERVERS or happen is None or not (nth or "1").isdecimal():
            raise BadSetting(f"{VARIABLE} cannot mean {one!r}; NAME=ACTION[@NTH], see mezzotint/failpoints.py")
        found[name] = _Fault(happen=happen, left=int(nth or 1))
    return found


def _faults(ms: float) -> dict[str, Callable[[], None]]:
    return {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "raise": lambda: _throw(RuntimeError("a failpoint")),
        "oom": lambda: _throw(MemoryError("a failpoint")),
        "enospc": lambda: _throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        "delay": lambda: time.sleep(ms / 1000),
    }


def _throw(error: Exception) -> None:
    raise error


_served: set[bool] = set()
_armed = _arm()
