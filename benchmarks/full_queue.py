"""A full queue: what accepting costs, who sees the end, what the API process holds, how fast it starts again.

`python -m benchmarks.full_queue [--queued 10000] [--readers 1000]`: 50 callers fill the queue of a server of its own
until it refuses; so many readers follow as many waiting sessions by server-sent events until those are cancelled; then
the server is killed with -9 and started again on the same data.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import httpx2
import psutil

from benchmarks.machine import describe, keep, running_server

CALLERS = 50
SESSIONS = "/api/inference/sessions"
LONG = {"prompt": "a slice of pizza", "steps": 1000}  # none ends while it is measured


async def fill(url: str, queued: int) -> tuple[list[str], list[float], str]:
    """Ids that were accepted, seconds that each took, and the answer to the first that was not."""
    ids: list[str] = []
    times: list[float] = []
    refused = ""
    address, body = httpx2.URL(url), json.dumps(LONG).encode()
    head = f"POST {SESSIONS} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\nContent-Type: application/json\r\n"
    sent = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def one() -> None:
        # by hand: a client library takes as much of the two cores as the server that is measured
        nonlocal refused
        assert address.port is not None
        reader, writer = await asyncio.open_connection(address.host, address.port)
        while not refused and len(ids) < 2 * queued:
            started = time.perf_counter()
            writer.write(sent)
            headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(headers.partition("content-length:")[2].partition("\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            if " 202 " in headers.partition("\r\n")[0]:
                times.append(time.perf_counter() - started)
                ids.append(answer["id"])
            elif not refused:
                refused = f"{answer['status']} {answer['code']}" + ", with Retry-After" * ("retry-after:" in headers)
        writer.close()

    await asyncio.gather(*(one() for _ in range(CALLERS)))
    return ids, times, refused


async def follow(url: str, ids: list[str]) -> tuple[int, float]:
    """How many of the readers saw their session's end, and seconds from the first cancel to the last end."""
    address = httpx2.URL(url)
    assert address.port is not None
    following = 0

    async def read(session_id: str) -> bool:
        nonlocal following
        reader, writer = await asyncio.open_connection(address.host, address.port)
        path = f"{SESSIONS}/{session_id}/events"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n\r\n".encode())
        following += 1
        try:
            async with asyncio.timeout(300):
                while line := await reader.readline():
                    if line.startswith(b"event: end"):
                        return True
        finally:
            writer.close()
        return False

    readers = [asyncio.create_task(read(one)) for one in ids]
    while following < len(ids):
        await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    started = time.perf_counter()
    async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
        for one in ids:
            (await http.post(f"{SESSIONS}/{one}/cancel")).raise_for_status()
    ends = await asyncio.gather(*readers, return_exceptions=True)
    return sum(end is True for end in ends), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--readers", type=int, default=1000)
    args = parser.parse_args()
    flags = ["--executor", "torch", "--dtype", "float32"]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with running_server(data, *flags) as url:
            server = psutil.Process().children()[0]
            while {one["state"] for one in httpx2.get(f"{url}/api/workers").json()["workers"]} != {"ready", "spare"}:
                time.sleep(0.5)  # workers that start take the cores
            began = server.memory_info().rss
            ids, times, refused = asyncio.run(fill(url, args.queued))
            filled = server.memory_info().rss
            seen, took = asyncio.run(follow(url, ids[-args.readers :]))
            followed = server.memory_info().rss
            server.kill()
        started = time.perf_counter()
        with running_server(data, *flags) as url:
            while httpx2.get(f"{url}/livez").status_code != 200:
                time.sleep(0.01)
            live_s = time.perf_counter() - started
            waiting = httpx2.get(f"{url}/api/inference/capabilities").json()["limits"]
            kept = waiting["queue_size"] - waiting["queue_free"]
    p50, p99 = (value * 1000 for value in (statistics.median(times), statistics.quantiles(times, n=100)[-1]))
    found = {
        "accepted": len(ids),
        "accept_p50_ms": round(p50, 1),
        "accept_p99_ms": round(p99, 1),
        "refused": refused,
        "readers": args.readers,
        "readers_that_saw_the_end": seen,
        "cancelled_in_s": round(took, 2),
        "api_mib": [round(one / 2**20) for one in (began, filled, followed)],
        "restart_s": round(live_s, 2),
        "queued_after_restart": kept,
    }
    print(f"{describe()}: {CALLERS} callers")
    for name, value in found.items():
        print(f"{name:26} {value}")
    keep("full_queue", found)


if __name__ == "__main__":
    main()
