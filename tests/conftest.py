import os
import signal
from pathlib import Path

os.environ |= {"MEZZOTINT_THREADS": "1", "OMP_NUM_THREADS": "1"}  # tests run side by side, one on each core

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs behind itself inherits that it is ignored

SMALL = ("contract", "unit")  # folders of small files
LONG = ("test_page", "test_tuning", "test_torture")  # files of minutes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files are shared out among processes: the long ones first, since one at the end would be waited for."""

    def place(item: pytest.Item) -> tuple[bool, bool]:
        return item.path.relative_to(Path(__file__).parent).parts[0] in SMALL, item.path.stem not in LONG

    items.sort(key=place)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def random_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with one random-weight Stable Diffusion, `tiny`."""
    from tests.models import build_sd

    root = tmp_path_factory.mktemp("models")
    build_sd(root / "tiny")
    return root


@pytest.fixture
def disk_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed in this process from here on, in order."""
    seen: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(descriptor: int) -> None:
        seen.append("fsync " + ("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"))
        fsync(descriptor)

    def watched_rename(self: Path, target: Path) -> Path:
        seen.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    return seen
