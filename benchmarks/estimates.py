"""What validation promises beside what sessions then take. `python -m benchmarks.estimates [--warm 20] [--runs 60]`

A server of its own with two models, each at three sizes: after the warming each request is validated, run and compared.
First one after another, then as a stream in which a request shares its steps with those that came before it; those that
come after it nobody can foresee.
"""

import argparse
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from tests.models import build_sd

from benchmarks.machine import describe, keep, running_server
from mezzotint.client import Client

TIME_BAR, MEMORY_BAR, SHARE_BAR = 0.25, 0.20, 0.90
SIZES = {"icons": (64, 96, 128), "random": (32, 48, 64)}


def build_random(path: Path) -> None:
    """Random weights, half as wide as the bundled one."""
    build_sd(path)
    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 64, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    unet.save_pretrained(path / "unet", safe_serialization=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--warm", type=int, default=20)
    parser.add_argument("--runs", type=int, default=40)
    args = parser.parse_args()
    rng = random.Random(3)
    with tempfile.TemporaryDirectory() as folder:
        build_random(Path(folder) / "models" / "random")
        flags = ["--models", str(Path(folder) / "models"), "--executor", "torch", "--dtype", "float32"]
        with running_server(Path(folder) / "data", *flags) as url, Client(url) as client:
            for number in range(args.warm):
                client.wait(client.submit(**_request(rng, number))["id"])
            alone = [_compare(client, _request(rng, number)) for number in range(args.runs)]
            stream = _stream(url, rng, args.runs)
    print(f"{describe()}, after {args.warm} sessions")
    print(f"{'':22}{'within':>8}{'median':>8}{'p90':>8}{'bar':>8}{'unknown':>9}")
    found: dict[str, Any] = {}
    for name, told, what, bar in (
        ("run time, alone", alone, "time", TIME_BAR),
        ("peak memory, alone", alone, "memory", MEMORY_BAR),
        ("run time, in a stream", stream, "time", TIME_BAR),
        ("peak memory, in a stream", stream, "memory", MEMORY_BAR),
    ):
        errors = [one[what] for one in told if one[what] is not None]
        within = sum(abs(one) <= bar for one in errors) / len(told)
        sizes = sorted(map(abs, errors))
        p90 = sizes[int(0.9 * len(sizes))]
        found[name] = {
            "within": within,
            "median": statistics.median(sizes),
            "p90": p90,
            "unknown": len(told) - len(errors),
        }
        print(f"{name:24}{within:6.0%}{statistics.median(sizes):8.1%}{p90:8.1%}{bar:8.0%}{len(told) - len(errors):9}")
    print(f"bar: {SHARE_BAR:.0%} within")
    keep("estimates", {"warm": args.warm, "runs": args.runs, "found": found})


def _request(rng: random.Random, number: int) -> dict[str, Any]:
    model = rng.choice(list(SIZES))
    side = rng.choice(SIZES[model])
    return {"model": model, "prompt": f"picture {number}", "width": side, "height": side, "steps": rng.randint(4, 20)}


def _compare(client: Client, request: dict[str, Any]) -> dict[str, float | None]:
    """Promised over taken, less one."""
    promised = client.validate(**request)["estimate"]
    assert promised is not None
    ended = client.wait(client.submit(**request)["id"])
    assert ended["state"] == "succeeded", ended["error"]
    timing, peak = ended["timing"], ended["usage"]["peak_memory_bytes"]
    took = timing["total_s"] - timing["queued_s"]
    told, memory = promised["duration_s"], promised["peak_memory_bytes"]
    return {
        "time": None if told is None else told / took - 1,
        "memory": None if memory is None or peak is None else memory / peak - 1,
    }


def _stream(url: str, rng: random.Random, runs: int) -> list[dict[str, float | None]]:
    """About two at a time."""
    found: list[dict[str, float | None]] = []

    def one(request: dict[str, Any]) -> None:
        with Client(url) as client:
            found.append(_compare(client, request))

    threads = []
    for number in range(runs):
        threads.append(threading.Thread(target=one, args=(_request(rng, number),)))
        threads[-1].start()
        time.sleep(rng.expovariate(1.0))
    for thread in threads:
        thread.join()
    return found


if __name__ == "__main__":
    main()
