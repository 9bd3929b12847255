"""What makes a file survive a power cut, itself and its name. Must not know what is in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_new(path: Path, data: bytes | memoryview) -> None:
    """Its bytes are synced when this returns; its name is not. Only its owner reads it. Raises OSError where one is."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A file beside it, to be written: it takes the place of `path` afterwards. Where anything fails it is removed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)  # of a process that was killed
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        with suppress(OSError):  # the disk may fail at this too
            draft.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries survive a power cut; fsync of a file does not promise its name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
