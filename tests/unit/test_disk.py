"""Files that take the place of older ones: whole, or nothing is left. Must not mount a disk."""

import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mezzotint import profiles
from mezzotint.catalog import Catalog
from mezzotint.errors import TryLater
from mezzotint.measurements import Measurements
from mezzotint.operations.links import LinkVerbs
from mezzotint.preferences import Preferences
from mezzotint.store import sqlite
from tests.unit.test_profiles import TORCH, profile


def _sign(folder: Path) -> None:
    parts: Any = SimpleNamespace(settings=SimpleNamespace(data=folder))
    LinkVerbs(parts).signature("ses_1", 0, 1)


WRITERS: dict[str, Callable[[Path], object]] = {
    "settings": lambda folder: Preferences(folder / "settings.json").set("tiny", {"width": 64}),
    "profile": lambda folder: profiles.write(folder, profile(TORCH)),
    "measurements": lambda folder: Measurements(folder, 1, keep=True).take_speed("cpu:0", {"float32": 1.0}),
    "digest": lambda folder: Catalog([], folder)._file_digest(Path(__file__)),
    "key": _sign,
}


@contextmanager
def full() -> Iterator[None]:
    """No file of this process can be written beyond eight bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", WRITERS)
def test_what_the_disk_does_not_take_leaves_no_draft(name: str, tmp_path: Path) -> None:
    with full(), suppress(OSError, TryLater):
        WRITERS[name](tmp_path)
    assert files(tmp_path) == []
    WRITERS[name](tmp_path)
    assert len(files(tmp_path)) == 1


def test_a_copy_of_the_database_that_the_disk_does_not_take_leaves_no_draft(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "db")) as database:
        database.execute("CREATE TABLE one (n)")
    with full(), pytest.raises((OSError, sqlite3.Error)):
        sqlite._copy(tmp_path / "db", "before-2")
    assert files(tmp_path) == ["db"]


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]
