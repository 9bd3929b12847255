"""How long the API takes to answer while sessions run: validate, accept, get, list, capabilities.

`python -m benchmarks.api_latency [--sessions 50] [--calls 200]`: a server of its own on the bundled model, so many
sessions in it, of which some run and the others wait; then the calls one after another, in turns, on one connection.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

from benchmarks.machine import describe, keep, running_server

SESSIONS = "/api/inference/sessions"
LONG = {"prompt": "a slice of pizza", "steps": 1000}  # none ends while it is measured
SHORT = {"prompt": "a cat in the rain", "negative_prompt": "blurry", "steps": 20, "guidance_scale": 4, "seed": 7}
BARS_MS = {"validate": 10, "accept": 50, "get": 25, "list": 25, "capabilities": 25, "supported types": 25}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--calls", type=int, default=200)
    args = parser.parse_args()
    flags = ["--executor", "torch", "--dtype", "float32"]
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder) / "data", *flags) as url,
        httpx2.Client(base_url=url, timeout=60) as http,
    ):
        ids = [http.post(SESSIONS, json=LONG).raise_for_status().json()["id"] for _ in range(args.sessions)]
        while http.get(f"{SESSIONS}/{ids[0]}").json()["progress"]["step"] < 5:
            time.sleep(0.1)
        calls: dict[str, Callable[[], httpx2.Response]] = {
            "validate": lambda: http.post("/api/inference/validate", json=SHORT),
            "accept": lambda: http.post(SESSIONS, json=LONG),
            "get": lambda: http.get(f"{SESSIONS}/{ids[0]}"),
            "list": lambda: http.get(SESSIONS, params={"active": True}),
            "capabilities": lambda: http.get("/api/inference/capabilities"),
            "supported types": lambda: http.get("/api/inference/supported-types"),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(args.calls):
            for name, call in calls.items():
                started = time.perf_counter()
                call().raise_for_status()
                times[name].append((time.perf_counter() - started) * 1000)
    print(f"{describe()}: {args.sessions} sessions, {args.calls} calls of each kind")
    print(f"{'call':<16} {'p50 ms':>8} {'p95 ms':>8} {'worst':>8} {'bar p95':>8}")
    found = {}
    for name, taken in times.items():
        p50, p95 = statistics.median(taken), statistics.quantiles(taken, n=20)[-1]
        found[name] = {"p50_ms": p50, "p95_ms": p95, "worst_ms": max(taken)}
        print(f"{name:<16} {p50:8.1f} {p95:8.1f} {max(taken):8.1f} {BARS_MS[name]:8}")
    keep("api_latency", {"sessions": args.sessions, "calls": args.calls, "times": found})


if __name__ == "__main__":
    main()
