"""Puts a model into a model folder: from a folder, a file or a hub. Nothing is there under its name until all of it is.

Must not use a model: what cannot be used is refused with the reason, and nothing stays behind.
"""

import re
import shutil
import tempfile
from collections.abc import Container
from pathlib import Path

from mezzotint import facts, hub
from mezzotint.config import Settings
from mezzotint.errors import Fault, InvalidRequest, SetupError
from mezzotint.facts import Model
from mezzotint.headers import PEFT_CONFIG, PEFT_WEIGHTS, beside_file


def add(
    settings: Settings,
    source: str,
    name: str | None = None,
    revision: str | None = None,
    *,
    others: Container[str] = (),
) -> Model:
    """Copy or download a model into the first of the model folders; returns its facts. Blocks. `others`: ids of models
    that are there, in whatever folder.

    Raises InvalidRequest for what is not there, cannot be used or has a name that is taken; SetupError when the network
    or the disk fails.
    """
    if not settings.models:
        raise _fault("models", "there is no model folder to add to; name one with --models or MEZZOTINT_MODELS")
    root, path = settings.models[0], Path(source)
    if not path.exists() and not hub.ID.fullmatch(source):
        raise _fault("source", f"{source[:200]!r} is no folder, no file, and no OWNER/NAME of a hub")
    own = path.resolve().name if path.exists() else source.rpartition("/")[2]
    path = facts.model_at(path) or path
    own = (name or re.sub(r"\.safetensors$", "", own, flags=re.IGNORECASE)).strip()
    if not facts.ID.fullmatch(own):
        raise _fault("name", f"{own[:64]!r} cannot be an id: letters, digits and . _ ~ - only; name one with --name")
    try:
        root.mkdir(parents=True, exist_ok=True)
        for taken in (root / own, root / f"{own}.safetensors"):
            if taken.exists():
                raise _fault("name", f"{taken} is there; remove it, or name another with --name")
        if own in others:
            raise _fault("name", f"there is a model {own!r}, which would lose its name; name this one with --name")
        if path.exists():
            _check(facts.read(path, path.parent), source)
        with tempfile.TemporaryDirectory(prefix=".adding-", dir=root) as draft:
            got = _copy(path, Path(draft)) if path.exists() else _fetch(settings, source, revision, Path(draft))
            _check(facts.read(got, Path(draft)), source)
            return facts.read(_place(got, root, own), root)
    except OSError as error:
        raise SetupError(f"{source[:200]} cannot be added to {root}: {error.strerror or error}") from error


def _check(model: Model, source: str) -> None:
    if model.state == "invalid":
        raise _fault("source", f"{source[:200]} cannot be used: {model.reason}", "model_invalid")


def _copy(path: Path, draft: Path) -> Path:
    """Links are followed by none: a link out of a model folder makes a model invalid."""
    target = draft / path.resolve().name
    if path.is_dir():
        shutil.copytree(path, target, symlinks=True)
        return target
    if path.name == PEFT_WEIGHTS and path.with_name(PEFT_CONFIG).exists():  # the two are found by their names
        target = draft / path.stem
        target.mkdir()
        shutil.copyfile(path.with_name(PEFT_CONFIG), target / PEFT_CONFIG)
        shutil.copyfile(path, target / PEFT_WEIGHTS)
    else:
        shutil.copyfile(path, target)
    if beside_file(path).exists():
        shutil.copyfile(beside_file(path), beside_file(target))
    return target


def _fetch(settings: Settings, source: str, revision: str | None, draft: Path) -> Path:
    into = draft / "got"
    into.mkdir()
    return hub.fetch(source, revision, into, settings.hub, settings.hub_hosts)


def _place(got: Path, root: Path, own: str) -> Path:
    """Move it to its name; what stands beside a file goes first, so that the model is never seen without it."""
    target = root / (own + (got.suffix.lower() if got.is_file() else ""))
    if got.is_file() and beside_file(got).exists():
        beside_file(got).rename(beside_file(target))
    got.rename(target)
    return target


def _fault(field: str, message: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest([Fault(field=field, code=code, message=message)])
