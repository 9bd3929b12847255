"""A server under load that is killed again and again, and what its callers saw of it."""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2

from tests.process.conftest import RunningServer, wait_for
from tests.torture.history import FINAL, check

SESSIONS = "/api/inference/sessions"
REQUESTS: list[dict[str, Any]] = [
    {"prompt": "a slice of pizza", "steps": 60},
    {"prompt": "two cats", "steps": 40, "num_images": 2},
    {"prompt": "a wide rocket", "steps": 50, "width": 96, "scheduler": "euler_ancestral"},
    {"prompt": "a blob of a tree", "steps": 50, "loras": [{"name": "blob"}]},
    {"prompt": "unguided", "steps": 80, "guidance_scale": 1, "scheduler": "dpm_multistep"},
]


class Caller(threading.Thread):
    """Sends requests, each with a key of its own, again until the server has answered."""

    def __init__(self, server: RunningServer, seed: int, at_once: int) -> None:
        super().__init__(daemon=True)
        self._server, self._chance, self._at_once = server, random.Random(seed), at_once
        self.acknowledged: dict[str, str] = {}
        self.ended: set[str] = set()
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            if len(self.acknowledged) - len(self.ended) >= self._at_once:
                self._look()
                continue
            key = f"key-{len(self.acknowledged)}"
            request = self._chance.choice(REQUESTS) | {"seed": 3}
            while key not in self.acknowledged and not self.stop.is_set():
                self._send(key, request)

    def _send(self, key: str, request: dict[str, Any]) -> None:
        with self._trying() as http:
            answer = http.post(SESSIONS, json=request, headers={"Idempotency-Key": key})
            if answer.status_code in (200, 202):
                self.acknowledged[key] = answer.json()["id"]

    def _look(self) -> None:
        with self._trying() as http:
            for session_id in set(self.acknowledged.values()) - self.ended:
                if http.get(f"{SESSIONS}/{session_id}").raise_for_status().json()["state"] in FINAL:
                    self.ended.add(session_id)
        self.stop.wait(0.05)

    @contextlib.contextmanager
    def _trying(self) -> Any:
        try:
            with httpx2.Client(base_url=self._server.url, timeout=10) as http:
                yield http
        except (httpx2.HTTPError, ValueError):
            self.stop.wait(0.02)  # it is down, and comes again


def torture(
    data: Path, worker_kills: int, server_kills: int, seed: int, at_once: int = 10
) -> tuple[Counter[str], list[str]]:
    """What became of the sessions, of which `at_once` wait or run at any time, and the promises that were broken."""
    chance = random.Random(seed)
    kills = ["worker"] * worker_kills + ["server"] * server_kills
    chance.shuffle(kills)
    with RunningServer(data, spare=True) as server:
        truths = undisturbed(server)
        caller = Caller(server, seed, at_once)
        caller.start()
        for kind in kills:
            pid = server.worker_pid()  # it is up; else all that is killed is a start
            time.sleep(chance.uniform(0.3, 3.0))
            if kind == "worker":  # who loses workers in a row without a step between is to blame
                wait_for(lambda: any(one["progress"]["step"] for one in server.client.sessions(state="running")), 60)
                time.sleep(chance.uniform(0.0, 0.6))
            if kind == "server":
                server.kill()
                server.start()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        caller.stop.set()
        caller.join()
        ids = set(caller.acknowledged.values())
        wait_for(lambda: all(server.client.session(one)["state"] in FINAL for one in ids), 120)
        found = [server.client.session(one) for one in ids]
        server.client.close()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        counts = Counter({"sessions": len(ids), "succeeded": 0, "failed": 0})
        counts.update(one["state"] for one in found)
        counts["attempts"] = sum(one["attempt"] for one in found)
        counts["steps resumed"] = sum(one["usage"]["steps_resumed"] for one in found)
        faults = check(data, caller.acknowledged, truths)
        faults += [f"P3 {one['id']} failed: {one['error']}" for one in found if one["state"] != "succeeded"]
    return counts, faults


def undisturbed(server: RunningServer) -> dict[str, list[bytes]]:
    """The pictures of each request, drawn in peace."""
    truths = {}
    for request in REQUESTS:
        ended = server.client.wait(server.client.submit(**request, seed=3)["id"])
        truths[request["prompt"]] = [server.client.image(ended["id"], one["index"]) for one in ended["images"]]
    return truths
