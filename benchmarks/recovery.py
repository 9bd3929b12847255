"""How long a running session stands still when its worker is killed with -9: from the kill to its next denoising step.

`python -m benchmarks.recovery [--kills 20] [--models DIR --model ID --size 256 --guidance 1]`, of a tuned model also
`--executor auto --dtype auto`: a server of its own and, for each kill, once a spare stands by that is ready, a session
whose worker is killed a random number of steps on.
Times are what a client sees on the session's event stream; the first step after a kill is in them, so the time of an
undisturbed one is told beside them. Prints also how many steps each kill cost and, of Linux, what memory the worker
and the spare held, shared pages once: weights that both map from one file are in neither's own. Exits 1 when a
session went back to step 0 after a state of it was kept.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, keep, pids_with_spare, running_server
from mezzotint.client import Client

SEED = 7
STEPS = 1000  # so that no session ends before its worker is killed
KEPT_S = 0.5  # twice the time between two states of an image: by then one was kept

Events = Iterator[tuple[int, str, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """`before`: the last step that was told before the kill. `after`: the first one told after it."""

    standstill_s: float
    step_s: float  # undisturbed
    before: int
    after: int
    memory: dict[str, dict[str, int]]  # of worker and spare before the kill: bytes resident, its own, with its share


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--model", default="icons")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--size", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--executor", default="torch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--most-steps", type=int, default=20, help="that a session does before the kill")
    args = parser.parse_args()
    flags = ["--executor", args.executor, "--dtype", args.dtype]
    flags += ["--models", str(args.models)] if args.models else []
    chance = random.Random(SEED)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder) / "data", *flags) as url,
        Client(url) as client,
    ):
        asked = {"model": args.model} | ({"width": args.size, "height": args.size} if args.size else {})
        asked |= {"guidance_scale": args.guidance} if args.guidance else {}
        client.wait(client.submit(**asked, prompt="a slice of pizza", seed=SEED, steps=1)["id"])
        kills = [one_kill(client, asked, chance.randint(2, args.most_steps)) for _ in range(args.kills)]
    times = [one.standstill_s for one in kills]
    lost = [one.before + 1 - one.after for one in kills]
    print(f"{describe()}, {args.executor} {args.dtype}, model {args.model}")
    print(f"size {args.size or 'its own'}, seed {SEED}: {args.kills} kills")
    print(f"kill to next step: median {statistics.median(times):.3f} s, worst {max(times):.3f} s")
    print(f"an undisturbed step: median {statistics.median(one.step_s for one in kills):.3f} s")
    print(f"steps done again: median {statistics.median(lost):g}, most {max(lost)}")
    for name in kills[-1].memory:
        own = statistics.median(one.memory[name]["own"] for one in kills)
        rss = statistics.median(one.memory[name]["rss"] for one in kills)
        print(f"memory of the {name}: {rss / 2**20:.0f} MiB resident, {own / 2**20:.0f} MiB of it nobody else's")
    keep(
        "recovery",
        {
            "asked": asked,
            "executor": args.executor,
            "dtype": args.dtype,
            "seed": SEED,
            "kills": [asdict(one) for one in kills],
        },
    )
    if again := sum(one.after == 1 for one in kills):
        sys.exit(f"{again} of {args.kills} sessions began anew")


def one_kill(client: Client, asked: dict[str, Any], steps: int) -> Kill:
    pid, spare = pids_with_spare(client, asked["model"])
    session_id = client.submit(**asked, prompt="a slice of pizza", seed=SEED, steps=STEPS)["id"]
    events = client.events(session_id)
    next_step(events)
    began = time.monotonic()
    while time.monotonic() - began < KEPT_S:  # what waits to be read would come faster than it happens
        next_step(events)
    began = time.monotonic()
    for _ in range(steps):
        next_step(events)
    step_s = (time.monotonic() - began) / steps
    memory = {"worker": memory_of(pid), "spare": memory_of(spare)}
    before = client.session(session_id)["progress"]["step"]
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    for _, kind, data in events:
        if kind == "state" and data["state"] == "running" and data["attempt"] == 2:
            break
    after = next_step(events)
    standstill_s = time.monotonic() - killed
    client.cancel(session_id)
    client.wait(session_id)
    print(f"{standstill_s:.3f} s, of which a step takes {step_s:.3f}", flush=True)
    return Kill(standstill_s=standstill_s, step_s=step_s, before=before, after=after, memory=memory)


def memory_of(pid: int) -> dict[str, int]:
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    found = {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, *_ in lines}
    own = found["Private_Clean"] + found["Private_Dirty"]
    return {"rss": found["Rss"], "own": own, "proportional": found["Pss"]}


def next_step(events: Events) -> int:
    """The step that the next progress of denoising tells."""
    for _, kind, data in events:
        if kind == "end":
            break
        if kind == "progress" and data["phase"] == "denoising" and data["step"] > 0:
            return int(data["step"])
    raise RuntimeError("the session ended before it was measured")


if __name__ == "__main__":
    main()
