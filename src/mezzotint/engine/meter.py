"""Measures the most memory that was in use during a call. Must not allocate any of its own."""

import contextlib
import ctypes
from pathlib import Path
from typing import Protocol

import torch


class Meter(Protocol):
    """One implementation for the host, one for CUDA."""

    def start(self, *, exactly: bool = False) -> int | None:
        """Forget earlier peaks; returns the bytes in use now. `exactly`: what was freed and kept for later is given
        back first, which makes the next call slower, so that it counts neither before nor after.
        """

    def peak(self) -> int | None:
        """Bytes in use at the highest point since `start`; None where the system does not tell."""


class HostMeter:
    """Resident memory of this process, by Linux's own high-water mark."""

    def __init__(self) -> None:
        self._reset, self._status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
        self._libc = ctypes.CDLL(None)

    def start(self, *, exactly: bool = False) -> int | None:
        if exactly and hasattr(self._libc, "malloc_trim"):
            self._libc.malloc_trim(0)
        with contextlib.suppress(OSError):  # else the mark counts from the start of the process: true, only less sharp
            self._reset.write_text("5")
        return self._line("VmRSS:")

    def peak(self) -> int | None:
        return self._line("VmHWM:")

    def _line(self, name: str) -> int | None:
        try:
            lines = self._status.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


class CudaMeter:
    """What torch's allocator had handed out on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, *, exactly: bool = False) -> int | None:
        torch.cuda.reset_peak_memory_stats(self._device)
        return int(torch.cuda.memory_allocated(self._device))

    def peak(self) -> int | None:
        return int(torch.cuda.max_memory_allocated(self._device))
