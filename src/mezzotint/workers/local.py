"""A worker as a child process of this one, on a socketpair. Must not interpret what a worker says about sessions."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from mezzotint import children, failpoints
from mezzotint.workers import wire
from mezzotint.workers.limits import own_memory

log = structlog.get_logger(__name__)

# What a worker's environment may hold of ours. Secrets are not on this list.
_KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "PYTHONPATH",
)
_SET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # Keep freed pages: glibc gives them back after every layer otherwise, and faults them in again. What is larger than
    # 32 MiB, the most that it takes for small, comes in pages of 2 MiB: a thirtieth of the faults (decision 002).
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # A thread without work looks for more for a sixth of a millisecond (decision 007), which outlasts the gaps within a
    # model call. Unset it is 30 times as long: then its core is not free either for what happens between two calls.
    "GOMP_SPINCOUNT": "10000",
}


class LocalWorker:
    """One child process that owns one device. Made by `start`; ends once, by `on_end` and then `on_exit`."""

    def __init__(self, worker_id: str, device: str, process: children.Process, streams: children.Streams) -> None:
        """Of a child that runs; `listen` comes next."""
        self.id = worker_id
        self.device = device
        self.started = time.monotonic()
        self._last_heard = time.monotonic()
        self._is_heard = False  # one of its messages is being handled
        self.alive = True  # until its socket closes or we kill it
        self.hello: wire.Hello | None = None
        self.heartbeat: wire.Heartbeat | None = None
        self.models: dict[str, wire.ModelRef] = {}  # by id: as it was last told to load them
        self.keeps: tuple[str, ...] = ()  # what it was last told to keep
        self.drawn: dict[str, wire.Submit] = {}  # by model id: the last it was given
        self._process = process
        self._reader, self._writer = streams
        self._listening: asyncio.Task[None]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def own_bytes(self) -> int:
        """Memory that it shares with no file."""
        return own_memory(self.pid)

    @property
    def silent_s(self) -> float:
        """Without a word from it. What it says waits while an earlier message is handled: that is no silence of its."""
        return 0.0 if self._is_heard else time.monotonic() - self._last_heard

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self.started

    @classmethod
    async def start(
        cls,
        worker_id: str,
        device: str,
        threads: int,
        memory_bytes: int,
        on_message: Callable[["LocalWorker", wire.FromWorker, bytes], Awaitable[None]],
        on_end: Callable[["LocalWorker"], Awaitable[None]],
        on_exit: Callable[["LocalWorker", str], Awaitable[None]],
        *,
        is_spare: bool = False,
    ) -> "LocalWorker":
        """Spawn it and begin to listen. Messages arrive in order, one at a time, until `on_end`: it is dead, or soon
        will be, and nobody hears it any more. `on_exit`, with the reason, is the last call: the process is gone.

        A spare makes way for others until it is given a session.
        """
        process, streams = await children.start_connected(
            "mezzotint.workers.main",
            *("--device", device, "--threads", str(threads), "--memory-bytes", str(memory_bytes)),
            *(("--spare",) if is_spare else ()),
            has_pulse=True,
            env=environment()
            | failpoints.handed_on(is_spare=is_spare)
            | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(_kernels(memory_bytes))},
        )
        worker = cls(worker_id, device, process, streams)
        worker.listen(on_message, on_end, on_exit)
        return worker

    def listen(
        self,
        on_message: Callable[["LocalWorker", wire.FromWorker, bytes], Awaitable[None]],
        on_end: Callable[["LocalWorker"], Awaitable[None]],
        on_exit: Callable[["LocalWorker", str], Awaitable[None]],
    ) -> None:
        """Begin to hear it. Once; `start` does it."""
        self._listening = asyncio.create_task(self._listen(on_message, on_end, on_exit), name=f"{self.id} listen")

    def send(self, message: wire.ToWorker, blob: bytes = b"") -> None:
        """Queue a message. Lost without an error when the worker is dying: `on_end` follows."""
        if not self._writer.is_closing():
            self._writer.write(wire.frame(message, blob))
        match message:
            case wire.Submit():
                self.models[message.model.id], self.drawn[message.model.id] = message.model, message
            case wire.Practise():
                self.drawn[message.submit.model.id] = message.submit
            case wire.Keep():
                self.keeps = message.names
            case wire.Load():
                self.models[message.model.id] = message.model
            case wire.Unload():
                self.models.pop(message.model_id, None)

    def kill(self) -> None:
        """SIGKILL. `on_end` follows."""
        self.alive = False
        children.kill(self._process)

    def leave(self) -> None:
        """Hear it no more, though it was killed and is still there. `on_end` follows; `on_exit` once it is gone."""
        self._writer.close()
        self._reader.feed_eof()

    async def wait(self) -> None:
        """Until it is gone and `on_exit` has returned. May be given up."""
        await asyncio.shield(asyncio.gather(self._listening, return_exceptions=True))

    async def _listen(
        self,
        on_message: Callable[["LocalWorker", wire.FromWorker, bytes], Awaitable[None]],
        on_end: Callable[["LocalWorker"], Awaitable[None]],
        on_exit: Callable[["LocalWorker", str], Awaitable[None]],
    ) -> None:
        reader = self._reader
        telling = children.each_line(self._process, lambda line: log.info("worker said", worker=self.id, line=line))
        stderr = asyncio.create_task(telling, name=f"{self.id} stderr")
        why = ""
        try:
            while True:
                lengths = wire.lengths(await reader.readexactly(wire.HEAD_BYTES))
                body = await reader.readexactly(lengths[0])
                blob = await reader.readexactly(lengths[1]) if lengths[1] else b""
                message = wire.decode_from_worker(body)
                self._is_heard = True
                await on_message(self, message, blob)
                self._is_heard, self._last_heard = False, time.monotonic()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # EOF is how a worker's death looks
        except wire.WireError as error:
            why = f"it sent what cannot be read: {error}"
        except Exception:
            log.exception("a message could not be handled", worker=self.id)
            why = "what it said could not be handled"
        finally:
            self.kill()
            self._writer.close()
            try:
                await on_end(self)
            finally:
                code = await self._process.wait()
                await stderr
                await on_exit(self, why or children.exit_text(code))


def environment() -> dict[str, str]:
    """What a process that runs models is started with."""
    return children.environment(_KEPT, _SET)


def _kernels(memory_bytes: int) -> int:
    """How many of the kernels that oneDNN compiles for each new shape it keeps: about 0.2 MiB each, so that they take a
    small part of a small budget. A step of one shape needs fewer than the least."""
    return min(1024, max(128, memory_bytes // (4 << 20)))
