"""How long a session takes to be on disk: 50 callers at once, beside one alone. `python -m benchmarks.accepts [URL]`

Without an address it measures a SQLite file in a temporary folder; a Postgres must be empty and ours alone.
"""

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from tests.requests import request

from mezzotint.events import Events
from mezzotint.store.sql import Store

CALLERS, ACCEPTS, ALONE = 50, 4000, 200


async def measure(url: str) -> dict[str, dict[str, float]]:
    store = await Store.open(url, queue_size=1_000_000, events=Events())
    await store.begin(now=time.time())
    numbers = iter(range(1_000_000))

    async def some(count: int, times: list[float]) -> None:
        for _ in range(count):
            started = time.perf_counter()
            await store.add(f"ses_{next(numbers):07}", request(), warnings=[], now=time.time())
            times.append(time.perf_counter() - started)

    found = {}
    for name, callers, count in (("warm-up", 1, 20), ("together", CALLERS, ACCEPTS), ("alone", 1, ALONE)):
        times: list[float] = []
        started = time.perf_counter()
        await asyncio.gather(*(some(count // callers, times) for _ in range(callers)))
        rate = len(times) / (time.perf_counter() - started)
        times.sort()
        p50, p99 = (times[int(len(times) * share)] * 1000 for share in (0.5, 0.99))
        found[name] = {"callers": callers, "p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "a_second": round(rate)}
    await store.close()
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{folder}/mezzotint.db"
        found = asyncio.run(measure(url))
    versions = f"sqlalchemy {metadata.version('sqlalchemy')}"
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}"
    print(url.partition(":")[0], machine)
    for name in ("together", "alone"):
        print(f"{name:9} {found[name]}")
    result = {"at": time.time(), "machine": machine, "kind": url.partition(":")[0], **found}
    folder_of_results = Path(__file__).parent / "results"
    folder_of_results.mkdir(exist_ok=True)
    with (folder_of_results / "accepts.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
