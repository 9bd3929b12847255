"""Breaks promises in copies of the source and says which tests notice: `python -m tests.mutations`.

Ends with 1 if a broken copy passes, or the tests that should notice do not pass on an unbroken one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mezzotint

REPOSITORY = Path(__file__).parents[1]
FENCE = "tests/contract/test_store.py::test_a_stale_attempt_changes_nothing"
POWER = "tests/process/test_power_loss.py"
NAMES = "tests/contract/test_blobs.py::test_bytes_are_synced_before_the_name_and_the_name_before_the_answer"
RESUME = "tests/process/test_resume.py::test_a_worker_killed_costs_a_few_steps_and_the_picture_is_the_same"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutation:
    name: str
    file: str  # below the package
    before: str
    after: str
    noticed_by: str


EARLY_ANSWER = """
        import asyncio
        async def late():
            await asyncio.sleep(0.1)
            await self._intake.add(row, once)
        self._late = asyncio.ensure_future(late())
        return rows.accepted(row)"""

MUTATIONS = [
    Mutation(
        name="drop the fence of attempts",
        file="store/changes.py",
        before='OWNED = sessions.c.attempt == bindparam("of_attempt")',
        after='OWNED = sessions.c.attempt >= 0 * bindparam("of_attempt")',
        noticed_by=FENCE,
    ),
    Mutation(
        name="skip the fsync of the database",
        file="store/sqlite.py",
        before='else "FULL"',
        after='else "NORMAL"',
        noticed_by=POWER,
    ),
    Mutation(
        name="skip the fsync of pictures",
        file="disk.py",
        before="os.fsync(file.fileno())",
        after="pass",
        noticed_by=NAMES,
    ),
    Mutation(
        name="answer before the commit",
        file="store/sql.py",
        before="\n        return await self._database.unbroken(functools.partial(self._intake.add, row, once))",
        after=EARLY_ANSWER,
        noticed_by=POWER,
    ),
    Mutation(
        name="resume from step 0",
        file="claims.py",
        before="states = [one for one in kept if one.print == print_]",
        after="states = []",
        noticed_by=RESUME,
    ),
]


def main() -> int:
    unsound, _ = red(sorted({one.noticed_by for one in MUTATIONS}))
    if unsound:
        print("does not pass on the source as it is:", *unsound, sep="\n  ")
        return 1
    survivors = 0
    for mutation in MUTATIONS:
        noticed, said = red([mutation.noticed_by], mutation)
        survivors += not noticed
        print(f"{mutation.name}: {'red' if noticed else 'SURVIVES ' + said}", *noticed, sep="\n  ", flush=True)
    return 1 if survivors else 0


def red(tests: list[str], mutation: Mutation | None = None) -> tuple[list[str], str]:
    """Which of the tests fail on a copy of the source, broken or not; and the last line that pytest said."""
    with tempfile.TemporaryDirectory(prefix="mezzotint-mutant-") as folder:
        copy = Path(folder) / "mezzotint"
        shutil.copytree(Path(mezzotint.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutation is not None:
            file = copy / mutation.file
            source = file.read_text()
            if source.count(mutation.before) != 1:
                raise SystemExit(f"{mutation.file} does not hold {mutation.before!r} once; mend the mutation")
            file.write_text(source.replace(mutation.before, mutation.after))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": folder}  # goes before the editable install
        ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        lines = ran.stdout.splitlines() or [ran.stderr]
        if ran.returncode not in (0, 1):
            raise SystemExit("\n".join(lines[-20:]))
        # with its reason: a copy that cannot even start would turn every test red
        kept = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
        skipped = [line for line in lines if line.startswith("SKIPPED ")]
        return kept, " ".join([lines[-1], *skipped])


if __name__ == "__main__":
    sys.exit(main())
