"""What checkpoints cost of throughput, on the bundled model: steps a second with them against those without.

Run it by `python -m benchmarks.checkpoints [--turns 12]`. One engine draws all the time, in turns of TURN_S with
checkpoints and without; the figure is the median over pairs of neighbouring turns. What the API process does with a
checkpoint in a server (reading, keeping, writing to disk) is done here by the process that draws: a server pays less.
"""

import argparse
import asyncio
import itertools
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.engine_overhead import request_of
from mezzotint.catalog import BUNDLED, BUNDLED_MODEL
from mezzotint.checkpoints import Checkpoint, Checkpoints
from mezzotint.engine import telling
from mezzotint.engine.engine import Engine
from mezzotint.engine.meter import HostMeter
from mezzotint.families import products
from mezzotint.families.sd import StableDiffusion
from mezzotint.frames import HEAD_BYTES
from mezzotint.workers import wire

TURN_S = 2.0
STEPS = 1000  # so that few sessions end while it measures
EVERY_S = telling.CHECK_S
CLOCKS = "wall clock", "CPU time"  # the second hardly minds what else the machine does

Rates = tuple[float, float]  # by each clock


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=12)
    turns = parser.parse_args().turns
    products.choose()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    family = StableDiffusion(BUNDLED / BUNDLED_MODEL, torch.device("cpu"), torch.float32)
    print(f"{machine.describe()}, seed 1, 1 thread, median of {turns} pairs of turns of {TURN_S:g} s")
    result = {}
    for images in (1, 8):
        pairs, told = asyncio.run(_measure(family, images, turns))
        print(f"{images} at once, {told} checkpoints:")
        for index, clock in enumerate(CLOCKS):
            lost = [1 - with_[index] / without[index] for with_, without in pairs]
            kept = statistics.median(without[index] for _, without in pairs)
            share = f"{100 * statistics.median(lost):5.2f} % ({100 * min(lost):.2f} to {100 * max(lost):.2f})"
            print(f"  by {clock}: {share} of {kept:.2f} steps a second")
            result[f"{images} by {clock}"] = {"lost": lost, "steps_a_second": kept}
    machine.keep("checkpoints", {"lost": result})


async def _measure(family: StableDiffusion, images: int, turns: int) -> tuple[list[tuple[Rates, Rates]], int]:
    """Steps a second with checkpoints and without, in pairs, and how many checkpoints there were."""
    ref = wire.ModelRef(
        id="icons", kind="checkpoint", family="sd", path=str(BUNDLED / BUNDLED_MODEL), bytes=1, sha256="0"
    )
    engine = Engine(lambda _: family, lambda *_: (b"", b""), time.perf_counter, meter=HostMeter(), budget_bytes=1 << 30)  # type: ignore[arg-type,return-value]
    seeds = itertools.count()

    def submit_one() -> None:
        seed = next(seeds)
        engine.submit(wire.Submit(session_id=str(seed), attempt=1, request=request_of(seed, STEPS), model=ref))

    for _ in range(images):
        submit_one()
    for _ in range(2 * images + 3):  # until all have joined
        engine.step()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints")
        checkpoints.start()
        pairs, told = [], 0
        for turn in range(turns):
            rates: dict[bool, Rates] = {}
            for on in (True, False) if turn % 2 else (False, True):  # neither is always the first
                telling.CHECK_S = EVERY_S if on else math.inf
                steps, started, cpu_started = 0, time.perf_counter(), time.process_time()
                while (spent := time.perf_counter() - started) < TURN_S:
                    events = engine.step()
                    told += _pass_on(events, checkpoints)
                    for _ in [message for message, _ in events if isinstance(message, wire.Ended)]:
                        submit_one()
                    steps += 1
                    await asyncio.sleep(0)  # the writing to disk has its turn
                rates[on] = steps / spent, steps / (time.process_time() - cpu_started)
            pairs.append((rates[True], rates[False]))
        await checkpoints.stop()
    return pairs, told


def _pass_on(events: Any, checkpoints: Checkpoints) -> int:
    """As they would cross to the API process and be kept there. Returns how many there were."""
    count = 0
    for message, blob in events:
        if isinstance(message, wire.Checkpoint):
            frame = wire.frame(message, blob)
            length, _ = wire.lengths(frame[:HEAD_BYTES])
            read = wire.decode_from_worker(frame[HEAD_BYTES : HEAD_BYTES + length])
            assert isinstance(read, wire.Checkpoint)
            state = frame[HEAD_BYTES + length :]
            kept = Checkpoint(index=read.index, step=read.step, print="0" * 64, dtype="float32", state=state)
            checkpoints.keep(read.session_id, kept)
            count += 1
    return count


if __name__ == "__main__":
    main()
