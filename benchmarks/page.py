"""The web page: how soon it is there, how smoothly 1,000 sessions scroll. `open_pages` tells what open pages cost.

`python -m benchmarks.page [--sessions 1000] [--turns 5]`, with Node and chromium.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, keep, running_server
from mezzotint.client import Client

MEASURE = Path(__file__).parents[1] / "web" / "tests" / "measure.mjs"
FIRST_MS, FRAMES = 1000, 50  # the bars


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
    seen_ms = statistics.median(one["seen_ms"] for one in first)
    frames = statistics.median(one["frames_per_s"] for one in scrolled)
    p95_ms = statistics.median(one["p95_frame_ms"] for one in scrolled)
    print(describe())
    print(f"the form can be seen after     {seen_ms:6.0f} ms  (bar {FIRST_MS})")
    print(f"pictures that were scrolled    {scrolled[0]['pictures']:6}")
    print(f"frames a second                {frames:6.1f}, p95 {p95_ms:.1f} ms  (bar {FRAMES})")
    keep("page", {"first": first, "scrolled": scrolled})


def _draw(client: Client, requests: list[dict[str, Any]]) -> None:
    for begin in range(0, len(requests), 500):
        batch = client.create_batch(requests[begin : begin + 500])
        while client.batch(batch["id"])["state"] == "running":
            time.sleep(0.5)


def _measure(url: str, what: str) -> dict[str, float]:
    done = subprocess.run(_node(url, what), capture_output=True, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def _node(url: str, what: str) -> list[str]:
    node = shutil.which("node")
    if node is None:
        raise SystemExit("this needs Node and chromium")
    return [node, str(MEASURE), url, what]


if __name__ == "__main__":
    main()
