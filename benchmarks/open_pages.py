"""What two open pages cost the server: 50 sessions at once, in turns with and without two pages that show every step.

`python -m benchmarks.open_pages [--turns 3]`, with Node, chromium and two cores or more. Twice: with the browsers on a
core that the server and its worker do not have, as a visitor's machine is another one; and with everything on the same
cores, the browsers at the lowest priority. A browser on a core of its own still shares memory with the model: so the
processor time of an image is told too, apart for the API process, which serves the pages, and for the worker, which
knows nothing of them.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.machine import describe, keep, running_server
from mezzotint.client import Client

MEASURE = Path(__file__).parents[1] / "web" / "tests" / "measure.mjs"
LOSS = 0.02  # the bar
TOGETHER = 50
Round = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", choices=("apart", "shared"))
    args = parser.parse_args()
    every = os.sched_getaffinity(0)
    first = {min(every)}
    print(describe())
    told = {}
    for layout, servers, browsers in (("apart", first, every - first), ("shared", every, every)):
        if args.only in (None, layout):
            told[layout] = _turns(args.turns, servers, browsers)
            _print(layout, *told[layout])
    keep("open_pages", told)


def _turns(turns: int, servers: set[int], browsers: set[int]) -> tuple[list[Round], list[Round]]:
    flags = ["--executor", "torch", "--dtype", "float32"]
    os.sched_setaffinity(0, servers)  # what a process starts inherits it; the worker has a thread for each core
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder) / "data", *flags) as url,
        Client(url) as client,
    ):
        (server,) = psutil.Process().children()
        os.sched_setaffinity(0, browsers)
        _round(client, server)  # loads the model
        plain, watched = [], []
        for _ in range(turns):
            plain.append(_round(client, server))
            with _open(url), _open(url):
                watched.append(_round(client, server))
    return plain, watched


def _print(layout: str, plain: list[Round], watched: list[Round]) -> None:
    def middle(rounds: list[Round], name: str) -> float:
        return statistics.median(one[name] for one in rounds)

    print(
        {"apart": "browsers on a core of their own", "shared": "browsers on the model's cores, lowest priority"}[layout]
    )
    for title, rounds in (("no page open", plain), ("two pages", watched)):
        api, worker = (middle(rounds, name) * 1000 for name in ("api_s", "worker_s"))
        print(
            f"  {title:14} {middle(rounds, 'images_per_s'):6.3f} images/s; "
            f"an image: {api:5.1f} ms API, {worker:6.1f} ms worker"
        )
    lost = 1 - middle(watched, "images_per_s") / middle(plain, "images_per_s")
    served = middle(watched, "api_s") - middle(plain, "api_s")
    share = served / sum(middle(plain, name) for name in ("api_s", "worker_s"))
    print(
        f"  lost           {lost:6.1%} (bar {LOSS:.0%}); "
        f"serving the pages took {share:.1%} of an image's processor time"
    )


def _round(client: Client, server: psutil.Process) -> Round:
    workers = [one for one in server.children(recursive=True) if "mezzotint.workers.main" in " ".join(one.cmdline())]
    requests = [{"prompt": "a boat", "seed": number, "preview": {"every_steps": 1}} for number in range(TOGETHER)]
    started, api, worker = time.perf_counter(), _spent([server]), _spent(workers)
    batch = client.create_batch(requests)
    while client.batch(batch["id"])["state"] == "running":
        time.sleep(0.2)
    return {
        "images_per_s": TOGETHER / (time.perf_counter() - started),
        "api_s": (_spent([server]) - api) / TOGETHER,
        "worker_s": (_spent(workers) - worker) / TOGETHER,
    }


def _spent(processes: list[psutil.Process]) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in processes)


@contextlib.contextmanager
def _open(url: str) -> Iterator[None]:
    node = shutil.which("node")
    if node is None:
        raise SystemExit("this needs Node and chromium")
    page = subprocess.Popen([node, MEASURE, url, "stay"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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


if __name__ == "__main__":
    main()
