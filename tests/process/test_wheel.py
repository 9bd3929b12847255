"""What a user installs: a wheel, away from the checkout, with the model in it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import mezzotint

REPOSITORY = Path(mezzotint.__file__).parent.parent.parent


def pip(*args: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *args]
    subprocess.run(command, check=True, capture_output=True, text=True)


def test_a_wheel_draws_a_picture_outside_the_checkout(tmp_path: Path) -> None:
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, REPOSITORY)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "mezzotint/bundled/icons/unet/diffusion_pytorch_model.safetensors" in names
    assert any(name.startswith("mezzotint/store/migrations/versions/") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "training/"))]

    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", site, wheel)
    env = os.environ | {"PYTHONPATH": str(site)}
    where = [sys.executable, "-P", "-c", "import mezzotint; print(mezzotint.__file__)"]
    told = subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert Path(told.strip()).is_relative_to(site)
    draw = [sys.executable, "-P", "-m", "mezzotint", "generate", "x", "--steps", "2", "-o", "x.png"]
    done = subprocess.run(draw, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
