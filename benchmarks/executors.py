"""What each executor and dtype costs a step of the bundled model, by images in the call, and a worker's load of it.

Needs the graphs that `mezzotint models tune icons` makes. Run it by `python -m benchmarks.executors`.
"""

import json
import os
import platform
import resource
import statistics
import time
from importlib import metadata
from pathlib import Path

import torch

from mezzotint import profiles
from mezzotint.catalog import BUNDLED, BUNDLED_MODEL, Catalog
from mezzotint.config import load_settings
from mezzotint.devices import default_threads
from mezzotint.engine import executors, probe
from mezzotint.families import products
from mezzotint.families.sd import StableDiffusion

ROUNDS, IMAGES, LATENTS = 15, (1, 2, 4, 8), 16


def main() -> None:
    threads, settings = default_threads(), load_settings()
    catalog = Catalog((), settings.cache)
    catalog.scan()
    graphs = profiles.graphs_of(settings.cache, catalog.digest(catalog.models[BUNDLED_MODEL]))
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    products.choose()
    executors.import_openvino()
    loads, memory, found = {}, {}, {}
    for executor, dtype in profiles.CANDIDATES["cpu"]:
        before, rss = time.perf_counter(), _rss()
        loaded_in = executors.loaded_in(executor, dtype)
        plain = StableDiffusion(BUNDLED / BUNDLED_MODEL, torch.device("cpu"), loaded_in)
        name = f"{executor} {dtype}"
        found[name] = executors.open_with(plain, executor, dtype, graphs=graphs, threads=threads)
        loads[name] = time.perf_counter() - before
        found[name].predict(probe.rows(found[name], 2, LATENTS, LATENTS))
        memory[name] = _rss() - rss
    times: dict[str, dict[int, list[float]]] = {name: {images: [] for images in IMAGES} for name in found}
    for images in IMAGES:
        for turn in range(ROUNDS + 1):
            for name, family in found.items():
                rows = probe.rows(family, 2 * images, LATENTS, LATENTS)
                before = time.perf_counter()
                family.predict(rows)
                if turn:
                    times[name][images].append((time.perf_counter() - before) * 1000)
    print(f"{_machine()}, {threads} threads, seed {probe.SEED}, median of {ROUNDS} in turns; two rows an image")
    print(f"{'ms for one step of one image, of':36} {''.join(f'{images:>8}' for images in IMAGES)}  load     memory")
    medians = {name: {n: statistics.median(taken) / n for n, taken in by.items()} for name, by in times.items()}
    for name, by in medians.items():
        figures = "".join(f"{by[images]:8.1f}" for images in IMAGES)
        print(f"{name:36} {figures}  {loads[name] * 1000:4.0f} ms  {memory[name] / 2**20:4.0f} MiB")
    result = {"at": time.time(), "machine": _machine(), "ms_per_step": medians, "load_s": loads, "memory_bytes": memory}
    with (Path(__file__).parent / "results" / "executors.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")


def _rss() -> int:
    """Now, not at most: with what is mapped from files."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _machine() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "openvino"))
    return f"{os.cpu_count()} cores, {profiles.machine()}, Python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    main()
