"""How fast a device multiplies: a short measurement of what nearly all of a model's work is. Must not load a model."""

import time

import torch

SIDE = {"cpu": 768, "cuda": 4096}  # of the square matrices: large enough that starting the work costs nothing
ENOUGH_S = 0.15


def gflops(device: torch.device, dtype: torch.dtype) -> float:
    """1e9 floating-point operations a second, the best of some products. Blocks for a fraction of a second.

    Raises RuntimeError when the device does not multiply in this dtype.
    """
    side = SIDE[device.type]
    left = torch.ones(side, side, device=device, dtype=dtype)
    best, started = float("inf"), time.perf_counter()
    (left @ left).sum().item()  # the first chooses the way
    while best == float("inf") or time.perf_counter() - started < ENOUGH_S:
        before = time.perf_counter()
        product = left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - before)
    del product
    return 2 * side**3 / best / 1e9
