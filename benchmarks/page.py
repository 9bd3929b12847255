"""The web page: how soon it is there, how smoothly 1,000 sessions scroll, what two open pages cost the server.

`python -m benchmarks.page [--sessions 1000] [--turns 5]`, with Node and chromium. For the last, 50 sessions at once run
in turns with and without two pages on the view that shows every step; the browsers have the lowest priority, since a
visitor's browser is most often on a machine of its own.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe, keep, running_server
from mezzotint.client import Client

MEASURE = Path(__file__).parents[1] / "web" / "tests" / "measure.mjs"
FIRST_MS, FRAMES, LOSS = 1000, 50, 0.02  # the bars
TOGETHER = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    flags = ["--executor", "torch", "--dtype", "float32"]
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder) / "data", *flags) as url,
        Client(url) as client,
    ):
        _draw(client, [{"prompt": f"picture {number}", "steps": 1} for number in range(args.sessions)])
        first = [_measure(url, "first") for _ in range(args.turns)]
        scrolled = [_measure(url, "scroll") for _ in range(args.turns)]
        plain, watched = [], []
        (server,) = psutil.Process().children()
        for _ in range(args.turns):
            plain.append(_throughput(client, server))
            with _open(url), _open(url):
                watched.append(_throughput(client, server))
    seen_ms = statistics.median(one["seen_ms"] for one in first)
    frames = statistics.median(one["frames_per_s"] for one in scrolled)
    p95_ms = statistics.median(one["p95_frame_ms"] for one in scrolled)
    without, beside = (statistics.median(one["images_per_s"] for one in rounds) for rounds in (plain, watched))
    asked = (statistics.median(one["server_share"] for one in rounds) for rounds in (plain, watched))
    print(describe())
    print(f"the form can be seen after     {seen_ms:6.0f} ms  (bar {FIRST_MS})")
    print(f"pictures that were scrolled    {scrolled[0]['pictures']:6}")
    print(f"frames a second                {frames:6.1f}, p95 {p95_ms:.1f} ms  (bar {FRAMES})")
    print(
        f"images a second, no page open  {without:6.2f}, the server's own process takes {next(asked):.1%} of the cores"
    )
    print(f"images a second, two pages     {beside:6.2f}, it takes {next(asked):.1%}")
    print(f"lost                           {1 - beside / without:6.1%}  (bar {LOSS:.0%})")
    keep("page", {"first": first, "scrolled": scrolled, "plain": plain, "watched": watched})


def _draw(client: Client, requests: list[dict[str, Any]]) -> None:
    for begin in range(0, len(requests), 500):
        batch = client.create_batch(requests[begin : begin + 500])
        while client.batch(batch["id"])["state"] == "running":
            time.sleep(0.5)


def _throughput(client: Client, server: psutil.Process) -> dict[str, float]:
    """Images a second, and the share of the machine's cores that the API process took meanwhile."""
    requests = [{"prompt": "a boat", "seed": number, "preview": {"every_steps": 1}} for number in range(TOGETHER)]
    started, before = time.perf_counter(), sum(server.cpu_times()[:2])
    batch = client.create_batch(requests)
    while client.batch(batch["id"])["state"] == "running":
        time.sleep(0.05)
    spent = time.perf_counter() - started
    taken = sum(server.cpu_times()[:2]) - before
    return {"images_per_s": TOGETHER / spent, "server_share": taken / spent / (os.cpu_count() or 1)}


def _measure(url: str, what: str) -> dict[str, float]:
    done = subprocess.run(_node(url, what), capture_output=True, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout)
    return told


@contextlib.contextmanager
def _open(url: str) -> Iterator[None]:
    page = subprocess.Popen(_node(url, "stay"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert page.stdin
    assert page.stdout
    try:
        page.stdout.readline()
        for process in psutil.Process(page.pid).children(recursive=True):
            process.nice(19)
            with contextlib.suppress(OSError):  # where the scheduler groups processes by session, their group too
                Path(f"/proc/{process.pid}/autogroup").write_text("19", encoding="utf-8")
        yield
    finally:
        page.stdin.close()
        page.wait()


def _node(url: str, what: str) -> list[str]:
    node = shutil.which("node")
    if node is None:
        raise SystemExit("this needs Node and chromium")
    return [node, str(MEASURE), url, what]


if __name__ == "__main__":
    main()
