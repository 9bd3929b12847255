"""Trains everything that ships, from nothing: `make train`, or `python -m training`.

May be stopped at any time: started again it goes on in the step that was running. A step is one of the programs here;
the work folder keeps which are done. Where that is new, all begins from nothing.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from training import adapters, data, machine, quick, unet


def steps() -> Iterator[tuple[str, float, Path | None]]:
    """A command, the minutes that it works on this machine (0: as many as it takes), and where it keeps its state.

    Without a state it begins again when it was stopped.
    """
    choose, kept = machine.choose, adapters.folder()
    yield "data", 0, None
    yield "text", 28, None
    yield "vae", choose(cpu=60, gpu=4), None
    yield "unet", choose(cpu=250, gpu=6), unet.state_file()
    yield "words", 40, None
    yield "vae --refine", choose(cpu=30, gpu=7), None
    yield "package", 0, None
    yield "control", choose(cpu=60, gpu=7), kept / "control.pt"
    yield "loras", choose(cpu=25, gpu=5), kept / "blob.pt"
    yield "quick", choose(cpu=60, gpu=10), kept / f"{quick.NAME}-ways.pt"
    yield "previews", 0, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=float, default=1.0, help="of every step's minutes, to see that the whole runs")
    part = parser.parse_args().part
    record = data.work_folder() / "done.json"
    done: list[str] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
    for step, minutes, state in steps():
        if step in done:
            continue
        options = [f"--minutes={minutes * part:g}"] if minutes else []
        if state is not None and not state.exists():
            options.append("--fresh")
        print("training", step, *options, flush=True)
        subprocess.run([sys.executable, "-m", *f"training.{step}".split(), *options], check=True)
        done.append(step)
        record.write_text(json.dumps(done), encoding="utf-8")
    print(f"everything is made; remove {data.work_folder()} to make it anew")


if __name__ == "__main__":
    main()
