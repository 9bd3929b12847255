"""Measures the most memory that was in use during a call. Must not allocate any of its own."""

import contextlib
import ctypes
import functools
import os
import resource
from typing import Protocol

import torch

_STATUS_BYTES = 8192  # more than it has


class Meter(Protocol):
    """One implementation for the host, one for CUDA."""

    def start(self, *, exactly: bool = False) -> int | None:
        """Forget earlier peaks. `exactly`: what was freed and kept for later is given back first, which makes the next
        call slower, so that it counts neither before nor after; returns the bytes in use then.
        """

    def peak(self) -> int | None:
        """Bytes in use at the highest point since `start`; None where the system does not tell."""


class HostMeter:
    """Resident memory of this process, by Linux's own high-water mark. It is asked around every step."""

    def __init__(self) -> None:
        self._reset, self._status = _opened("clear_refs", os.O_WRONLY), _opened("status", os.O_RDONLY)
        self._libc = ctypes.CDLL(None)
        self.start()
        self._earlier = _most()  # it may be that of the process whose program this one replaced

    def start(self, *, exactly: bool = False) -> int | None:
        if exactly and hasattr(self._libc, "malloc_trim"):
            self._libc.malloc_trim(0)
        if self._reset is not None:
            with contextlib.suppress(OSError):  # else the mark counts from the process's start: true, only less sharp
                os.pwrite(self._reset, b"5", 0)
        return self._line(b"VmRSS:") if exactly else None

    def peak(self) -> int | None:
        """The mark is in `status`, too, among much that takes the kernel twenty times as long to tell."""
        most = _most()
        return most if self._status is not None and most > self._earlier else self._line(b"VmHWM:")

    def _line(self, name: bytes) -> int | None:
        if self._status is None:
            return None
        _, found, rest = os.pread(self._status, _STATUS_BYTES, 0).partition(name)
        return int(rest.split(maxsplit=1)[0]) * 1024 if found else None


def _most() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def _opened(name: str, flags: int) -> int | None:
    """A file of this process's own, open for as long as it lives."""
    try:
        return os.open(f"/proc/self/{name}", flags | os.O_CLOEXEC)
    except OSError:
        return None


class CudaMeter:
    """What torch's allocator has taken of one device, pieces that it keeps for later counted: nobody else can use them,
    and its limit counts them too."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, *, exactly: bool = False) -> int | None:
        if exactly:
            torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        return int(torch.cuda.memory_reserved(self._device)) if exactly else None

    def peak(self) -> int | None:
        return int(torch.cuda.max_memory_reserved(self._device))
