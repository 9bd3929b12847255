"""Keeps the bytes of pictures, each under its SHA-256 in its session's folder. Must not decode or judge them."""

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path

from mezzotint import failpoints
from mezzotint.disk import sync_folder, write_new
from mezzotint.errors import not_taken

_ID = re.compile(r"[A-Za-z0-9_]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_THUMBNAIL = ".webp"


class Blobs:
    """Files below `root`. An id or a digest that is not one is a ValueError before any path is made of it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, session_id: str, data: bytes) -> str:
        """Keep `data` and return its SHA-256 once it would survive a power cut. Repeating it is harmless.

        Raises TryLater `storage_full` or `not_ready`; then nothing new is left behind.
        """
        return await asyncio.to_thread(self._put, self.folder(session_id), data)

    async def put_thumbnail(self, session_id: str, sha256: str, data: bytes) -> None:
        """Keep a small WebP beside the picture of that SHA-256. Not synced: without it the picture itself serves."""
        await asyncio.to_thread(_replace, self.path(session_id, sha256).with_suffix(_THUMBNAIL), data)

    def thumbnail(self, session_id: str, sha256: str) -> Path | None:
        """Where the small one is; None when there is none, as for a picture that is small itself."""
        path = self.path(session_id, sha256).with_suffix(_THUMBNAIL)
        return path if path.exists() else None

    def path(self, session_id: str, sha256: str) -> Path:
        """Where the bytes are, if they were put. Does not look."""
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256[:80]!r} is not a SHA-256 in lower-case hex")
        return self.folder(session_id) / sha256

    async def delete(self, session_id: str) -> None:
        """Remove the session's folder. Not an error when there is none."""
        await asyncio.to_thread(_remove, self.folder(session_id))

    def sweep(self) -> int:
        """Remove what puts that were cut off left behind, and count it. Blocks. Not while a put may be under way."""
        strays = list(self._root.glob("*/.*.tmp"))
        for stray in strays:
            stray.unlink()
        return len(strays)

    def folders(self) -> list[str]:
        """The ids of all that have a folder. Blocks."""
        if not self._root.exists():
            return []
        with os.scandir(self._root) as found:
            return [entry.name for entry in found if _ID.fullmatch(entry.name)]

    async def keep_only(self, session_id: str, sha256s: Collection[str]) -> int:
        """Remove the session's other pictures, and count them. Not while a put may be under way for it."""
        return await asyncio.to_thread(_remove_others, self.folder(session_id), sha256s)

    def folder(self, session_id: str) -> Path:
        """Where a session's files lie. Does not look."""
        if not _ID.fullmatch(session_id):
            raise ValueError(f"{session_id[:80]!r} is not a session id")
        return self._root / session_id

    def _put(self, folder: Path, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        temporary = folder / f".{secrets.token_hex(8)}.tmp"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_new(temporary, data)
            failpoints.reached("store.tmp_written")
            temporary.rename(folder / sha256)
            failpoints.reached("store.renamed")
            sync_folder(folder)
            sync_folder(self._root)  # last: the journal of a file system has its entry by then, as a rule
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise not_taken("pictures", error) from error
        return sha256


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.rename(path)
    except OSError:  # the picture is kept; a disk without room for this one will soon say so itself
        temporary.unlink(missing_ok=True)


def _remove_others(folder: Path, sha256s: Collection[str]) -> int:
    strays = [file for file in folder.glob("*") if _SHA256.fullmatch(file.name) and file.name not in sha256s]
    for stray in strays:
        stray.unlink(missing_ok=True)
    return len(strays)


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # none, or another call is removing it
        shutil.rmtree(folder)
