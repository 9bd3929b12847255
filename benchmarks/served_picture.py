"""How long `mezzotint generate --server` takes as a whole process, against servers with each executor, in turns.

Needs what `mezzotint models tune icons` makes. Run it by `python -m benchmarks.served_picture`.
"""

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.first_picture import MEZZOTINT, PROMPT, SEED, _listening, _machine

RUNS = 7
SERVERS = {
    "torch float32": ("--executor", "torch", "--dtype", "float32"),
    "openvino float32": ("--executor", "openvino", "--dtype", "float32"),
    "as tuned": (),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        servers = {
            name: subprocess.Popen(
                [MEZZOTINT, "serve", "--port", "0", "--data", out / name, *flags], stderr=subprocess.PIPE, text=True
            )
            for name, flags in SERVERS.items()
        }
        urls = {name: _listening(server) for name, server in servers.items()}
        draw = [MEZZOTINT, "generate", PROMPT, "--seed", str(SEED), "--json", "-o", out / "x.png"]
        cases = {name: (url, "--no-deterministic") for name, url in urls.items()}
        cases["deterministic"] = (urls["as tuned"], "--deterministic")  # what the command does when not told
        times: dict[str, list[float]] = {name: [] for name in cases}
        steps: dict[str, list[float]] = {name: [] for name in cases}
        ran: dict[str, str] = {}
        for turn in range(RUNS + 1):  # the first loads the model
            for name, (url, flag) in cases.items():
                started = time.perf_counter()
                done = subprocess.run([*draw, flag, "--server", url], check=True, capture_output=True, text=True)
                spent, session = time.perf_counter() - started, json.loads(done.stdout)["session"]
                ran[name] = f"{session['usage']['executor']} {session['usage']['dtype']}"
                if turn:
                    times[name].append(spent)
                    steps[name].append(session["timing"]["total_s"])
        for server in servers.values():
            server.terminate()
            server.wait()
    print(f"{_machine()}, seed {SEED}, median of {RUNS} whole processes; of that, from acceptance to the end")
    for name, taken in times.items():
        inside = statistics.median(steps[name])
        print(f"{name:18} ran {ran[name]:18} {statistics.median(taken):.3f} s  {inside:.3f} s")
    result = {"at": time.time(), "machine": _machine(), "times_s": times, "sessions_s": steps, "ran": ran}
    with (Path(__file__).parent / "results" / "served_picture.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
