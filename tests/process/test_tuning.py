"""An idle server finds what runs its model fastest and goes over to it; work comes first, pictures stay the same."""

import asyncio
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from mezzotint.catalog import Catalog
from mezzotint.tuning import Choices, measure, subject
from tests.models import build_sd, build_sdxl
from tests.process.conftest import RunningServer, wait_for
from tests.process.test_cli import run

CACHE = "XDG_CACHE_HOME"


def measuring(server: RunningServer) -> list[psutil.Process]:
    """The server's children that convert or measure."""
    found = []
    for child in psutil.Process(server.process.pid).children():
        try:
            if any(part.startswith("mezzotint.engine.") for part in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found


def draw(server: RunningServer, **fields: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Pixels, the picture's record, the session."""
    session = server.client.wait(server.client.submit(prompt="a slice of pizza", seed=7, **fields)["id"])
    assert session["state"] == "succeeded", session["error"]
    picture = Image.open(io.BytesIO(server.client.image(session["id"])))
    return np.asarray(picture).astype(float), json.loads(picture.info["mezzotint"]), session


def served_by(server: RunningServer) -> dict[str, Any]:
    (model,) = (one for one in server.client.models() if one["id"] == "tiny")
    found: dict[str, Any] = model["executors"]["cpu:0"]
    return found


def test_a_measurement_that_does_not_end_is_ended(
    tmp_path: Path, random_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mezzotint.tuning.LIMIT_S", 0.2)  # its imports take longer
    catalog = Catalog([random_sd], tmp_path)
    catalog.scan()
    asked = subject(catalog, "tiny", "0" * 64, "cpu:0", Choices(tmp_path, 1))
    assert asyncio.run(measure(asked)) == "it took longer than 0.2 s"
    assert [child for child in psutil.Process().children() if "mezzotint.engine.tune" in child.cmdline()] == []


def test_an_idle_server_measures_its_model_and_goes_over_to_openvino(
    tmp_path: Path, random_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    flags = ("--models", str(random_sd), "--default-model", "tiny", "--executor", "openvino", "--dtype", "float32")
    with RunningServer(tmp_path / "data", *flags) as server:
        plain, record, session = draw(server)
        assert (record["executor"], record["dtype"]) == ("torch", "float32")
        assert (served_by(server)["executor"], served_by(server)["basis"]) == ("torch", "default")
        assert "not measured yet" in served_by(server)["reason"]

        (child,) = wait_for(lambda: measuring(server), 20)
        wait_for(lambda: child.nice() == 19, 10)
        draw(server, steps=1)
        wait_for(lambda: not measuring(server), 1)

        wait_for(lambda: served_by(server)["executor"] == "openvino", 240)
        assert served_by(server)["basis"] == "tuned"
        assert served_by(server)["ms_per_step"] > 0
        (profile,) = (tmp_path / "cache" / "mezzotint" / "profiles").glob("[0-9a-f]*.json")
        assert len(json.loads(profile.read_text())["ranking"]) == 4

        faster, record, session = draw(server)
        assert (record["executor"], record["dtype"]) == ("openvino", "float32")
        assert "openvino" in record["versions"]
        assert (session["usage"]["executor"], session["usage"]["dtype"]) == ("openvino", "float32")
        assert np.abs(faster - plain).mean() <= 0.5

        exact, record, _ = draw(server, deterministic=True)
        assert record["executor"] == "torch"
        assert np.array_equal(exact, plain)

        os.kill(server.worker_pid(), signal.SIGKILL)
        again, record, session = draw(server)
        assert record["executor"] == "openvino"
        assert np.abs(again - plain).mean() <= 0.5

        # Spoilt graphs: torch serves at once and says why; the idle server makes them anew.
        (graphs,) = (tmp_path / "cache" / "mezzotint" / "openvino").iterdir()
        (graphs / "unet.bin").write_bytes(b"spoilt")
        os.kill(server.worker_pid(), signal.SIGKILL)
        _, record, session = draw(server)
        assert record["executor"] == "torch"
        wait_for(lambda: served_by(server)["reason"] == "its graphs are not as they were made", 5)
        wait_for(lambda: served_by(server)["executor"] == "openvino", 120)
        assert draw(server)[1]["executor"] == "openvino"


@pytest.mark.parametrize("kind", ["inpainting", "sdxl"])
def test_a_model_whose_unet_takes_more_than_a_text_is_tuned(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    models = tmp_path / "models"
    build_sdxl(models / "tiny") if kind == "sdxl" else build_sd(models / "tiny", inpaints=True)
    done = run("models", "tune", "tiny", "--models", models, "--json", cwd=tmp_path, timeout_s=400)  # behind all others
    assert done.returncode == 0, done.stderr
    (profile,) = json.loads(done.stdout)
    measured = {(one["executor"], one["dtype"]): one for one in profile["ranking"]}
    for (_, dtype), one in measured.items():  # some CPUs only imitate bfloat16
        assert one["ms_per_step"] or (dtype == "bfloat16" and "times what torch takes" in one["reason"]), measured
    assert measured["openvino", "float32"]["difference"] <= 0.5


def test_generate_never_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    assert run("generate", "x", "--steps", "1", "-o", "x.png", cwd=tmp_path).returncode == 0
    made = {path.name for path in (tmp_path / "cache" / "mezzotint").iterdir()}
    assert made == {"catalog"}


def test_models_tune_refuses_what_is_not_here(tmp_path: Path) -> None:
    done = run("models", "tune", "icnos", cwd=tmp_path)
    assert (done.returncode, "did you mean 'icons'?" in done.stderr) == (2, True)
