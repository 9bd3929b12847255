"""What callers of one model feel while another, large one is used for the first time: it is hashed, then loaded.

`python -m benchmarks.loading [--models DIR --model ID]`: pictures of the bundled model, one after another, alone and
then until the first picture of the large model is there, by default a Stable Diffusion 1.5 of full size with random
weights in half precision (hashed only where it never was before). A worker that loaded between two steps would keep
everybody waiting for as long as the load takes, which is told beside.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import full_size, machine
from mezzotint.client import Client
from mezzotint.config import load_settings

ALONE = 10
HALF = "random-sd15-half"
SIZE = 128  # of the large model's picture, so that its steps are few and short


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--model", default=HALF)
    args = parser.parse_args()
    models = args.models or build_half().parent
    with (
        tempfile.TemporaryDirectory() as folder,
        machine.running_server(
            Path(folder) / "data", "--models", str(models), "--executor", "torch", "--dtype", "float32"
        ) as url,
        Client(url) as client,
    ):
        draw(client)
        alone = [draw(client) for _ in range(ALONE)]
        large = client.submit(model=args.model, prompt="a rocket", width=SIZE, height=SIZE, steps=1)["id"]
        beside: dict[str, list[float]] = {}
        while (session := client.session(large))["state"] in ("queued", "running"):
            phase = session["progress"]["phase"] if session["state"] == "running" else "hashing"
            beside.setdefault(phase, []).append(draw(client))
        if session["state"] != "succeeded":
            raise RuntimeError(session["error"]["message"])
    timing: dict[str, Any] = session["timing"]
    took = {"hashing": timing["queued_s"], "loading": timing["loading_s"]}
    print(f"{machine.describe()}; {args.model}, a picture of the bundled model at a time")
    print(f"alone: median {statistics.median(alone):.2f} s, worst {max(alone):.2f}")
    for phase, times in beside.items():
        stands = (
            f"; it takes {took[phase]:.1f} s, {took[phase] / max(times):.0f} times the worst" if phase in took else ""
        )
        print(f"beside its {phase}: median {statistics.median(times):.2f} s, worst {max(times):.2f}{stands}")
    machine.keep("loading", {"model": args.model, "alone_s": alone, "beside_s": beside, "timing": timing})


def build_half() -> Path:
    """As models are published. Kept for later runs."""
    path = load_settings().cache / "benchmarks-half" / HALF
    if not path.exists():
        import torch
        from diffusers import StableDiffusionPipeline

        whole = full_size.build()
        draft = path.with_name(".draft")
        StableDiffusionPipeline.from_pretrained(whole, torch_dtype=torch.float16).save_pretrained(draft)
        draft.rename(path)
    return path


def draw(client: Client) -> float:
    started = time.perf_counter()
    session = client.wait(client.submit(prompt="a slice of pizza", seed=7)["id"])
    if session["state"] != "succeeded":
        raise RuntimeError(str(session["error"]))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
