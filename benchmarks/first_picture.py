"""How long a person waits for a picture: from nothing, and from a running server, beside a plain diffusers script.

Each figure is a whole process from start to exit, median of several runs in turn. Run it by `make bench`. A server
tunes its models by itself once it has nothing to do; here that is done first, for the last case.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import machine
from mezzotint.catalog import BUNDLED, BUNDLED_MODEL

RUNS = 5
SERVED, QUICK, TUNED = "mezzotint generate --server", "the same, with --loras quick", "the same, once it is tuned"
PROMPT, SEED = "a slice of pizza", 7
DIFFUSERS = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
pipeline("a slice of pizza", num_inference_steps=int(sys.argv[2]), guidance_scale=float(sys.argv[3]),
         generator=torch.Generator().manual_seed(7)).images[0].save(sys.argv[4])
"""


def main() -> None:
    defaults = json.loads((BUNDLED / BUNDLED_MODEL / "mezzotint.json").read_text())["defaults"]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
        out = Path(folder)
        subprocess.run([machine.MEZZOTINT, "models", "tune", BUNDLED_MODEL], check=True, capture_output=True)
        url = opened.enter_context(machine.running_server(out / "data", "--executor", "torch", "--dtype", "float32"))
        tuned = opened.enter_context(machine.running_server(out / "tuned"))
        draw = [machine.MEZZOTINT, "generate", PROMPT, "--seed", str(SEED), "-o"]
        steps, guidance = str(defaults["num_inference_steps"]), str(defaults["guidance_scale"])
        script = [sys.executable, "-c", DIFFUSERS, BUNDLED / BUNDLED_MODEL, steps, guidance, out / "peer.png"]
        cases: dict[str, Callable[[], object]] = {
            "a diffusers script": lambda: _run(script),
            "mezzotint generate": lambda: _run([*draw, out / "alone.png"]),
            SERVED: lambda: _run([*draw, out / "served.png", "--server", url]),
            QUICK: lambda: _run([*draw, out / "quick.png", "--server", url, "--loras", "quick"]),
            TUNED: lambda: _run([*draw, out / "tuned.png", "--server", tuned]),
        }
        for name in (SERVED, QUICK, TUNED):
            cases[name]()  # the server loads its model once
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(RUNS):
            for name, case in cases.items():
                started = time.perf_counter()
                case()
                times[name].append(time.perf_counter() - started)
        equal = (out / "alone.png").read_bytes() == (out / "served.png").read_bytes()
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    print(f"{machine.describe()}, seed {SEED}, {steps} steps, median of {RUNS} whole processes")
    for name, median in medians.items():
        ratio = medians["a diffusers script"] / median
        print(f"{name:30} {median:6.2f} s  ({min(times[name]):.2f} to {max(times[name]):.2f})  {ratio:4.1f} x")
    print(f"alone and served byte-identical: {equal}")
    machine.keep("first_picture", {"medians_s": medians, "times_s": times, "equal": equal})


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
