"""The models on disk: scans the model folders, gives each an id, knows their digests.

What a single folder or file holds is told by facts.py. Must not import torch or map a tensor. A model that cannot be
used is listed with the reason, never hidden.
"""

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mezzotint import facts
from mezzotint.disk import draft_of
from mezzotint.facts import TYPES as TYPES
from mezzotint.facts import LoraDefaults as LoraDefaults
from mezzotint.facts import Model as Model
from mezzotint.facts import fitting as fitting
from mezzotint.headers import COMPONENT_SUFFIXES, lora_file, told_beside, walk, weight_files
from mezzotint.preferences import Preferences, can_draw, most_steps

BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_MODEL = "icons"
MAX_THUMBNAIL_BYTES = 4 * 1024 * 1024
HASHED_AT_ONCE_BYTES = 4 * 1024 * 1024

_TENSORS = "\0tensors"
_DIGEST = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """One file of a model, hashed now."""

    file: str
    sha256: str
    before: str | None  # what the same name, size and time stood for; None: not hashed before

    @property
    def ok(self) -> bool:
        return self.before in (None, self.sha256)


class Catalog:
    """What the model folders hold. `scan` may be called again at any time; readers see the old facts or the new."""

    def __init__(self, roots: Iterable[Path], cache: Path, preferences: Preferences | None = None) -> None:
        """`preferences`: what was set for single models; it wins over what they say of themselves."""
        self._preferences = preferences or Preferences(None)
        self._roots = (*roots, BUNDLED)
        self._cache = cache / "catalog"
        self._scanning = threading.Lock()
        self._hashing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest", initializer=_give_way)
        self._closed = threading.Event()
        self._read: dict[Path, Model] = {}  # as last read, before ids are settled
        self.models: Mapping[str, Model] = {}
        self.own: Mapping[str, Model] = {}  # the same without what was set for them

    def scan(self) -> bool:
        """Read every root, and of each only what has changed. True when anything did. Blocks on the disk."""
        with self._scanning:
            paths = {path: root for root in self._roots for path in _candidates(root)}
            self._read = {
                path: _unchanged(self._read.get(path), path) or facts.read(path, paths[path]) for path in paths
            }
            own: dict[str, Model] = {}
            for model in self._read.values():
                named = replace(model, id=f"{model.id}~{self._apart(model)}") if model.id in own else model
                own[named.id] = named
            set_ones = {name: _as_set(model, self._preferences.of(name)) for name, model in own.items()}
            found = {name: _with_vae(model, own) for name, model in set_ones.items()}
            changed = found != self.models
            self.own, self.models = own, found
            return changed

    @property
    def checkpoints(self) -> list[str]:
        """Ids of those that can draw, in order."""
        return sorted(one.id for one in self.models.values() if one.kind == "checkpoint" and one.state == "ready")

    def prefer(self, model_id: str, changes: Mapping[str, Any]) -> None:
        """Set what a model is to use by default, on disk when it returns; None takes a setting back."""
        self._preferences.set(model_id, changes)
        self.scan()

    def preferred(self, model_id: str) -> Mapping[str, Any]:
        return self._preferences.of(model_id)

    def verify(self, model: Model) -> list[Checked]:
        """Hash every file anew. Raises OSError."""
        return self._hashing.submit(self._check_all, Path(model.path)).result()

    def digest(self, model: Model) -> str:
        """SHA-256 over the model's files, 64 hex digits; cached by path, size and time. Blocks: hashes once.

        Raises OSError when it is gone or cannot be read.
        """
        return self.hashing(model).result()

    def hashing(self, model: Model) -> Future[str]:
        """What `digest` waits for. One model is hashed at a time, which takes a large one half a minute and more."""
        return self._hashing.submit(self._digest_of, model)

    def close(self) -> None:
        """What is being hashed is given up."""
        self._closed.set()
        self._hashing.shutdown(wait=True, cancel_futures=True)

    def tensors_digest(self, model_id: str) -> str:
        """SHA-256 over what stands behind a LoRA file's header, by which programs know it however it is described.

        Empty as long as `digest` was not asked for, when it is gone, and for other models.
        """
        model = self.models.get(model_id)
        if model is None or model.kind != "lora":
            return ""
        try:
            return self._noted(lora_file(Path(model.path)), _TENSORS) or ""
        except OSError:
            return ""

    def vae(self, model_id: str) -> tuple[str, str]:
        """Name of the file or folder that a model's autoencoder comes from, empty when it is its own; and the SHA-256
        of those weights, by which programs know them: empty as `tensors_digest` is, and when they are several files.
        """
        model = self.models.get(model_id)
        if model is None or not model.vae:
            return "", ""
        path = Path(model.vae_path)
        files = [path] if path.is_file() else weight_files(path)
        try:
            return path.name, (self._noted(files[0]) or "") if len(files) == 1 else ""
        except OSError:
            return path.name, ""

    def known_digest(self, model_id: str) -> str | None:
        """The digest when all that it takes was hashed before; None when it would have to be hashed now, or is gone."""
        model = self.models.get(model_id)
        if model is None:
            return None
        try:
            files = [*model_files(Path(model.path)), *(model_files(Path(model.vae_path)) if model.vae else [])]
            is_noted = all(map(self._noted, files))
            if model.kind == "lora":
                is_noted = is_noted and self._noted(lora_file(Path(model.path)), _TENSORS) is not None
            return self._digest_of(model) if is_noted else None
        except OSError:
            return None

    def _apart(self, model: Model) -> str:
        """What tells a model from an earlier one of its name: of one that cannot be used, its place."""
        if model.state == "ready":
            return self._hashing.submit(self._digest_all, Path(model.path)).result()[:8]
        return hashlib.sha256(os.fsencode(model.path)).hexdigest()[:8]

    def _digest_of(self, model: Model) -> str:
        own = self._digest_all(Path(model.path))
        if model.kind == "lora":
            self._file_digest(lora_file(Path(model.path)), _TENSORS)
        if not model.vae:
            return own
        return hashlib.sha256(f"{own}\0{self._digest_all(Path(model.vae_path))}".encode()).hexdigest()

    def _digest_all(self, path: Path) -> str:
        total, files = hashlib.sha256(), model_files(path)
        if not files:
            raise FileNotFoundError(f"{path} has gone")
        if files == [path]:
            return self._file_digest(path)  # by which other programs and the hubs know it
        for file in files:
            relative = file.relative_to(path).as_posix() if path.is_dir() else file.name
            total.update(f"{relative}\0{self._file_digest(file)}\n".encode())
        return total.hexdigest()

    def _check_all(self, path: Path) -> list[Checked]:
        found = []
        for file in model_files(path):
            before, now = self._noted(file), self._hash(file)
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            found.append(Checked(file=name, sha256=now, before=before))
            if before is None:
                self._file_digest(file)
        return found

    def _noted(self, path: Path, part: str = "") -> str | None:
        note = self._note(path, part)
        known = note.read_bytes() if note.exists() else b""
        return known.decode() if _DIGEST.fullmatch(known) else None

    def _file_digest(self, path: Path, part: str = "") -> str:
        if (known := self._noted(path, part)) is not None:
            return known
        note, found = self._note(path, part), self._hash(path, part)
        with contextlib.suppress(OSError):  # who comes next hashes again: the model itself is as usable as ever
            self._cache.mkdir(parents=True, exist_ok=True)
            with draft_of(note) as draft:
                draft.write_text(found)
        return found

    def _hash(self, path: Path, part: str = "") -> str:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            if part == _TENSORS:
                file.seek(8 + int.from_bytes(file.read(8), "little"))
            while piece := file.read(HASHED_AT_ONCE_BYTES):
                if self._closed.is_set():
                    raise InterruptedError(f"{path} was not hashed to its end")
                digest.update(piece)
        return digest.hexdigest()

    def _note(self, path: Path, part: str) -> Path:
        """Where the digest of a file, or of a part of it, is remembered, by its path, size and time."""
        stat = path.stat()
        key = hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}{part}".encode()).hexdigest()
        return self._cache / key


def model_files(path: Path) -> list[Path]:
    """The files that make a model what it is, in order."""
    if path.is_file():
        return [path, *told_beside(path)]
    return sorted(file for file in walk(path) if file.suffix in COMPONENT_SUFFIXES)


def thumbnail(model: Model) -> Path | None:
    """The picture by which people know a model, `NAME.png` beside its file or folder; None without one of use."""
    found = thumbnail_file(model)
    if not found.is_file() or not found.resolve().is_relative_to(found.parent.resolve()):
        return None
    return found if found.stat().st_size <= MAX_THUMBNAIL_BYTES else None


def thumbnail_file(model: Model) -> Path:
    path = Path(model.path)
    return path.with_name(f"{path.stem if path.suffix.lower() == '.safetensors' else path.name}.png")


def _candidates(root: Path) -> list[Path]:
    if (root / "model_index.json").exists():
        return [root]
    if not root.is_dir():
        return []
    found = [
        one for path in root.iterdir() if not path.name.startswith(".") and (one := facts.model_at(path)) is not None
    ]

    def place(path: Path) -> tuple[bool, Path]:
        named = facts.named_by(path, root)
        return facts.id_of(named) not in (named.name, named.stem), path  # own names first

    return sorted(found, key=place)


def _unchanged(known: Model | None, path: Path) -> Model | None:
    try:
        return known if known is not None and known.stamp and known.stamp == facts.stamp_of(path) else None
    except OSError:
        return None


def _as_set(model: Model, preferred: Mapping[str, Any]) -> Model:
    if model.kind != "checkpoint" or model.state == "invalid":
        return model
    usable = {
        name: value
        for name, value in preferred.items()
        if name not in ("width", "height") or can_draw(model, value)  # it may be set for what lay here before
    }
    now = replace(model, **usable)
    if now.num_inference_steps > most_steps(now):  # likewise
        return replace(now, scheduler=model.scheduler, num_inference_steps=model.num_inference_steps)
    return now


def _with_vae(model: Model, found: Mapping[str, Model]) -> Model:
    """The autoencoder that a model is to use, found among the others."""
    if not model.vae or model.state == "invalid":
        return model
    other = found.get(model.vae)
    if other is None or model.id not in fitting(other, [model]):
        reason = f"its setting vae names {model.vae[:64]!r}, which is no autoencoder here that fits it"
        return replace(model, state="invalid", reason=reason)
    return replace(model, vae_path=other.path, stamp=model.stamp + other.stamp)


def _give_way() -> None:
    """Hashing is for when nothing else wants the processor."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
