"""What makes a file survive a power cut, itself and its name. Must not know what is in it."""

import os
from pathlib import Path


def write_new(path: Path, data: bytes | memoryview) -> None:
    """Its bytes are synced when this returns; its name is not. Only its owner reads it. Raises OSError where one is."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries survive a power cut; fsync of a file does not promise its name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
