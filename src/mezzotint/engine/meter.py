"""Measures the most memory that was in use during a call. Must not allocate any of its own."""

from pathlib import Path
from typing import Protocol

import torch


class Meter(Protocol):
    """One implementation for the host, one for CUDA."""

    def start(self) -> None:
        """Forget earlier peaks."""

    def peak(self) -> int | None:
        """Bytes in use at the highest point since `start`; None where the system does not tell."""


class HostMeter:
    """Resident memory of this process, by Linux's own high-water mark."""

    def __init__(self) -> None:
        self._reset, self._status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def start(self) -> None:
        try:
            self._reset.write_text("5")
        except OSError:
            return  # the mark then counts from the start of the process: still true, only less sharp

    def peak(self) -> int | None:
        try:
            lines = self._status.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


class CudaMeter:
    """What torch's allocator had handed out on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int | None:
        return int(torch.cuda.max_memory_allocated(self._device))
