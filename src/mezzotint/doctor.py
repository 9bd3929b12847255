"""Looks at what a server needs from this machine. Must not change anything, or start a worker."""

import os
import shutil
import sqlite3
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from mezzotint import devices
from mezzotint.catalog import Catalog
from mezzotint.config import Settings

MIN_DISK_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    check: str
    ok: bool
    found: str


def examine(settings: Settings) -> list[Finding]:
    return [
        _python(),
        *_packages(),
        _sqlite(),
        _data(settings.data),
        _disk(settings.data),
        _memory(),
        _devices(settings),
        *_models(settings),
    ]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(check="python", ok=sys.version_info >= (3, 11), found=f"{version}; 3.11 or newer is needed")


def _packages() -> list[Finding]:
    found = []
    for name in ("torch", "diffusers", "safetensors"):
        try:
            found.append(Finding(check=name, ok=True, found=metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append(Finding(check=name, ok=False, found="missing; install mezzotint again"))
    return found


def _sqlite() -> Finding:
    version = sqlite3.sqlite_version
    safe = sqlite3.sqlite_version_info >= (3, 51, 3)
    advice = (
        "" if safe else "; before 3.51.3 two processes must not checkpoint one database at once (one server a folder)"
    )
    return Finding(check="sqlite", ok=True, found=version + advice)


def _data(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    found = f"{folder}" if writable else f"{existing} cannot be written; choose another with --data"
    return Finding(check="data folder", ok=writable, found=found)


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return Finding(
        check="disk", ok=free >= MIN_DISK_BYTES, found=f"{free / 2**30:.1f} GiB free; 1 GiB or more is needed"
    )


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / 2**30:.1f} GiB available of {memory.total / 2**30:.1f} GiB"
    return Finding(check="memory", ok=memory.available >= 1 << 30, found=found)


def _devices(settings: Settings) -> Finding:
    there = settings.devices or devices.find()
    if all(one.startswith("cpu") for one in there):
        return Finding(check="devices", ok=True, found=", ".join(there))
    import torch  # takes a second or two, and who asks for no other device need not wait for it

    seen = torch.cuda.device_count()
    lost = [one for one in there if one.startswith("cuda") and int(one.partition(":")[2]) >= seen]
    has = f"torch {torch.__version__} sees {seen} CUDA devices"
    advice = f"; {has}: install a torch for the driver, or set devices=cpu:0" if lost else ""
    return Finding(check="devices", ok=not lost, found=", ".join(there) + advice)


def _models(settings: Settings) -> list[Finding]:
    catalog = Catalog(settings.models, settings.cache)
    catalog.scan()
    folders = [
        Finding(check=f"models folder {root}", ok=root.is_dir(), found="there" if root.is_dir() else "is no folder")
        for root in settings.models
    ]
    found = [
        Finding(
            check=f"model {model.id}", ok=model.state != "invalid", found=model.reason or model.family or model.kind
        )
        for model in catalog.models.values()
    ]
    if settings.default_model in catalog.checkpoints:
        return [*folders, *found]
    there = ", ".join(catalog.checkpoints) or "none"
    missing = f"{settings.default_model!r} is no checkpoint here, and requests may name none; there are: {there}"
    return [*folders, *found, Finding(check="default model", ok=False, found=missing)]
