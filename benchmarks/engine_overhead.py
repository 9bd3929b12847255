"""What the step loop costs beside its model calls, in one process, on the bundled model.

Run it by `python -m benchmarks.engine_overhead`.
Overhead is the time of `Engine.step` less the time inside the family, over the steps in which nobody joins or leaves.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from mezzotint.catalog import BUNDLED, BUNDLED_MODEL
from mezzotint.config import load_settings
from mezzotint.engine.engine import Engine
from mezzotint.engine.meter import HostMeter
from mezzotint.families import products
from mezzotint.families.sd import StableDiffusion
from mezzotint.resolving import World, resolve
from mezzotint.schema import parse
from mezzotint.workers import wire

RUNS, STEPS = 5, 30


class Timed:
    """The family, with the time spent in its calls."""

    def __init__(self, family: StableDiffusion) -> None:
        self._family, self.inside = family, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def predict(self, rows: Any) -> torch.Tensor:
        started = time.perf_counter()
        output = self._family.predict(rows)
        self.inside += time.perf_counter() - started
        return output


def main() -> None:
    products.choose()
    torch.set_grad_enabled(False)
    path = BUNDLED / BUNDLED_MODEL
    family = StableDiffusion(path, torch.device("cpu"), torch.float32)
    print(f"{machine.describe()}, seed 1, {STEPS} steps, median of {RUNS}")
    result = {}
    for images in (1, 4, 8):
        found = [_run(family, path, images) for _ in range(RUNS)]
        step_ms = statistics.median(whole for whole, _ in found) / STEPS * 1000
        share = statistics.median((whole - inside) / whole for whole, inside in found)
        print(f"{images} at once: {step_ms:7.1f} ms a step, of which {100 * share:4.2f} % is not the model")
        result[str(images)] = {"step_ms": step_ms, "overhead": share}
    machine.keep("engine_overhead", {"overhead": result})


def _run(family: StableDiffusion, path: Path, images: int) -> tuple[float, float]:
    """Seconds of the steps, and of the model calls within them."""
    timed = Timed(family)
    ref = wire.ModelRef(id="icons", kind="checkpoint", family="sd", path=str(path), bytes=1, sha256="0")
    engine = Engine(lambda _: timed, lambda *_: (b"", b""), time.perf_counter, meter=HostMeter(), budget_bytes=1 << 30)  # type: ignore[arg-type,return-value]
    for seed in range(images):
        engine.submit(wire.Submit(session_id=str(seed), attempt=1, request=request_of(seed, STEPS + 40), model=ref))
    for _ in range(2 * images + 3):  # until all have joined
        engine.step()
    timed.inside, started = 0.0, time.perf_counter()
    for _ in range(STEPS):
        engine.step()
    return time.perf_counter() - started, timed.inside


def request_of(seed: int, steps: int) -> Any:
    from mezzotint.catalog import Catalog

    settings = load_settings()
    catalog = Catalog((), settings.cache)
    catalog.scan()
    world = World(models=catalog.models, default_model=BUNDLED_MODEL, devices=frozenset(), max_pixels=1 << 20)
    sent, faults = parse({"prompt": "a rocket", "steps": steps, "seed": seed})
    return resolve(sent, faults, {}, world, lambda: seed).request


if __name__ == "__main__":
    main()
