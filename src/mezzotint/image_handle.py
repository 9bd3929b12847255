"""The image child as the API process sees it: asked one thing at a time, killed when it hangs, replaced when it dies.

Must not look into a picture.
"""

import asyncio
from pathlib import Path

import structlog

from mezzotint import children
from mezzotint import image_wire as wire
from mezzotint.errors import TryLater

log = structlog.get_logger(__name__)

DEADLINE_S = 20.0  # for one picture, without the time it waits for its turn
START_S = 60.0  # imports from a cold disk
GONE_S = 10.0  # that a killed one may take to end: a disk may hold it, and then for ever
LOSSES = 2  # a child may die of something else than the picture, so each gets a second try
MAX_WAITING = 64
MAX_WAITING_BYTES = 256 << 20

# All that its environment holds of ours. No secrets, no paths of ours but the one of the code.
_KEPT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH")
_SET = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class ImageChild:
    """The one image child of a server. Started by the first question, or before it by `start`."""

    def __init__(self, folder: Path, deadline_s: float = DEADLINE_S) -> None:
        self._folder, self._deadline_s = folder, deadline_s
        self._turn = asyncio.Lock()
        self._child: asyncio.Task[_Child] | None = None
        self._waiting = self._waiting_bytes = 0
        self._closed = False

    def start(self) -> None:
        """Begin to start it. Does not wait."""
        if self._child is None or (self._child.done() and not _is_up(self._child)):
            self._child = asyncio.create_task(_Child.start(self._folder), name="start image child")

    async def pid(self) -> int:
        """Of the child that would take the next question."""
        return (await self._ready()).process.pid

    async def ask(self, message: wire.ToChild, blob: bytes = b"") -> wire.Kept | wire.Refused:
        """The child's answer. A picture that it hangs on, or dies of twice, is refused as invalid_image.

        Raises TryLater when too many wait or the child cannot start. A caller who leaves meanwhile disturbs nobody.
        """
        is_full = self._waiting >= MAX_WAITING or self._waiting_bytes + len(blob) > MAX_WAITING_BYTES
        if self._waiting and is_full:
            raise TryLater(f"{self._waiting} pictures wait to be read already", code="not_ready", retry_after_s=2)
        self._waiting += 1
        self._waiting_bytes += len(blob)
        return await asyncio.shield(self._ask(message, blob))

    async def close(self) -> None:
        """End it at once. Whoever waits for an answer gets TryLater."""
        self._closed = True
        await self._end()

    async def _ask(self, message: wire.ToChild, blob: bytes) -> wire.Kept | wire.Refused:
        try:
            async with self._turn:
                for _ in range(LOSSES):
                    child = await self._ready()
                    try:
                        async with asyncio.timeout(self._deadline_s):
                            return await child.exchange(message, blob)
                    except TimeoutError:
                        await self._replace(f"silent for {self._deadline_s:g} s")
                        text = "it took too long to decode; save it anew or send a smaller one"
                        return wire.Refused(code="invalid_image", message=text)
                    except (asyncio.IncompleteReadError, ConnectionError, wire.WireError):
                        await self._replace("it died of a picture, or was killed")
            text = "it cannot be decoded: the decoder ended on it; save it anew or send a smaller one"
            return wire.Refused(code="invalid_image", message=text)
        finally:
            self._waiting -= 1
            self._waiting_bytes -= len(blob)

    async def _ready(self) -> "_Child":
        if self._closed:
            raise _stopping()
        self.start()
        assert self._child is not None  # noqa: S101  invariant: start made it
        try:
            return await asyncio.shield(self._child)
        except asyncio.CancelledError:
            if self._closed:  # it was the start that was cancelled, not we
                raise _stopping() from None
            raise
        except (asyncio.IncompleteReadError, OSError, wire.WireError) as error:  # OSError: time-outs too
            log.error("the image child does not start", why=type(error).__name__)
            message = "pictures cannot be read now: their decoder does not start; the server's log says why"
            raise TryLater(message, code="not_ready", retry_after_s=10) from error

    async def _replace(self, why: str) -> None:
        await self._end()
        if not self._closed:
            log.warning("image child lost", why=why)
            self.start()

    async def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.done() and not child.cancelled() and child.exception() is None:
            await child.result().end()
        else:
            child.cancel()  # it ends what it had begun
            await asyncio.gather(child, return_exceptions=True)


class _Child:
    """One process, from its Hello to its end."""

    def __init__(self, process: children.Process, streams: children.Streams) -> None:
        self.process = process
        self._reader, self._writer = streams
        telling = children.each_line(process, lambda line: log.warning("image child said", line=line))
        self._telling = asyncio.create_task(telling, name="image child stderr")

    @classmethod
    async def start(cls, folder: Path) -> "_Child":
        """Spawn it and wait for its Hello. Raises OSError, WireError or IncompleteReadError; then nothing is left."""
        env = children.environment(_KEPT, _SET)
        child = cls(*await children.start_connected("mezzotint.image_child", "--folder", str(folder), env=env))
        try:
            async with asyncio.timeout(START_S):
                if not isinstance(await child._receive(), wire.Hello):
                    raise wire.WireError("it did not greet")
        except BaseException:
            await child.end()
            raise
        return child

    @property
    def is_up(self) -> bool:
        return self.process.returncode is None and not self._reader.at_eof()

    async def exchange(self, message: wire.ToChild, blob: bytes) -> wire.Kept | wire.Refused:
        """Raises IncompleteReadError or ConnectionError when it dies first, WireError when it talks nonsense."""
        self._writer.write(wire.head(message, blob))
        self._writer.write(blob)
        await self._writer.drain()
        answer = await self._receive()
        if isinstance(answer, wire.Hello):
            raise wire.WireError("it greeted twice")
        return answer

    async def end(self) -> None:
        """SIGKILL; returns when nothing of it is left, or when it does not end within `GONE_S`."""
        children.kill(self.process)
        self._writer.close()
        try:
            async with asyncio.timeout(GONE_S):
                await self.process.wait()
                await self._telling
        except TimeoutError:
            log.error("a killed image child does not end; it is left behind", pid=self.process.pid)

    async def _receive(self) -> wire.FromChild:
        message, blob = wire.lengths(await self._reader.readexactly(wire.HEAD_BYTES))
        return wire.decode_from_child((await self._reader.readexactly(message + blob))[:message])


def _stopping() -> TryLater:
    return TryLater("the server is stopping", code="not_ready", retry_after_s=10)


def _is_up(started: "asyncio.Task[_Child]") -> bool:
    return not started.cancelled() and started.exception() is None and started.result().is_up
