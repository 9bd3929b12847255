"""What a worker process runs: it limits itself, imports torch, then feeds the engine until the socket closes.

Must not open a network connection, write a file (but for its executor's own cache), or outlive the API process.
"""

import argparse
import contextlib
import gc
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mezzotint import failpoints, profiles
from mezzotint.workers import wire
from mezzotint.workers.limits import hold_pulse, limit_myself

if TYPE_CHECKING:
    import psutil
    import torch
    from torch import Tensor

    from mezzotint.engine.engine import Engine
    from mezzotint.engine.telling import Event
    from mezzotint.families.base import Family
    from mezzotint.families.sd import StableDiffusion

log = logging.getLogger("mezzotint.worker")

HEARTBEAT_S = 1.0
BUNDLE_S = 0.25  # of progress: as often as checkpoints, with which it goes
NICENESS = 5  # the API process answers first; it needs little
_DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
WEIGHTS_SHARE = 0.5  # of the memory that a worker may take; calls need room too
CUDA_SHARE = 0.9  # of a device's memory


def main() -> None:
    args = _arguments()
    network = limit_myself(niceness=NICENESS, memory_bytes=args.memory_bytes if args.device.startswith("cpu") else None)
    hold_pulse(args.pulse)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    connection = socket.socket(fileno=args.fd)
    worker = Worker(connection, args.device, args.threads, args.memory_bytes, network, is_spare=args.spare)
    try:
        worker.run()
    except Exception:
        log.exception("the worker cannot go on")
        worker.send(wire.DeviceFailed(message=f"{type(sys.exc_info()[1]).__name__} in the step loop"))
        os._exit(1)


class Worker:
    """Couples the engine to the socket. The main thread steps; one thread reads, one tells that we live."""

    def __init__(
        self, connection: socket.socket, device: str, threads: int, memory_bytes: int, network: str, *, is_spare: bool
    ) -> None:
        self._connection = connection
        self._device_id = device
        self._threads, self._memory_bytes, self._network = threads, memory_bytes, network
        self._sending = threading.Lock()
        self._inbox: queue.SimpleQueue[tuple[wire.ToWorker, bytes] | None] = queue.SimpleQueue()
        self._engine: Engine | None = None
        self._is_spare = is_spare  # until something is for a seat
        self._is_wanted = False  # something for a seat has come
        self._refused: dict[str, str] = {}  # model -> why torch float32 runs it though another was wanted
        self._moved = self._told_phase_at = time.monotonic()
        self._rests = True  # the loop waits for a message
        self._told_at = 0.0
        self._waiting = b""  # frames that go with the next

    def run(self) -> None:
        threading.Thread(target=self._read, name="read", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        if self._is_spare:
            _behind_others(_import)
            failpoints.reached("spare.warming")
        engine = self._engine = self._start_engine()
        import torch

        with torch.inference_mode():
            self._loop(engine)

    def _loop(self, engine: "Engine") -> None:
        while True:
            while engine.idle or not self._inbox.empty():
                self._rests = True
                taken = self._inbox.get()
                self._rests = False
                self._moved = time.monotonic()
                if taken is None:
                    os._exit(0)
                self._take(engine, *taken)
            self.tell(engine.step())
            self._moved = time.monotonic()

    def send(self, message: wire.FromWorker, blob: bytes = b"") -> None:
        self._send(wire.frame(message, blob))

    def tell(self, events: "list[Event]") -> None:
        """All of a step at once, and progress of short ones in bundles: each piece would wake the API process, which
        takes a core from the next call. What has to wait goes with the next message, a heartbeat at the latest.
        """
        now = time.monotonic()
        waits = now - self._told_at < BUNDLE_S and all(isinstance(message, wire.Progress) for message, _ in events)
        if not waits:
            self._told_at = now
        self._send(b"".join(wire.frame(message, blob) for message, blob in events), waits=waits)

    def _send(self, frames: bytes, *, waits: bool = False) -> None:
        with self._sending:
            self._waiting += frames
            if waits or not self._waiting:
                return
            frames, self._waiting = self._waiting, b""
            try:
                if failpoints.is_armed("ipc.mid_frame"):
                    half = len(frames) // 2
                    self._connection.sendall(frames[:half])
                    failpoints.reached("ipc.mid_frame")
                    frames = frames[half:]
                self._connection.sendall(frames)
            except OSError:
                os._exit(0)  # the API process is gone; nobody is left to tell

    def _take(self, engine: "Engine", message: wire.ToWorker, blob: bytes) -> None:
        self._is_spare = self._is_spare and not _is_for_a_seat(message)
        match message:
            case wire.Submit():
                engine.submit(message, wire.states(message, blob))
            case wire.Cancel():
                engine.cancel(message.session_id, message.attempt)
            case wire.Pause():
                engine.pause(message.session_id, message.attempt)
            case wire.Load() if self._is_spare and message.model.executor == "torch":  # another's threads would stay so
                _behind_others(lambda: self._load_quietly(engine, message))
            case wire.Load():
                engine.ask(message)
            case wire.Practise() if message.submit.model.executor == "torch":
                _behind_others(lambda: self._practise(engine, message.submit))
            case wire.Practise():
                self._practise(engine, message.submit)
            case wire.Race():
                self.send(wire.Speed(gflops=self._race()))
            case wire.Keep():
                engine.keep(message.names)
            case wire.Unload():
                error = engine.unload(message.model_id)
                self.send(wire.Loaded(asked=message.asked, resident=engine.resident, loaded=engine.loaded, error=error))
            case wire.Known():
                engine.know(message)
            case wire.Stop():
                os._exit(0)  # interpreter teardown with torch takes a second and frees nothing that exit does not

    def _load_quietly(self, engine: "Engine", load: wire.Load) -> None:
        engine.ask(load)
        while not engine.idle and not self._is_wanted:
            engine.step()

    def _practise(self, engine: "Engine", submit: wire.Submit) -> None:
        engine.submit(submit)
        while not engine.idle:
            if self._is_wanted:
                engine.cancel(submit.session_id, submit.attempt)
            engine.step()

    def _race(self) -> dict[str, float]:
        import torch

        from mezzotint.engine.speed import gflops

        device = torch.device("cpu" if self._device_id.startswith("cpu") else self._device_id)
        found = {}
        for name in _DTYPES[device.type]:
            with contextlib.suppress(RuntimeError):
                found[name] = round(gflops(device, getattr(torch, name)), 1)
        return found

    def _read(self) -> None:
        while True:
            try:
                received = wire.receive_to_worker(self._connection)
            except (OSError, wire.WireError):
                log.exception("the API process cannot be understood")
                received = None
            if received is None and self._engine is None:
                os._exit(0)
            self._is_wanted |= received is not None and _is_for_a_seat(received[0])
            self._inbox.put(received)
            if received is None:
                # A model call can take long, and nobody waits for its result any more.
                time.sleep(0.2)
                os._exit(0)

    def _beat(self) -> None:
        import psutil

        me = psutil.Process()
        while True:
            self.send(self._heartbeat(me))
            time.sleep(HEARTBEAT_S)

    def _heartbeat(self, me: "psutil.Process") -> wire.Heartbeat:
        engine, now = self._engine, time.monotonic()
        phase = "starting" if engine is None else engine.phase
        resident = () if engine is None else engine.resident
        doing = None if engine is None or self._is_spare else engine.doing
        loading = None if engine is None or self._is_spare else engine.loading
        since = now - (doing[1] if doing else self._moved)
        if phase is not None or doing is not None or self._rests or self._is_spare:
            self._told_phase_at = now
        else:  # of a step only what no heartbeat has found in a phase
            phase, since = wire.BETWEEN, now - max(self._moved, self._told_phase_at)
        return wire.Heartbeat(
            phase=phase,
            since_s=since,
            memory_bytes=self._held(me),
            weights_bytes=0 if engine is None else engine.weights_bytes,
            prompt_hits=0 if engine is None else engine.prompts.hits,
            prompt_misses=0 if engine is None else engine.prompts.misses,
            resident=resident,
            loaded=() if engine is None else engine.loaded,
            refused={model: why for model, why in self._refused.copy().items() if model in resident},
            work=doing[0] if doing else None,
            loading=loading[0] if loading else None,
            loading_s=now - loading[1] if loading else 0.0,
        )

    def _held(self, me: "psutil.Process") -> int:
        """Bytes of its device's memory that it holds."""
        if self._device_id.startswith("cpu"):
            return int(me.memory_info().rss)
        if self._engine is None:
            return 0
        import torch

        return int(torch.cuda.memory_reserved(self._device_id))

    def _start_engine(self) -> "Engine":
        _import()
        import torch

        from mezzotint.engine import executors
        from mezzotint.engine.engine import Engine
        from mezzotint.engine.meter import CudaMeter, HostMeter
        from mezzotint.families import products

        if self._device_id.startswith("cuda") and int(self._device_id[5:]) >= torch.cuda.device_count():
            has = f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
            message = (
                f"{has}, and {self._device_id} is none of them; install a torch for its driver, or set devices=cpu:0"
            )
            self.send(wire.DeviceFailed(message=message))
            os._exit(1)
        torch.set_num_threads(self._threads)
        if self._device_id.startswith("cpu"):
            products.choose()
        device = torch.device(
            self._device_id.partition(":")[0] if self._device_id.startswith("cpu") else self._device_id
        )
        versions = _versions()
        spacings: dict[str, str] = {}  # of the timesteps, by model id, where its own scheduler says one

        def load(model: wire.ModelRef) -> "Family":
            failpoints.reached("load.start")
            plain = _load(model, device, executors.loaded_in(model.executor, model.dtype))
            failpoints.reached("load.mid")
            spacings[model.id] = plain.scheduler_config.get("timestep_spacing", "")
            self._refused.pop(model.id, None)
            try:
                return executors.open_with(
                    plain, model.executor, model.dtype, graphs=Path(model.graphs), threads=self._threads
                )
            except executors.Unavailable as error:
                log.warning("%s runs in torch float32: %s", model.id, error)
                self._refused[model.id] = str(error)
                return plain

        def encode(pixels: "Tensor", submit: wire.Submit, index: int) -> tuple[bytes, bytes]:
            from mezzotint import images

            model, request = submit.model, submit.request.alone(index)
            made = {
                "model": {key: getattr(model, key) for key in ("id", "family", "sha256")},
                "loras": [
                    {"name": use.name, "scale": use.scale, "sha256": ref.sha256}
                    for use, ref in zip(request.loras, submit.loras, strict=True)
                ],
                "controlnets": [{"id": ref.id, "sha256": ref.sha256} for ref in submit.controlnets],
                "embeddings": [{"id": ref.id, "sha256": ref.sha256} for ref in submit.embeddings],
                "versions": versions,
                "device_kind": device.type,
                "dtype": model.dtype,
                "executor": model.executor,
            }
            if model.executor == "openvino":
                made["versions"] = versions | {"openvino": profiles.versions()["openvino"]}
            hashes = {
                "Lora hashes": [(ref.id, ref.tensors_sha256) for ref in submit.loras],
                "TI hashes": [(ref.id, ref.sha256) for ref in submit.embeddings],
            }
            vae = Path(model.vae).name, model.vae_sha256
            file = images.encode(pixels.numpy(), request, request.seed, made, hashes, vae, spacings.get(model.id, ""))
            return file, images.thumbnail(pixels.numpy())

        meter = HostMeter() if device.type == "cpu" else CudaMeter(device)
        base = meter.start(exactly=True) or 0
        facts = _device_facts(self._device_id, device, self._threads, self._memory_bytes, base)
        budget = int(facts.memory_budget_bytes * WEIGHTS_SHARE)
        engine = Engine(load, encode, time.monotonic, meter=meter, budget_bytes=budget)
        self.send(wire.Hello(version=wire.VERSION, pid=os.getpid(), network=self._network, device=facts))
        return engine


def _import() -> None:
    """All that a first picture would import. It stays: looking for garbage in it would take 50 ms each time."""
    from mezzotint.workers.imports import import_quickly

    gc.disable()
    import_quickly()
    from mezzotint import images  # noqa: F401
    from mezzotint.engine import engine, executors  # noqa: F401

    gc.freeze()
    gc.enable()


def _is_for_a_seat(message: wire.ToWorker) -> bool:
    """Whether somebody waits for what it begins, as nobody does for what a spare is told."""
    return isinstance(message, wire.Submit) or (isinstance(message, wire.Load) and message.asked != "")


def _behind_others(work: Callable[[], object]) -> None:
    """Do it in a thread of the lowest priority and wait for it: what runs now goes first. On Linux a thread has its own
    priority, and this process could not raise its own again."""

    def run() -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        work()

    thread = threading.Thread(target=run, name="behind")
    thread.start()
    thread.join()


def _load(model: wire.ModelRef, device: "torch.device", dtype: "torch.dtype") -> "StableDiffusion":
    from mezzotint.families.table import implementation

    vae = Path(model.vae) if model.vae else None
    family: StableDiffusion = implementation(model.family)(Path(model.path), device, dtype, vae)
    family.pack()
    return family


def _versions() -> dict[str, str]:
    import diffusers
    import torch

    import mezzotint

    return {"mezzotint": mezzotint.__version__, "diffusers": diffusers.__version__, "torch": torch.__version__}


def _device_facts(
    device_id: str, device: "torch.device", threads: int, memory_bytes: int, base: int
) -> wire.DeviceFacts:
    import psutil
    import torch

    common: dict[str, Any] = {"id": device_id, "kind": device.type, "threads": threads, "base_bytes": base}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        torch.cuda.set_per_process_memory_fraction(CUDA_SHARE, device)
        return wire.DeviceFacts(
            name=properties.name,
            memory_total_bytes=properties.total_memory,
            memory_budget_bytes=int(properties.total_memory * CUDA_SHARE),
            dtypes=tuple(name for name in _DTYPES["cuda"] if native or name != "bfloat16"),
            driver=torch.version.cuda,
            **common,
        )
    total = psutil.virtual_memory().total
    return wire.DeviceFacts(
        name=profiles.cpu_name(),
        memory_total_bytes=total,
        memory_budget_bytes=memory_bytes,
        dtypes=_DTYPES["cpu"],
        driver=None,
        **common,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mezzotint-worker")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--pulse", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--spare", action="store_true", help="begin behind others: nobody waits for it yet")
    return parser.parse_args()


if __name__ == "__main__":
    main()
