"""What serving adds to a request: over HTTP on the bundled model, against the model calls that it makes, made bare by a
process without server, engine or picture file, in a worker's environment with the same executor and dtype.

Turn by turn in one run: `python -m benchmarks.served_request`, after `mezzotint models tune icons` also with
`--executor auto --dtype auto`; with `--full-size` on SD 1.5 of random weights at 256 px. The same calls take several
hundredths more in one process than in another, so both sides begin anew for each round.

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
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2

from benchmarks import machine
from benchmarks.full_size import build
from mezzotint import profiles
from mezzotint.catalog import BUNDLED, BUNDLED_MODEL, Catalog
from mezzotint.client import Client
from mezzotint.config import load_settings
from mezzotint.devices import default_threads
from mezzotint.workers.local import environment

BAR = 0.05
WARM_UP = 2  # turns


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is asked for."""

    path: Path
    px: int


def subject(*, full_size: bool) -> Subject:
    if full_size:
        return Subject(path=build(), px=256)
    return Subject(path=BUNDLED / BUNDLED_MODEL, px=128)


def bare(asked: argparse.Namespace) -> None:
    """In the other process: a line in is a prompt, a line out the seconds that its calls took."""
    from mezzotint.workers.imports import import_quickly

    import_quickly()
    import torch

    from mezzotint.engine import executors
    from mezzotint.families import products
    from mezzotint.families.base import Prompt, Rows
    from mezzotint.families.sd import StableDiffusion

    model, threads, settings = subject(full_size=asked.full_size), default_threads(), load_settings()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    products.choose()
    catalog = Catalog((model.path.parent,) if asked.full_size else (), settings.cache)
    catalog.scan()
    graphs = profiles.graphs_of(settings.cache, catalog.digest(catalog.models[model.path.name]))
    loaded_in = executors.loaded_in(asked.executor, asked.dtype)
    plain = StableDiffusion(model.path, torch.device("cpu"), loaded_in)
    plain.pack()
    family = executors.open_with(plain, asked.executor, asked.dtype, graphs=graphs, threads=threads)

    def encode(text: str) -> Any:
        (encoded,) = family.encode([Prompt(text=text, syntax="plain", clip_skip=None, windows=1)])
        return encoded.hidden

    negative = encode("")
    side = model.px // 8
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
    parser.add_argument("--full-size", action="store_true")
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
        f"{'SD 1.5 random, ' if asked.full_size else ''}median of {asked.rounds} rounds of {asked.turns} turns"
    )
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:8}{median * 1000:8.1f} ms  ({min(seconds) * 1000:.1f} to {max(seconds) * 1000:.1f})")
    each = ", ".join(f"{100 * one:.1f}" for one in rounds)
    print(f"serving adds {100 * added:.1f} % (by round: {each}); the bar is {100 * BAR:.0f} %")
    kept = {name: ran[name] for name in ("executor", "dtype")} | {"full_size": asked.full_size}
    kept |= {"steps": asked.steps, "added": added}
    machine.keep("served_request", kept | {"rounds": rounds, "times_s": times})


def _round(asked: argparse.Namespace) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Of a server and a peer that begin anew. With what it ran, and the seconds of each turn."""
    model = subject(full_size=asked.full_size)
    flags = ["--executor", asked.executor, "--dtype", asked.dtype]
    if asked.full_size:
        flags += ["--models", str(model.path.parent)]
    with (
        tempfile.TemporaryDirectory() as folder,
        machine.running_server(Path(folder) / "data", *flags) as url,
        closing(HTTPConnection(url.removeprefix("http://"), timeout=120)) as server,
    ):
        _served(server, model, "a rocket", asked.steps)  # loads the model
        with Client(url) as client:
            machine.wait_for_rest(client)  # what the spare still does would count
        ran = httpx2.get(f"{url}/api/models/{model.path.name}").raise_for_status().json()["executors"]["cpu:0"]
        command = [sys.executable, "-m", "benchmarks.served_request", "--bare", "--steps", str(asked.steps)]
        command += ["--executor", ran["executor"], "--dtype", ran["dtype"]]
        command += ["--full-size"] if asked.full_size else []
        times: dict[str, list[float]] = {"bare": [], "served": []}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        ) as peer:
            for turn in range(WARM_UP + asked.turns):
                prompt = f"a rocket of size {turn}"
                sides = {"bare": partial(_bare, peer), "served": partial(_served, server, model, steps=asked.steps)}
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


def _served(server: HTTPConnection, model: Subject, prompt: str, steps: int) -> float:
    asked = {"model": model.path.name, "prompt": prompt, "width": model.px, "height": model.px, "steps": steps}
    body = json.dumps(asked | {"seed": 1, "scheduler": "ddim"})
    headers = {"Content-Type": "application/json", "Prefer": "wait=100"}
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
