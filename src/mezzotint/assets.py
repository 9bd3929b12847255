"""Keeps the pictures that callers send, normalised by the image child, under ids of their own. Must not decode one.

An asset never changes. Sessions link those they use into their own folders; what no session links goes after a day.
"""

import asyncio
import base64
import binascii
import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from ulid import PureRandomPolicy, ULIDGenerator

from mezzotint import image_wire as wire
from mezzotint import preprocessors
from mezzotint.disk import sync_folder
from mezzotint.errors import CallerError, Fault, InvalidRequest, MezzotintError, TryLater, not_taken
from mezzotint.image_handle import DEADLINE_S, ImageChild

log = structlog.get_logger(__name__)

UNUSED_S = 24 * 3600.0
SWEEP_S = 3600.0
MAX_REMEMBERED = 4096

# An id is all that keeps other keys from a picture; plain ULIDs of one millisecond count up from one another.
_IDS = ULIDGenerator(policy=PureRandomPolicy())
_ID = re.compile(r"ast_[0-7][0-9A-HJKMNP-TV-Z]{25}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DATA_URL = re.compile(r"data:[a-z0-9.+/-]{0,64}(;[a-z0-9=.-]{1,64})*;base64,", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]{1,16}://", re.IGNORECASE)
_PNG = struct.Struct(">8s4x4sIIBB")  # signature, IHDR, width, height, bits, kind of colour
_CHANNELS = {0: 1, 2: 3}
_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP})


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """A normalised picture on disk: 3 channels are RGB, 1 is a mask (white = repaint); 8 bits each."""

    id: str
    width: int
    height: int
    channels: int
    bytes: int
    sha256: str


def new_id() -> str:
    """Of an asset: nobody can guess it."""
    return f"ast_{_IDS.generate()}"


class Assets:
    """Files below `root`, named by asset id, which never is anything else than one before a path is made of it."""

    def __init__(self, root: Path, max_bytes: int = 32 << 20, deadline_s: float = DEADLINE_S) -> None:
        self._root, self._max_bytes = root, max_bytes
        self.child = ImageChild(root, deadline_s)
        self._known: dict[str, Asset] = {}
        self._under_way: set[str] = set()
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Warm the child and sweep each hour from now on. Without it, the first picture starts the child."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.child.start()
        self._sweeping = asyncio.create_task(self._sweep_now_and_then(), name="sweep assets")

    async def close(self) -> None:
        """End the child. Pictures that it is at are refused with TryLater."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await self.child.close()

    async def put(
        self,
        data: bytes,
        role: wire.Role,
        *,
        field: str | None = None,
        size: tuple[int, int] | None = None,
        inverted: bool = False,
        rounded: bool = False,
    ) -> Asset:
        """Normalise a PNG, JPEG or WebP and keep it; once this returns it would survive a power cut. The last three
        are for masks, as `image_wire.Keep` has them.

        Raises InvalidRequest `invalid_image` naming `field`, TryLater `storage_full` or `not_ready`.
        """
        if len(data) > self._max_bytes:
            raise _invalid(f"the picture has {len(data)} bytes; at most {self._max_bytes} are taken", field)
        asset_id = new_id()
        return await self._make(
            wire.Keep(asset_id=asset_id, role=role, size=size, inverted=inverted, rounded=rounded), data, field
        )

    async def look(self, data: bytes, role: wire.Role, *, field: str | None = None) -> Asset:
        """The facts of a picture as `put` would keep it, with nothing kept. Raises as `put` does."""
        asset = await self.put(data, role, field=field)
        self._known.pop(asset.id, None)
        await asyncio.to_thread(self.path(asset.id).unlink, missing_ok=True)
        return asset

    async def preprocess(
        self, asset_id: str, preprocessor: str, options: Mapping[str, Any] | None = None, *, path: str = ""
    ) -> Asset:
        """A control map of an asset, as a new one; `none` gives the same. `path` goes before the fields of faults.

        Raises InvalidRequest with every fault, CallerError `asset_not_found`, TryLater.
        """
        if found := preprocessors.faults(preprocessor, options or {}, path):
            raise InvalidRequest(found)
        source = self.find(asset_id)
        if source is None:
            raise _gone(asset_id)
        if preprocessor == "none":
            return source
        message = wire.Preprocess(
            asset_id=new_id(),
            source_id=source.id,
            preprocessor=preprocessor,
            options=preprocessors.complete(preprocessor, options or {}),
        )
        return await self._make(message, b"", f"{path}image")

    async def upscale(
        self, source: Asset, size: tuple[int, int], *, crops: bool, methods: tuple[str, str], share: float
    ) -> Asset:
        """An asset at another size, as a new one; see `image_wire.Upscale`. Raises InvalidRequest, TryLater."""
        message = wire.Upscale(
            asset_id=new_id(),
            source_id=source.id,
            size=size,
            crops=crops,
            method=methods[0],
            second=methods[1],
            share=share,
        )
        return await self._make(message, b"", "image")

    def find(self, asset_id: str) -> Asset | None:
        """Facts of an asset, from its file's header; None for any text that is not the id of one.

        The first time after a start it also reads the file through once, for its digest.
        """
        if not _ID.fullmatch(asset_id):
            return None
        try:
            with self._open(asset_id) as file:
                known = self._known.get(asset_id) or _facts(asset_id, file)
        except FileNotFoundError:
            self._known.pop(asset_id, None)
            return None
        return self._remember(known) if known else None

    def path(self, asset_id: str) -> Path:
        """Where the PNG of an asset is, if there is one. Does not look. Raises ValueError for what is not an id."""
        if not _ID.fullmatch(asset_id):
            raise ValueError(f"{asset_id[:80]!r} is not an asset id")
        return self._root / wire.file_name(asset_id)

    def read_source(self, text: str, field: str | None = None) -> bytes | str:
        """A request's picture value: bytes of base64 or a data URL, or the id that `asset:` names, unseen.

        Raises InvalidRequest `invalid_image`. What it decodes is no larger than this server takes.
        """
        text = text.strip()
        if text.startswith("asset:"):
            asset_id = text.removeprefix("asset:")
            if not _ID.fullmatch(asset_id):
                raise _invalid(f"{text[:80]!r} is not asset:ast_..., as POST /api/assets answers", field)
            return asset_id
        if _URL.match(text):
            raise _invalid(
                "URLs are not fetched; upload the picture to /api/assets and send asset:{id}, or send base64", field
            )
        if text[:5].lower() == "data:":
            header = _DATA_URL.match(text)
            if header is None:
                raise _invalid("a data URL must be data:image/png;base64,... with the picture after the comma", field)
            text = text[header.end() :]
        elif _looks_like_a_path(text):
            raise _invalid(
                f"{text[:64]!r} looks like a file path, and files of the server are not read; "
                "send the file's content as base64, or upload it to /api/assets",
                field,
            )
        if len(text) * 3 // 4 > self._max_bytes + 2:
            raise _invalid(f"the picture is over {self._max_bytes} bytes, the most that is taken", field)
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise _invalid("it is not base64; send the whole file as base64, or upload it to /api/assets", field) from (
                error
            )
        if not data:
            raise _invalid("the picture is empty; send a PNG, JPEG or WebP as base64", field)
        return data

    async def link(self, asset_id: str, folder: Path, name: str) -> Path:
        """Give a session its own name for an asset, `folder/name`, which stays whatever happens to the asset.

        Once this returns it would survive a power cut. Repeating it is harmless. Raises CallerError `asset_not_found`,
        TryLater, and ValueError when asset_id or name is not one.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is not a file name")
        return await asyncio.to_thread(self._link, asset_id, self.path(asset_id), folder, name)

    def sweep(self, now: float | None = None) -> int:
        """Remove what cut-off puts left behind, and what has been unused for a day. Counts both. Blocks."""
        old, count = (time.time() if now is None else now) - UNUSED_S, 0
        for entry in list(os.scandir(self._root)) if self._root.exists() else []:
            with contextlib.suppress(FileNotFoundError):  # it was put under its name, or another call removed it
                facts = entry.stat(follow_symlinks=False)
                asset_id = entry.name.removeprefix(".").removesuffix(".tmp")
                is_stray = entry.name.endswith(".tmp") and asset_id not in self._under_way
                is_unused = entry.name.endswith(".png") and facts.st_nlink == 1 and facts.st_mtime < old
                if is_stray or is_unused:
                    os.unlink(entry.path)
                    count += 1
        return count

    async def _sweep_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await asyncio.to_thread(self.sweep)
            except Exception:
                log.exception("unused pictures cannot be removed")  # the loop must outlive any single fault

    async def _make(self, message: wire.ToChild, data: bytes, field: str | None) -> Asset:
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise not_taken("pictures", error) from error
        self._under_way.add(message.asset_id)
        try:
            answer = await self.child.ask(message, data)
        finally:
            self._under_way.discard(message.asset_id)
        if isinstance(answer, wire.Kept):
            return self._remember(
                Asset(
                    id=message.asset_id,
                    width=answer.width,
                    height=answer.height,
                    channels=answer.channels,
                    bytes=answer.bytes,
                    sha256=answer.sha256,
                )
            )
        with contextlib.suppress(OSError):  # the disk may fail at this too
            (self._root / wire.temporary_name(message.asset_id)).unlink(missing_ok=True)  # a killed child's
        if answer.code == "invalid_image":
            raise _invalid(answer.message, field)
        if answer.code in ("storage_full", "not_ready"):
            raise TryLater(answer.message, code=answer.code, retry_after_s=10)
        raise MezzotintError(answer.message, code="internal")

    def _remember(self, asset: Asset) -> Asset:
        if asset.id not in self._known and len(self._known) >= MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[asset.id] = asset
        return asset

    def _open(self, asset_id: str) -> io.BufferedReader:
        return open(os.open(self.path(asset_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")

    def _link(self, asset_id: str, source: Path, folder: Path, name: str) -> Path:
        temporary = folder / f".{secrets.token_hex(8)}.tmp"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(folder.parent)
            try:
                os.link(source, temporary, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._copy(asset_id, temporary)
            temporary.rename(folder / name)
            sync_folder(folder)
        except FileNotFoundError as error:
            raise _gone(asset_id) from error
        except OSError as error:
            raise not_taken("pictures", error) from error
        finally:
            with contextlib.suppress(OSError):  # the disk may fail at this too
                temporary.unlink(missing_ok=True)  # rename leaves it where both were the same file already
        return folder / name

    def _copy(self, asset_id: str, target: Path) -> None:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as copy, self._open(asset_id) as file:
            shutil.copyfileobj(file, copy)
            copy.flush()
            os.fsync(copy.fileno())


def _facts(asset_id: str, file: io.BufferedReader) -> Asset | None:
    """None when it is not a PNG as the image child writes them."""
    header = file.read(_PNG.size)
    if len(header) < _PNG.size:
        return None
    signature, chunk, width, height, bits, colour = _PNG.unpack(header)
    if (signature, chunk, bits) != (b"\x89PNG\r\n\x1a\n", b"IHDR", 8) or colour not in _CHANNELS:
        return None
    file.seek(0)
    return Asset(
        id=asset_id,
        width=width,
        height=height,
        channels=_CHANNELS[colour],
        bytes=os.fstat(file.fileno()).st_size,
        sha256=hashlib.file_digest(file, "sha256").hexdigest(),
    )


def _looks_like_a_path(text: str) -> bool:
    """Base64 has no dot, tilde or backslash, and of pictures only a JPEG begins with a slash, as `/9j/`."""
    if len(text) >= 4096 or text.startswith("/9j/"):
        return False
    return text.startswith("/") or any(mark in text for mark in ".~\\")


def _invalid(message: str, field: str | None) -> InvalidRequest:
    shown = f"{field}: {message}" if field else message
    return InvalidRequest([Fault(field=field, code="invalid_image", message=shown)])


def _gone(asset_id: str) -> CallerError:
    message = f"asset {asset_id[:64]!r} is not here; assets that no session uses go after {UNUSED_S / 3600:g} hours"
    return CallerError(message, code="asset_not_found")
