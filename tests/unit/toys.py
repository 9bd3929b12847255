"""A family that multiplies instead of drawing, and an engine over it that is driven step by step."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mezzotint.engine.engine import Engine
from mezzotint.engine.telling import Event
from mezzotint.families.base import Conditioning, ControlNet, Executor, Family, Prompt, Rows
from mezzotint.families.embedding import Embedding
from mezzotint.families.lora import Lora
from mezzotint.request import LoraUse, Request
from mezzotint.workers import wire
from tests.requests import request


class Toy:
    """Multiplies. Counts what the engine asks of it."""

    latent_channels = 4
    vae_factor = 2
    device = torch.device("cpu")
    inpaints = False
    bytes = 10

    def __init__(self) -> None:
        self.executor = Executor()
        self.scheduler_config: dict[str, Any] = {"num_train_timesteps": 1000, "clip_sample": False}
        self.calls: list[int] = []  # rows of each
        self.encoded: list[str] = []
        self.read: list[str] = []  # adapters
        self.loras: list[Lora] = []
        self.room = 1000  # rows that memory holds
        self.encode_error: Exception | None = None
        self.decode_error: BaseException | None = None
        self.wrong: dict[str, Exception] = {}  # texts whose rows fail every call that they are in
        self.endless: str | None = None  # text whose rows come out as no numbers

    def pack(self) -> None:
        pass

    def windows(self, prompt: Prompt) -> int:
        return 1 + len(prompt.text) // 100

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        if self.encode_error is not None:
            raise self.encode_error
        self.encoded += [prompt.text for prompt in prompts]
        return [
            Conditioning(hidden=torch.full((prompt.windows, 2), _told(prompt.text)), windows=prompt.windows, cut=False)
            for prompt in prompts
        ]

    def predict(self, rows: Rows) -> Tensor:
        if len(rows.latents) > self.room:
            raise MemoryError
        for text, error in self.wrong.items():
            if (rows.hidden == _told(text)).any():
                raise error
        self.calls.append(len(rows.latents))
        assert len(rows.latents) == len(rows.timesteps) == len(rows.hidden)
        endless = None if self.endless is None else (rows.hidden == _told(self.endless)).any(dim=(1, 2))
        return rows.latents * 0.1 if endless is None else torch.where(endless[:, None, None, None], torch.inf, 0.1)

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def load_lora(self, path: Path) -> Lora:
        self.read.append(path.name)
        if path.name == "broken":
            raise ValueError("it fits nothing")
        self.loras.append(Lora(parts={}))
        return self.loras[-1]

    def load_embedding(self, path: Path) -> Embedding:
        self.read.append(path.name)
        return Embedding(vectors={}, token="")

    def load_controlnet(self, path: Path) -> ControlNet:
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        if self.decode_error is not None:
            raise self.decode_error
        return torch.zeros(len(latents), latents.shape[2] * 2, latents.shape[3] * 2, 3, dtype=torch.uint8)


def _told(text: str) -> float:
    """A number for each text."""
    return float(int.from_bytes(text.encode()) % 8191)


BUDGET = 20  # bytes: two toys


def ref(name: str, kind: str = "checkpoint") -> wire.ModelRef:
    return wire.ModelRef(id=name, kind=kind, family="sd", path=name, bytes=1, sha256=name)


class ToyMeter:
    def start(self, *, exactly: bool = False) -> int:
        return 400

    def peak(self) -> int:
        return 1000


class Rig:
    def __init__(self, load_error: Exception | None = None) -> None:
        self.toy = self.served = Toy()
        self.encoded_with: dict[str, tuple[str, str]] = {}
        self.loads: list[str] = []
        self.now = 0.0

        self.slow: dict[str, threading.Event] = {}  # models whose load waits for that

        def load(model: wire.ModelRef) -> Family:
            self.loads.append(model.id)
            if model.id in self.slow:
                assert self.slow[model.id].wait(10)
            if load_error is not None:
                raise load_error
            return self.served

        def clock() -> float:
            self.now += 0.001
            return self.now

        self.encode_error: Exception | None = None

        def encode(pixels: Tensor, submit: wire.Submit, index: int) -> tuple[bytes, bytes]:
            if self.encode_error is not None:
                raise self.encode_error
            self.encoded_with[submit.session_id] = (submit.model.executor, submit.model.dtype)
            return b"picture", b"thumbnail"

        self.engine = Engine(load, encode, clock, meter=ToyMeter(), budget_bytes=BUDGET, max_rows=8)
        self.told: list[Event] = []

    def submit(
        self,
        session_id: str,
        asked: Request | None = None,
        *,
        model: str = "tiny",
        loras: tuple[str, ...] = (),
        attempt: int = 1,
        done: tuple[int, ...] = (),
        states: Mapping[int, bytes] | None = None,
    ) -> None:
        asked = asked or request(loras=tuple(LoraUse(name=name, scale=1.0) for name in loras))
        refs = tuple(ref(name, "lora") for name in loras)
        submit = wire.Submit(
            session_id=session_id, attempt=attempt, request=asked, model=ref(model), loras=refs, done=done
        )
        self.engine.submit(submit, states or {})

    def load(self, model: wire.ModelRef) -> None:
        """Beside what runs, to its end."""
        self.engine.ask(wire.Load(model=model))
        self.step()
        while self.engine.loading is not None:
            self.step()

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.told += self.engine.step()

    def states(self, session_id: str) -> dict[int, bytes]:
        """The newest of each image."""
        return {
            one.index: blob
            for one, blob in self.told
            if isinstance(one, wire.Checkpoint) and one.session_id == session_id
        }

    def run(self) -> None:
        for _ in range(10_000):
            if self.engine.idle:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def of(self, session_id: str, kind: type) -> list[Any]:
        return [one for one, _ in self.told if isinstance(one, kind) and one.session_id == session_id]  # type: ignore[union-attr]

    @property
    def measured(self) -> list[wire.Measured]:
        return [one for told, _ in self.told if isinstance(told, wire.Findings) for one in told.measured]

    def outcome(self, session_id: str) -> str:
        (ended,) = self.of(session_id, wire.Ended)
        return str(ended.outcome if ended.error is None else ended.error.code)
