"""Kills workers and the server at random while sessions run, and counts what that cost. `make torture`.

`python -m tests.torture [--worker-kills 35] [--server-kills 50] [--seed 7] [--data FOLDER]`: a real server with the
bundled model and a spare worker. Exits 1 when a promise was broken, and says which.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.torture.run import torture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker-kills", type=int, default=35)
    parser.add_argument("--server-kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        told, faults = torture(Path(folder) / "data", args.worker_kills, args.server_kills, args.seed)
    kills = f"{args.worker_kills} workers and {args.server_kills} servers killed"
    print(f"{kills}, seed {args.seed}, {time.monotonic() - started:.0f} s")
    print(", ".join(f"{count} {name}" for name, count in told.items()))
    for fault in faults:
        print(fault)
    print(f"{len(faults)} promises broken")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
