"""Sets a training process up for this machine, whose GPU it takes if there is one. Knows no model.

`prepare` must be called before torch does any work.
"""

import functools
import os
import sys
import time

import torch

from mezzotint.engine.speed import gflops

_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "GOMP_SPINCOUNT": "20000",  # a thread that waits for another soon leaves the core to others
}


def prepare() -> None:
    """Start this program again, once, with a malloc that keeps its pages: a step then takes about half the time.

    Also steps back behind everything else on the machine. Does not return in the process that was started first.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not _ENVIRONMENT.items() <= os.environ.items():
        os.environ.update(_ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    os.nice(max(0, 19 - os.nice(0)))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose(*, cpu: int, gpu: int) -> int:
    """One of two numbers, by what this machine trains on."""
    return cpu if device().type == "cpu" else gpu


def autocast() -> torch.autocast:
    """Half the precision in the products, where the device is faster with it."""
    kind = device().type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or _gains_by_halves())


@functools.cache
def _gains_by_halves() -> bool:
    """Measured: some CPUs that say they know bfloat16 take three times as long with it."""
    cpu = torch.device("cpu")
    return gflops(cpu, torch.bfloat16) > gflops(cpu, torch.float32)


def generator(seed: int) -> torch.Generator:
    return torch.Generator(device()).manual_seed(seed)


class Stopwatch:
    """Seconds this process worked. A pause longer than `gap_s` between two looks (it was stopped) does not count."""

    def __init__(self, worked_s: float = 0.0, gap_s: float = 20.0) -> None:
        self.worked_s = worked_s
        self._gap_s = gap_s
        self._last = time.monotonic()

    def look(self) -> float:
        now = time.monotonic()
        since, self._last = now - self._last, now
        self.worked_s += since if since < self._gap_s else 0.0
        return self.worked_s


class Threads:
    """Chooses the number of threads by what a step takes: a core that others use too holds the rest up.

    Tries every number at first, then the quickest, and now and then another.
    """

    def __init__(self, most: int, steps: int = 12) -> None:
        self._took = dict.fromkeys(range(1, most + 1), 0.0)
        self._steps = steps
        self._step = 0
        self._since = time.monotonic()
        torch.set_num_threads(most)

    def step_done(self) -> None:
        self._step += 1
        if self._step % self._steps or device().type != "cpu":
            return
        now = time.monotonic()
        self._took[torch.get_num_threads()] = now - self._since
        self._since = now
        others = [count for count in self._took if count != torch.get_num_threads()]
        probe = others and self._step // self._steps % 6 == 0
        torch.set_num_threads(others[0] if probe else min(self._took, key=lambda count: self._took[count]))
