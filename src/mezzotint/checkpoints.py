"""Keeps where each unfinished image stands: the newest state in memory, now and then on disk. Must not read a state.

A checkpoint saves work and nothing else: one that is lost, torn or of another request costs steps, never a session.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import struct
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
import structlog

from mezzotint import failpoints, frames, profiles
from mezzotint.disk import sync_folder
from mezzotint.errors import TryLater, not_taken
from mezzotint.request import Request
from mezzotint.workers.wire import ModelRef

log = structlog.get_logger(__name__)

WRITE_S = 2.0
MEMORY_BYTES = 256 << 20  # of all states; what is above lies on disk only
MAX_STATE_BYTES = 8 << 20
_MAX_HEAD_BYTES = 4096

Key = tuple[str, int]  # session and image


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where one image stands. `state` is for a worker's eyes."""

    index: int
    step: int
    print: str  # of what is drawn and with what: see `fingerprint`
    dtype: str
    state: bytes


class _Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands before a state on disk."""

    session_id: str
    index: int
    step: int
    print: str
    dtype: str
    sha256: str  # of the state


def fingerprint(request: Request, refs: Sequence[ModelRef]) -> str:
    """Equal for attempts of which one can go on from the other's states: same request, models, dtype and versions.

    `refs`: the model, then its adapters in the order of the request.
    """
    versions = {name: found for name, found in profiles.versions().items() if name != "openvino"}
    parts = (request, [ref.sha256 for ref in refs], refs[0].dtype, versions)
    return hashlib.sha256(msgspec.msgpack.encode(parts, order="deterministic")).hexdigest()


class Checkpoints:
    """Files `<session>/<image>` below `root`, the one before each beside it. Call everything from one loop."""

    def __init__(self, root: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        self._root, self._memory_bytes = root, memory_bytes
        self._kept: OrderedDict[Key, Checkpoint] = OrderedDict()  # the newest last
        self._bytes = 0
        self._unwritten: set[Key] = set()
        self._gone: set[str] = set()  # sessions whose folders are to go
        self._disk = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run(), name="checkpoints")

    async def stop(self) -> None:
        """Write what is not written yet. What the disk does not take is lost."""
        self._stopping.set()
        if self._loop is not None:
            await self._loop

    def keep(self, session_id: str, checkpoint: Checkpoint) -> None:
        """In place of the image's earlier one. One over MAX_STATE_BYTES is not kept."""
        if len(checkpoint.state) > MAX_STATE_BYTES:
            return
        key = session_id, checkpoint.index
        self._let_go(key)
        self._kept[key] = checkpoint
        self._bytes += len(checkpoint.state)
        self._unwritten.add(key)

    async def of(self, session_id: str, indices: Collection[int]) -> list[Checkpoint]:
        """The newest sound checkpoint of each of these images that has one."""
        found = {index: one for index in indices if (one := self._kept.get((session_id, index))) is not None}
        missing = [index for index in indices if index not in found]
        if missing:
            async with self._disk:
                for one in await asyncio.to_thread(_read, self._root / session_id, session_id, missing):
                    found[one.index] = one
        return [found[index] for index in sorted(found)]

    async def settle(self, session_id: str) -> None:
        """On disk such that they survive a power cut, and out of memory. Raises TryLater."""
        async with self._disk:
            own = {key: one for key, one in self._kept.items() if key[0] == session_id}
            for one in own.values():
                await asyncio.to_thread(_write, self._root, session_id, one)
            await asyncio.to_thread(_sync, self._root, session_id)  # also those that memory had no room for
            for key, one in own.items():
                if self._kept.get(key) is one:
                    self._let_go(key)

    def forget(self, session_id: str) -> None:
        """The session has ended. Its files go with the next writing."""
        for key in [key for key in self._kept if key[0] == session_id]:
            self._let_go(key)
        self._gone.add(session_id)

    async def sessions(self) -> list[str]:
        """Those that an earlier process left something of. Also removes what it left half written."""
        return await asyncio.to_thread(_sweep, self._root)

    def _let_go(self, key: Key) -> None:
        before = self._kept.pop(key, None)
        if before is not None:
            self._bytes -= len(before.state)
        self._unwritten.discard(key)

    async def _run(self) -> None:
        is_last = False
        while not is_last:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_S):
                    is_last = await self._stopping.wait()
            try:
                await self._write_all()
            except (OSError, TryLater) as error:
                log.warning("checkpoints cannot be written; a restart would repeat steps", why=str(error))
            except Exception:
                log.exception("checkpoints cannot be written")  # the loop must outlive any single fault

    async def _write_all(self) -> None:
        async with self._disk:
            while self._gone:
                await asyncio.to_thread(shutil.rmtree, self._root / self._gone.pop(), ignore_errors=True)
            for key in list(self._unwritten):
                one = self._kept.get(key)
                if one is not None:  # else its session has ended meanwhile
                    await asyncio.to_thread(_write, self._root, key[0], one)
                    if self._kept.get(key) is one:
                        self._unwritten.discard(key)
            while self._bytes > self._memory_bytes:
                oldest = next(key for key in self._kept)
                if oldest in self._unwritten:
                    break
                self._let_go(oldest)


def _write(root: Path, session_id: str, one: Checkpoint) -> None:
    failpoints.reached("checkpoint.before_write")
    folder = root / session_id
    path = folder / str(one.index)
    temporary = folder / f".{one.index}.tmp"
    sha256 = hashlib.sha256(one.state).hexdigest()
    head = _Head(session_id=session_id, index=one.index, step=one.step, print=one.print, dtype=one.dtype, sha256=sha256)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(temporary, "wb", opener=_private) as file:
            file.write(frames.head(msgspec.msgpack.encode(head), one.state) + one.state)
        if path.exists():
            path.replace(_before(path))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise not_taken("checkpoints", error) from error


def _sync(root: Path, session_id: str) -> None:
    """Let a session's files survive a power cut."""
    folder = root / session_id
    try:
        for path in folder.glob("*"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if folder.exists():
            for made in (folder, root):
                sync_folder(made)
    except OSError as error:
        raise not_taken("checkpoints", error) from error


def _read(folder: Path, session_id: str, indices: Collection[int]) -> list[Checkpoint]:
    found = []
    for index in indices:
        path = folder / str(index)
        for candidate in (path, _before(path)):
            if (one := _sound(candidate, session_id, index)) is not None:
                found.append(one)
                break
    return found


def _sound(path: Path, session_id: str, index: int) -> Checkpoint | None:
    """None for what is not there, cut short, changed, or of another image."""
    try:
        data = path.read_bytes()
        length, _ = frames.lengths(data[: frames.HEAD_BYTES], _MAX_HEAD_BYTES)
        start = frames.HEAD_BYTES + length
        head = msgspec.msgpack.decode(data[frames.HEAD_BYTES : start], type=_Head)
    except FileNotFoundError:
        return None
    except (OSError, frames.WireError, msgspec.DecodeError, struct.error) as error:
        log.warning("a checkpoint cannot be read", path=path.name, session=session_id, why=str(error))
        return None
    state = data[start:]
    if (head.session_id, head.index) != (session_id, index) or hashlib.sha256(state).hexdigest() != head.sha256:
        log.warning("a checkpoint is not as it was written", path=path.name, session=session_id)
        return None
    return Checkpoint(index=index, step=head.step, print=head.print, dtype=head.dtype, state=state)


def _sweep(root: Path) -> list[str]:
    for stray in root.glob("*/.*.tmp"):
        stray.unlink()
    return sorted(folder.name for folder in root.glob("*"))


def _before(path: Path) -> Path:
    return path.with_name(f"{path.name}.before")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
