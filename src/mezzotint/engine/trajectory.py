"""The tensors of one image while it denoises, what a call takes of several, and the session they belong to. Must not
run a model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor

from mezzotint.engine.inputs import Pictures
from mezzotint.engine.samplers import Sampler
from mezzotint.families.base import Conditioning, Control, ControlNet, Executor, Family, Rows
from mezzotint.families.lora import LoraSet
from mezzotint.families.table import at_work
from mezzotint.request import Variation
from mezzotint.session import Usage
from mezzotint.workers.wire import Submit


class BatchKey(msgspec.Struct, frozen=True, kw_only=True):
    """Trajectories of equal keys can share a model call. Everything else about them may differ."""

    model: str  # digest
    executor: str = "torch"
    dtype: str = "float32"
    height: int  # of the latents
    width: int
    windows: int  # of the text
    alone: str  # empty, or what makes an image share with nobody: its session and index


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Kept:
    """What an inpainting puts back after each step outside the mask, for UNets that do not know of masks."""

    mask: Tensor  # (1, 1, height, width), 1 where it is drawn anew
    latents: Tensor  # of the input picture
    noise: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ControlPlan:
    """One ControlNet of a session: at work from `start` to `end`, as shares of the steps."""

    net: ControlNet
    image: Tensor
    scale: float
    start: float
    end: float
    mode: str  # balanced, prompt, control

    def at(self, call: int, total: int) -> bool:
        return at_work(call, total, self.start, self.end)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SecondPass:
    """What a trajectory goes on with, once its first picture is enlarged."""

    key: BatchKey
    sampler: Sampler
    upscaler: str
    variation: Variation | None
    controls: tuple[ControlPlan, ...]


@dataclass(kw_only=True, slots=True, eq=False)
class Trajectory:
    """One image on its way. `latents` is (1, channels, height, width), float32, on the CPU."""

    key: BatchKey
    family: Family
    index: int
    seed: int
    sampler: Sampler
    latents: Tensor
    text: Conditioning
    negative: Conditioning | None  # None: no guidance, one row instead of two
    guidance_scale: float
    priority: int
    extra: Tensor | None = None  # (1, 5, height, width): mask and masked latents
    kept: Kept | None = None
    loras: LoraSet = ()
    controls: tuple[ControlPlan, ...] = ()
    second: SecondPass | None = None  # still to come
    passed: int = 0  # steps of the pass before
    shows: bool = False  # pictures of it are wanted on its way
    estimate: Tensor | None = None  # of its final latents after the last call, when it shows any
    shown_decoded: bool = False  # a picture of it on its way was decoded, and so are those to come
    waited: int = 0  # batches of its key that ran without it
    waited_s: float = 0.0  # how long those took
    parted: int = 0  # calls beside others that failed
    checked_calls: int = 0  # of its sampler, when its state was last taken
    hidden: Tensor = field(init=False)  # (rows, tokens, channels): its texts, the negative one first, put together once
    pooled: Tensor | None = field(init=False)  # (rows, channels)

    def __post_init__(self) -> None:
        texts = [self.text] if self.negative is None else [self.negative, self.text]
        pooled = [text.pooled for text in texts if text.pooled is not None]
        self.hidden = torch.stack([text.hidden for text in texts])
        self.pooled = torch.stack(pooled) if pooled else None

    @property
    def rows(self) -> int:
        return 1 if self.negative is None else 2

    @property
    def remaining(self) -> int:
        """Model calls."""
        later = self.second.sampler.total if self.second else 0
        return self.sampler.total - self.sampler.calls + later

    @property
    def done(self) -> bool:
        return self.sampler.done and self.second is None

    @property
    def step(self) -> int:
        """Requested steps that are done, of all its passes."""
        return self.passed + self.sampler.step

    @property
    def steps(self) -> int:
        """That it has done when it is done."""
        return self.passed + self.sampler.steps + (self.second.sampler.steps if self.second else 0)

    def enter_second(self, latents: Tensor) -> None:
        """Go on with the second pass, which begins at these."""
        assert self.second is not None  # noqa: S101  invariant: asked for while it is to come
        self.passed, self.checked_calls, self.estimate, self.shown_decoded = self.sampler.steps, 0, None, False
        self.key, self.sampler, self.controls = self.second.key, self.second.sampler, self.second.controls
        self.latents, self.second = latents, None

    def row_controls(self) -> list[tuple[Control, ...]]:
        """The ControlNets at work in the coming call, for each of its rows."""
        plans = [plan for plan in self.controls if plan.at(self.sampler.calls, self.sampler.total) and plan.scale]
        both = tuple(_control(plan) for plan in plans)
        if self.negative is None:
            return [both]
        return [tuple(_control(plan) for plan in plans if plan.mode != "control" and not plan.net.pools), both]

    def part(self, alone: str) -> None:
        """Share no call until one has gone well; after the second time for good, since it may not suit its company."""
        self.parted += 1
        self.key = msgspec.structs.replace(self.key, alone=alone)

    def rejoin(self) -> None:
        if self.parted == 1 and self.key.alone:
            self.key = msgspec.structs.replace(self.key, alone="")

    def advance(self, output: Tensor) -> None:
        """Take the model's output for its rows, (rows, channels, height, width), the negative one first."""
        if self.negative is not None:
            negative, positive = output.chunk(2)
            output = negative + self.guidance_scale * (positive - negative)
        if self.shows:
            self.estimate = self.sampler.clean(output, self.latents)
            if self.kept is not None:
                self.estimate = (1 - self.kept.mask) * self.kept.latents + self.kept.mask * self.estimate
        self.latents = self.sampler.advance(output, self.latents)
        if self.kept is not None:
            outside = self.sampler.noised(self.kept.latents, self.kept.noise)
            self.latents = (1 - self.kept.mask) * outside + self.kept.mask * self.latents


def _control(plan: ControlPlan) -> Control:
    fade = plan.mode != "balanced" and not plan.net.pools
    return Control(net=plan.net, image=plan.image, scale=plan.scale, fade=fade)


def rows_of(members: Sequence[Trajectory]) -> Rows:
    """What one model call takes for all of them, in their order."""
    latents, timesteps, extra, loras, controls = [], [], [], [], []
    for one in members:
        latents += [one.sampler.scaled(one.latents)] * one.rows
        timesteps += [one.sampler.moment] * one.rows
        extra += [one.extra] * one.rows
        loras += [one.loras] * one.rows
        controls += one.row_controls()
    masks = [mask for mask in extra if mask is not None]
    pooled = [one.pooled for one in members if one.pooled is not None]
    return Rows(
        latents=torch.cat(latents),
        timesteps=torch.tensor(timesteps),
        hidden=_together([one.hidden for one in members]),
        pooled=_together(pooled) if pooled else None,
        extra=torch.cat(masks) if masks else None,
        loras=tuple(loras) if any(loras) else (),
        controls=tuple(controls) if any(controls) else (),
    )


def _together(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(kw_only=True, slots=True, eq=False)
class Running:
    """A session inside the engine: what was asked and its images."""

    submit: Submit
    stage: str  # "loading", "encoding", "denoising": what to do for it next, or is being done
    pictures: Pictures | None = None
    trajectories: list[Trajectory] = field(default_factory=list)  # those not decoded yet, lowest index first
    states: Mapping[int, bytes] = field(default_factory=dict)  # by image: where it goes on, until it is prepared
    steps_done: int = 0  # of images that are decoded
    steps_resumed: int = 0  # done in earlier attempts
    checked_at: float = -math.inf  # when states were last taken, or a first attempt began
    device_s: float = 0.0
    peak_bytes: int | None = None  # of the worker while its calls ran
    batch_rows: dict[int, int] = field(default_factory=dict)  # rows of a call -> how many of its calls had so many
    cancelled: bool = False
    pausing: bool = False
    waits_since: int | None = None  # sessions that had ended when memory did not hold it beside the others
    executor: Executor | None = None  # what its images run with, once they are prepared
    shown: tuple[int, int] | None = None  # image and step that were last to be shown on their way
    shown_at: float = 0.0  # when one was shown
    owed: bool = False  # there was no time to show the last that was due
    phase: str = ""  # what was last announced

    @property
    def id(self) -> str:
        return self.submit.session_id

    def ran_in(self, rows: int, peak_bytes: int | None) -> None:
        """One model call with so many rows, its own and its neighbours', is done."""
        self.batch_rows[rows] = self.batch_rows.get(rows, 0) + 1
        self.saw_peak(peak_bytes)

    def saw_peak(self, peak_bytes: int | None) -> None:
        if peak_bytes is not None:
            self.peak_bytes = max(peak_bytes, self.peak_bytes or 0)

    @property
    def steps_so_far(self) -> int:
        """Requested steps of all its images that are done, in this attempt or before it."""
        return self.steps_done + sum(trajectory.step for trajectory in self.trajectories)

    @property
    def lowest(self) -> Trajectory:
        """Of its images that are not decoded, the first that still denoises, else the last."""
        return next((one for one in self.trajectories if not one.done), self.trajectories[-1])

    def usage(self) -> Usage:
        """What this attempt has taken so far."""
        unknown = {} if self.peak_bytes else {"peak_memory_bytes": "no step of it ran, or the system does not tell"}
        return Usage(
            peak_memory_bytes=self.peak_bytes,
            device_s=self.device_s,
            steps_run=self.steps_so_far - self.steps_resumed,
            steps_resumed=self.steps_resumed,
            batch_rows={str(rows): calls for rows, calls in sorted(self.batch_rows.items())},
            executor=self.executor.name if self.executor else None,
            dtype=self.executor.dtype if self.executor else None,
            unknown=unknown,
            reached=(self.lowest.index, self.lowest.step) if self.trajectories else None,
        )
