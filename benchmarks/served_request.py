"""What serving adds to a request: over HTTP on the bundled model, against the model calls that it makes, made bare by a
process without server, engine or picture file, in a worker's environment with the same executor and dtype.

Turn by turn in one run: `python -m benchmarks.served_request`, after `mezzotint models tune icons` also with
`--executor auto --dtype auto`. The same calls take several hundredths more in one process than in another, so both
sides begin anew for each round.

The calls are: the prompt's encoding, new each time (the negative one is remembered), one of the UNet a step, and the
decoding. A request counts from its sending to the last byte of the answer that it succeeded. The standard library sends
it: what a larger client does with a request would count as the server's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2

from benchmarks import machine
from mezzotint import profiles
from mezzotint.catalog import BUNDLED, BUNDLED_MODEL, Catalog
from mezzotint.client import Client
from mezzotint.config import load_settings
from mezzotint.devices import default_threads
from mezzotint.workers.local import environment

BAR = 0.05
WARM_UP = 2  # turns


def bare(asked: argparse.Namespace) -> None:
    """In the other process: a line in is a prompt, a line out the seconds that its calls took."""
    from mezzotint.workers.imports import import_quickly

    import_quickly()
    import torch

    from mezzotint.engine import executors
    from mezzotint.families import products
    from mezzotint.families.base import Prompt, Rows
    from mezzotint.families.sd import StableDiffusion

    threads, settings = default_threads(), load_settings()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    products.choose()
    catalog = Catalog((), settings.cache)
    catalog.scan()
    graphs = profiles.graphs_of(settings.cache, catalog.digest(catalog.models[BUNDLED_MODEL]))
    loaded_in = executors.loaded_in(asked.executor, asked.dtype)
    plain = StableDiffusion(BUNDLED / BUNDLED_MODEL, torch.device("cpu"), loaded_in)
    plain.pack()
    family = executors.open_with(plain, asked.executor, asked.dtype, graphs=graphs, threads=threads)

    def encode(text: str) -> Any:
        (encoded,) = family.encode([Prompt(text=text, syntax="plain", clip_skip=None, windows=1)])
        return encoded.hidden

    negative = encode("")
    side = int(plain.unet.config.sample_size)
    latents = torch.randn(2, family.latent_channels, side, side, generator=torch.Generator().manual_seed(0))
    for line in sys.stdin:
        started = time.perf_counter()
        hidden = torch.stack([encode(line.strip()), negative])
        for step in range(asked.steps):
            timesteps = torch.full((2,), 999.0 * (1 - step / asked.steps))
            family.predict(Rows(latents=latents, timesteps=timesteps, hidden=hidden))
        family.decode(latents[:1])
        print(time.perf_counter() - started, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--executor", default="torch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.bare:
        bare(asked)
        return
    times: dict[str, list[float]] = {"bare": [], "served": []}
    rounds = []
    for _ in range(asked.rounds):
        ran, taken = _round(asked)
        rounds.append(_added(taken))
        for name, seconds in taken.items():
            times[name] += seconds
    added = _added(times)
    print(
        f"{machine.describe()}, {ran['executor']} {ran['dtype']}, {asked.steps} steps, "
        f"median of {asked.rounds} rounds of {asked.turns} turns"
    )
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:8}{median * 1000:8.1f} ms  ({min(seconds) * 1000:.1f} to {max(seconds) * 1000:.1f})")
    each = ", ".join(f"{100 * one:.1f}" for one in rounds)
    print(f"serving adds {100 * added:.1f} % (by round: {each}); the bar is {100 * BAR:.0f} %")
    kept = {"executor": ran["executor"], "dtype": ran["dtype"], "steps": asked.steps, "added": added}
    machine.keep("served_request", kept | {"rounds": rounds, "times_s": times})


def _round(asked: argparse.Namespace) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Of a server and a peer that begin anew. With what it ran, and the seconds of each turn."""
    with (
        tempfile.TemporaryDirectory() as folder,
        machine.running_server(Path(folder) / "data", "--executor", asked.executor, "--dtype", asked.dtype) as url,
        closing(HTTPConnection(url.removeprefix("http://"), timeout=120)) as server,
    ):
        _served(server, "a rocket", asked.steps)  # loads the model
        with Client(url) as client:
            machine.pids_with_spare(client, BUNDLED_MODEL)  # what the spare still does would count
        ran = httpx2.get(f"{url}/api/models/{BUNDLED_MODEL}").raise_for_status().json()["executors"]["cpu:0"]
        command = [sys.executable, "-m", "benchmarks.served_request", "--bare", "--steps", str(asked.steps)]
        command += ["--executor", ran["executor"], "--dtype", ran["dtype"]]
        times: dict[str, list[float]] = {"bare": [], "served": []}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        ) as peer:
            for turn in range(WARM_UP + asked.turns):
                prompt = f"a rocket of size {turn}"
                sides = {"bare": partial(_bare, peer), "served": partial(_served, server, steps=asked.steps)}
                order = list(sides)[:: 1 if turn % 2 else -1]  # neither is always the first
                taken = {name: sides[name](prompt) for name in order}
                if turn >= WARM_UP:
                    for name, seconds in taken.items():
                        times[name].append(seconds)
    return ran, times


def _added(times: dict[str, list[float]]) -> float:
    return statistics.median(served / bare - 1 for bare, served in zip(*times.values(), strict=True))


def _bare(peer: "subprocess.Popen[str]", prompt: str) -> float:
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write(f"{prompt}\n")
    peer.stdin.flush()
    return float(peer.stdout.readline())


def _served(server: HTTPConnection, prompt: str, steps: int) -> float:
    body = json.dumps({"prompt": prompt, "steps": steps, "seed": 1, "scheduler": "ddim"})
    headers = {"Content-Type": "application/json", "Prefer": "wait=60"}
    server.close()  # the server closes what is idle while the peer starts
    server.connect()
    started = time.perf_counter()
    server.request("POST", "/api/inference/sessions", body, headers)
    answer = server.getresponse().read()
    spent = time.perf_counter() - started
    session = json.loads(answer)
    assert session["state"] == "succeeded", session["error"]
    return spent


if __name__ == "__main__":
    main()
