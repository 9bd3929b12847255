import os
import signal
from pathlib import Path

os.environ |= {"MEZZOTINT_THREADS": "1", "OMP_NUM_THREADS": "1"}  # tests run side by side, one on each core

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs behind itself inherits that it is ignored

SMALL = ("contract", "unit")  # folders of small files


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Small files last: whole files are shared out among processes, and a long one at the end would be waited for."""
    items.sort(key=lambda item: item.path.relative_to(Path(__file__).parent).parts[0] in SMALL)


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
