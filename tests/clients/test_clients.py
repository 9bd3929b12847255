"""Unmodified clients, each in its own environment and process, against one real server. `install.sh` brings them."""

import io
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models import build_controlnet, build_lora, build_sd
from tests.pictures import encoded, picture
from tests.process.conftest import RunningServer

REPOSITORY = Path(__file__).parent.parent.parent
ENVIRONMENTS = REPOSITORY / ".clients"
PROGRAMS = Path(__file__).parent / "programs"
SIZE = (32, 24)
END_S = 120


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a tiny random model, a ControlNet and a LoRA of it."""
    root = tmp_path_factory.mktemp("clients")
    tiny = build_sd(root / "models" / "tiny")
    build_controlnet(root / "models" / "tiny-canny", tiny)
    build_lora(root / "models" / "ink.safetensors", tiny)
    with RunningServer(root / "data", "--models", str(root / "models")) as running:
        running.worker_pid()
        yield running


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]"]:
    """A folder with a picture and the same mask in both dialects, and where it is to be repainted."""
    where = np.zeros(SIZE[::-1], bool)
    where[8:16, 8:20] = True
    (tmp_path / "image.png").write_bytes(encoded(picture(size=SIZE)))
    Image.fromarray(np.where(where, 255, 0).astype(np.uint8), "L").save(tmp_path / "mask.png")
    hole = Image.new("RGBA", SIZE, (0, 0, 0, 255))
    hole.putalpha(Image.fromarray(np.where(where, 0, 255).astype(np.uint8), "L"))
    hole.save(tmp_path / "hole.png")
    return tmp_path, where


@pytest.mark.parametrize("client", ["webuiapi", "sd-backend-client"])
def test_python_clients_of_automatic1111(
    client: str, served: RunningServer, pictures: tuple[Path, "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]"]
) -> None:
    python = ENVIRONMENTS / client / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{client} is not installed; tests/clients/install.sh brings it")
    run([str(python), str(PROGRAMS / f"{client.replace('-', '_')}_all.py"), served.url, str(pictures[0])])


@pytest.mark.parametrize("client", ["openai", "ai_sdk"])
def test_clients_of_openai_for_node(
    client: str, served: RunningServer, pictures: tuple[Path, "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]"]
) -> None:
    node, modules = shutil.which("node"), ENVIRONMENTS / "npm" / "node_modules"
    if node is None or not modules.exists():
        pytest.skip("Node or its clients are not installed; tests/clients/install.sh brings them")
    folder, where = pictures
    program = folder / "program.mjs"  # Node looks for modules beside the program
    program.write_bytes((PROGRAMS / f"{client}_all.mjs").read_bytes())
    (folder / "node_modules").symlink_to(modules)
    run([node, str(program), served.url, str(folder)])
    drawn = np.asarray(Image.open(io.BytesIO((folder / f"{client.partition('_')[0]}.png").read_bytes())).convert("RGB"))
    before = np.asarray(Image.open(folder / "image.png").convert("RGB"))
    changed = np.abs(drawn.astype(int) - before.astype(int)).max(axis=2)
    assert changed[~where].max() == 0
    assert changed[where].mean() > 5


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=END_S)
    assert done.returncode == 0, done.stdout + done.stderr
