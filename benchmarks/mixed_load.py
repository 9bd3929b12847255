"""24 requests of 10, 20 and 50 steps, all at once and as a Poisson stream: diffusers one after another, diffusers with
request-level batching, and Mezzotint over HTTP. Run it by `python -m benchmarks.mixed_load`.

The peers run in a process of their own without HTTP, which favours them. All three in one run, on the same weights.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from benchmarks import machine
from mezzotint.catalog import BUNDLED, BUNDLED_MODEL
from mezzotint.client import Client

STEPS = (10, 20, 50)
GUIDANCE = 3.0
MOST = 8  # requests in one batch of the peer


@dataclass(frozen=True)
class Arrival:
    at: float  # seconds after the start
    steps: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    steps: int
    first_s: float  # from arrival to the end of its first step
    latency_s: float
    ended: float  # seconds after the start


def arrivals(count: int, rate: float | None, seed: int) -> list[Arrival]:
    """All at once without a rate; else exponential gaps, `rate` a second."""
    rng = random.Random(seed)
    steps = [STEPS[i % len(STEPS)] for i in range(count)]
    rng.shuffle(steps)
    at, found = 0.0, []
    for i in range(count):
        found.append(Arrival(at, steps[i], seed + i))
        at += rng.expovariate(rate) if rate else 0.0
    return found


def run_peer(name: str, load: list[Arrival]) -> list[Outcome]:
    command = [sys.executable, "-m", "benchmarks.mixed_load", "--peer", name]
    done = subprocess.run(
        command, input=json.dumps([asdict(one) for one in load]), capture_output=True, text=True, check=True
    )
    return [Outcome(**one) for one in json.loads(done.stdout.splitlines()[-1])]


def peer(name: str, load: list[Arrival]) -> list[Outcome]:
    """In the peer's process. `serial`: a request a call of the pipeline. `batched`: those waiting of equal steps."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(BUNDLED / BUNDLED_MODEL, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw(batch: list[Arrival]) -> float:
        """Returns when its first step had ended."""
        stepped = []

        def step(_: Any, __: int, ___: Any, kept: dict[str, Any]) -> dict[str, Any]:
            stepped.append(time.perf_counter())
            return kept

        pipeline(
            ["a slice of pizza"] * len(batch),
            num_inference_steps=batch[0].steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(one.seed) for one in batch],
            callback_on_step_end=step,
        )
        return stepped[0]

    draw([Arrival(0.0, 2, 0)])
    waiting, outcomes = list(load), []
    started = time.perf_counter()
    while waiting:
        now = time.perf_counter() - started
        here = [one for one in waiting if one.at <= now]
        if not here:
            time.sleep(waiting[0].at - now)
            continue
        batch = [one for one in here if one.steps == here[0].steps][: MOST if name == "batched" else 1]
        stepped = draw(batch) - started
        ended = time.perf_counter() - started
        outcomes += [Outcome(one.steps, stepped - one.at, ended - one.at, ended) for one in batch]
        waiting = [one for one in waiting if one not in batch]
    return outcomes


async def run_served(url: str, load: list[Arrival]) -> list[Outcome]:
    stepped: dict[str, float] = {}
    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
        listening = asyncio.Event()
        listener = asyncio.create_task(_listen(client, stepped, listening))
        await listening.wait()
        started = time.perf_counter()

        async def ask(one: Arrival) -> Outcome:
            await asyncio.sleep(max(0.0, one.at - (time.perf_counter() - started)))
            sent = time.perf_counter()
            body = {"prompt": "a slice of pizza", "steps": one.steps, "seed": one.seed, "guidance_scale": GUIDANCE}
            answer = await client.post("/api/inference/sessions", json=body, headers={"Prefer": "wait=600"})
            ended = time.perf_counter()
            session = answer.raise_for_status().json()
            assert session["state"] == "succeeded", session["error"]
            return Outcome(one.steps, stepped[session["id"]] - sent, ended - sent, ended - started)

        outcomes = list(await asyncio.gather(*(ask(one) for one in load)))
        listener.cancel()
        return outcomes


async def _listen(client: httpx2.AsyncClient, stepped: dict[str, float], listening: asyncio.Event) -> None:
    """When each session's first step was told, by the events of all."""
    async with client.stream("GET", "/api/inference/events") as told:
        async for line in told.aiter_lines():
            listening.set()  # by the comment that opens the stream
            if line.startswith("data: ") and (event := json.loads(line[6:])).get("step"):
                stepped.setdefault(event["session_id"], time.perf_counter())


def summary(outcomes: list[Outcome]) -> dict[str, float]:
    latencies = sorted(one.latency_s for one in outcomes)
    short = [one.latency_s for one in outcomes if one.steps == STEPS[0]]
    return {
        "mean_to_first_step_s": statistics.mean(one.first_s for one in outcomes),
        "images_per_s": len(outcomes) / max(one.ended for one in outcomes),
        "mean_s": statistics.mean(latencies),
        "p95_s": latencies[int(0.95 * (len(latencies) - 1))],
        "mean_of_10_steps_s": statistics.mean(short),
    }


def show(title: str, found: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n{'':22}{'images/s':>10}{'mean':>9}{'p95':>9}{'10 steps':>10}{'1st step':>10}   against serial")
    base = found["diffusers, serial"]
    for name, one in found.items():
        ratios = f"x{one['images_per_s'] / base['images_per_s']:.2f}" + "".join(
            f"  /{base[key] / one[key]:.2f}"
            for key in ("mean_s", "p95_s", "mean_of_10_steps_s", "mean_to_first_step_s")
        )
        print(
            f"{name:22}{one['images_per_s']:10.2f}{one['mean_s']:8.2f}s{one['p95_s']:8.2f}s"
            f"{one['mean_of_10_steps_s']:9.2f}s{one['mean_to_first_step_s']:9.2f}s   {ratios}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--executor", default="torch")
    parser.add_argument("--dtype", default="float32")
    asked = parser.parse_args()
    if asked.peer:
        load = [Arrival(**one) for one in json.loads(sys.stdin.read())]
        print(json.dumps([asdict(one) for one in peer(asked.peer, load)]))
        return
    print(f"{machine.describe()}, seed {asked.seed}, executor {asked.executor}, dtype {asked.dtype}")
    result: dict[str, Any] = {"executor": asked.executor, "dtype": asked.dtype, "seed": asked.seed}
    flags = ["--executor", asked.executor, "--dtype", asked.dtype]
    with tempfile.TemporaryDirectory() as folder, machine.running_server(Path(folder) / "data", *flags) as url:
        asyncio.run(run_served(url, arrivals(2, None, 0)))  # loads the model
        with Client(url) as client:
            machine.pids_with_spare(client, BUNDLED_MODEL)  # what the spare still does would count
        rate = None
        for title in ("burst", "poisson"):
            load = arrivals(asked.count, rate, asked.seed)
            found = {f"diffusers, {name}": summary(run_peer(name, load)) for name in ("serial", "batched")}
            found["mezzotint, HTTP"] = summary(asyncio.run(run_served(url, load)))
            show(title if rate is None else f"{title}, {rate:.2f} requests a second", found)
            result[title] = found | {"rate": rate}
            rate = found["diffusers, serial"]["images_per_s"]  # as many as the serial one can just keep up with
    machine.keep("mixed_load", result)


if __name__ == "__main__":
    main()
