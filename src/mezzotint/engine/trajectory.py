"""The tensors of one image while it denoises, and the session it belongs to. Must not run a model."""

from dataclasses import dataclass, field

from torch import Tensor

from mezzotint.engine.samplers import Sampler
from mezzotint.families.base import Executor, Family
from mezzotint.workers.wire import Submit


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchKey:
    """Trajectories of equal keys can share a model call. Everything else about them may differ."""

    model: str
    height: int  # of the latents
    width: int
    windows: int  # of the text
    alone: str  # empty, or what makes a deterministic image share with nobody


@dataclass(kw_only=True, slots=True, eq=False)
class Trajectory:
    """One image on its way. `latents` is (1, channels, height, width), float32, on the CPU."""

    key: BatchKey
    family: Family
    index: int
    seed: int
    sampler: Sampler
    latents: Tensor
    hidden: Tensor  # (tokens, channels)
    negative: Tensor | None  # None: no guidance, one row instead of two
    guidance_scale: float
    priority: int
    waited: int = 0  # batches of its key that ran without it

    @property
    def rows(self) -> int:
        return 1 if self.negative is None else 2

    @property
    def remaining(self) -> int:
        return self.sampler.total - self.sampler.calls

    def advance(self, output: Tensor) -> None:
        """Take the model's output for its rows, (rows, channels, height, width), the negative one first."""
        if self.negative is not None:
            negative, positive = output.chunk(2)
            output = negative + self.guidance_scale * (positive - negative)
        self.latents = self.sampler.advance(output, self.latents)


@dataclass(kw_only=True, slots=True, eq=False)
class Running:
    """A session inside the engine: what was asked and its images."""

    submit: Submit
    stage: str  # "loading", "encoding", "denoising": what to do for it next, or is being done
    trajectories: list[Trajectory] = field(default_factory=list)  # those not decoded yet, lowest index first
    steps_done: int = 0  # of images that are decoded
    device_s: float = 0.0
    cancelled: bool = False
    executor: Executor | None = None  # what its images run with, once they are prepared
    phase: str = ""  # what was last announced

    @property
    def id(self) -> str:
        return self.submit.session_id

    @property
    def steps_run(self) -> int:
        return self.steps_done + sum(trajectory.sampler.step for trajectory in self.trajectories)
