"""Says before a request runs how long it will take and what memory it will need, and refuses what memory cannot hold.

From what workers measured on this device alone: what has no measured neighbour is null, and `unknown` says why.
Must not queue, claim or run anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

from mezzotint import profiles
from mezzotint.catalog import Catalog
from mezzotint.costs import Cost, Costs, families, weights_bound
from mezzotint.errors import Fault, InvalidRequest
from mezzotint.families.table import activation_bytes, calls
from mezzotint.measurements import Measurements
from mezzotint.refs import Refs
from mezzotint.request import Request
from mezzotint.tuning import Choices
from mezzotint.workers.base import Seat, Supervisor
from mezzotint.workers.wire import MAX_ROWS, DeviceFacts, ModelRef, Work, load_of

UNMEASURED = 1.5  # times what was drawn on or bounded from above, for shapes that never ran here
FAR = 100  # sessions ahead that are looked at one by one; those behind them count by the mean


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a request is expected to take. None is not known; `basis` is that of the weakest figure."""

    device: str
    peak_memory_bytes: int | None = None  # of the worker, while the request runs
    duration_s: float | None = None  # from its start to its end, beside what runs now
    queue_s: float | None = None  # before its start
    basis: str = "unknown"  # measured, extrapolated
    unknown: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class Share:
    """One session on a device: what is left of it. Mutable: a forecast runs it down."""

    work: Work  # one step of one image
    images: int
    calls_left: float
    after_s: float  # decoding and writing its pictures, once it is denoised
    before_s: float = 0.0  # loading and encoding
    priority: int = 5
    is_alone: bool = False  # each of its images runs alone in its calls

    @property
    def rows(self) -> int:
        return self.images * self.work.rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Busy:
    """A session that runs or waits: its request, and how much of it is done."""

    request: Request
    fraction: float = 0.0
    images_left: int | None = None


class Estimates:
    """Of every device of this server."""

    def __init__(
        self, measurements: Measurements, catalog: Catalog, refs: Refs, choices: Choices, supervisor: Supervisor
    ) -> None:
        self._measurements, self._catalog, self._refs = measurements, catalog, refs
        self._choices, self._supervisor = choices, supervisor
        self._read: dict[str, tuple[object, Costs]] = {}  # by device: as of which measurements and models

    async def of(
        self, request: Request, device: str, running: Sequence[Busy] = (), ahead: Sequence[Busy] = (), room: int = 16
    ) -> Estimate:
        """`running` are in the worker of `device`, `ahead` wait before it; `room` images run there at once."""
        ref = await self._refs.at_once(request.model)
        if ref is None:
            return Estimate(device=device, unknown={"basis": "the model is gone"})
        costs = self._costs(device)
        beside = sum(one.request.num_images if one.images_left is None else one.images_left for one in running)
        peak = self._peak(request, ref, device, costs, beside)
        own = await self._share(Busy(request=request), device, costs)
        others = [await self._share(one, device, costs) for one in (*running, *ahead[:FAR])]
        unknown = {} if peak is not None else {"peak_memory_bytes": _NEVER_RAN}
        waits = runs = None
        if own is None:
            unknown |= dict.fromkeys(("duration_s", "queue_s"), _NEVER_RAN)
        elif any(one is None for one in others):
            unknown |= dict.fromkeys(("duration_s", "queue_s"), "another session's model and size never ran here")
        else:
            known = [one[0] for one in others if one is not None]
            found = forecast(own[0], known[: len(running)], known[len(running) :], room, costs)
            if found is None:
                unknown |= dict.fromkeys(("duration_s", "queue_s"), _NEVER_RAN)
            else:
                waits, runs = found
                waits *= max(1.0, len(ahead) / FAR)
        bases = [peak.measured if peak else None, own[1] if own and runs is not None else None]
        return Estimate(
            device=device,
            peak_memory_bytes=round(peak.value) if peak else None,
            duration_s=None if runs is None else round(runs, 4),
            queue_s=None if waits is None else round(waits, 4),
            basis="unknown" if None in bases else "measured" if all(bases) else "extrapolated",
            unknown=unknown,
        )

    async def check(self, request: Request, device: str) -> None:
        """Raises InvalidRequest `over_budget` for one that the device cannot hold, even alone. Not raised for what
        would only have to wait for its neighbours, nor where the device has not told its budget yet.
        """
        ref, seat = await self._refs.at_once(request.model), self._supervisor.seats[device]
        if ref is None or seat.facts is None:
            return
        needs, budget = self._alone(request, ref, seat, self._costs(device)), seat.facts.memory_budget_bytes
        if needs > budget:
            message = (
                f"{request.width}x{request.height} with {request.model!r} needs about {needs} bytes on {device}, more "
                f"than the {budget} that its worker may take; ask for a smaller picture, or "
                f"{way_out(seat.facts, self._step(request, ref, device).dtype)}"
            )
            raise InvalidRequest([Fault(field="width", code="over_budget", message=message)])

    # ---- time

    def _costs(self, device: str) -> Costs:
        """Read anew once there is something new: a device's measurements are too many for every request."""
        known = families(self._refs.known.values())
        as_of = self._measurements.taken[device], known
        if device not in self._read or self._read[device][0] != as_of:
            self._read[device] = as_of, Costs(self._measurements.of(device), known)
        return self._read[device][1]

    async def _share(self, busy: Busy, device: str, costs: Costs) -> tuple[Share, bool] | None:
        """What is to be done, and whether all of it is measured here. None when some of it cannot be told."""
        request, begun = busy.request, busy.fraction > 0
        ref = await self._refs.at_once(request.model)
        if ref is None:
            return None
        passes = request.passes
        step = self._step(passes[0], ref, device)
        images = request.num_images if busy.images_left is None else max(1, busy.images_left)
        last = self._step(request.passes[-1], ref, device)
        decode = costs.seconds(_picture_work(last, "decode"))
        file = costs.seconds(_picture_work(last, "file"))
        text = costs.seconds(Work(what="encode", model=ref.sha256, windows=1, loras=step.loras))
        first = costs.seconds(step)
        load = self._load(request, ref, device)
        loading = Cost(0.0, True) if self._is_there(load, device) else costs.seconds(load)
        read = (
            costs.seconds(_picture_work(step, "pictures")) if request.image or request.controlnets else Cost(0.0, True)
        )
        if None in (decode, text, first, loading, read):
            return None
        assert decode and text and first and loading and read  # noqa: S101, PT018  invariant: seen above
        after = images * (decode.value + (file.value if file else 0.0))
        ended = request.num_images - images  # `fraction` counts their steps, too
        done = max(0.0, (busy.fraction * request.num_images - ended) / images) * request.steps
        if len(passes) > 1:
            # the second pass as if it ran beside nobody: its shape is most often its own
            rows = last.rows if request.deterministic else min(images * last.rows, _call_rows(last, costs))
            larger = costs.seconds(_with_rows(last, rows))
            if larger is None:
                return None
            turns = images * last.rows / rows
            left = min(1.0, (request.steps - done) / passes[1].steps)
            after += turns * larger.value * _calls(passes[1]) * left
            first = replace(first, measured=first.measured and larger.measured)
        before = loading.value + text.value * (2 if request.guidance_scale > 1 else 1) + read.value
        share = Share(
            work=step,
            images=images,
            calls_left=_calls(passes[0]) * max(0.0, 1 - done / passes[0].steps),
            after_s=after,
            before_s=0.0 if begun else before,
            priority=request.priority,
            is_alone=request.deterministic,
        )
        return share, first.measured and decode.measured

    def _step(self, request: Request, ref: ModelRef, device: str) -> Work:
        """One model call for one image of it."""
        ran = self._choices.ref(ref, device, deterministic=request.deterministic)
        unadapted = request.loras and ref.parameters < profiles.ADAPTED_FROM
        plain = ran.executor != "torch" and (request.deterministic or unadapted)  # its twin runs these
        factor = self._refs.facts(ref).size_multiple
        return Work(
            what="step",
            model=ref.sha256,
            executor="torch" if plain else ran.executor,
            dtype="float32" if plain else ran.dtype,
            height=request.height // factor,
            width=request.width // factor,
            windows=1,
            rows=2 if request.guidance_scale > 1 else 1,
            nets=len(request.controlnets),
            loras=bool(request.loras),
        )

    def _load(self, request: Request, ref: ModelRef, device: str) -> Work:
        return load_of(self._choices.ref(ref, device, deterministic=request.deterministic))

    def _is_there(self, load: Work, device: str) -> bool:
        """Whether the model is loaded as the request needs it: in another dtype it is to be loaded once more."""
        worker = self._supervisor.seats[device].worker
        beat = worker.heartbeat if worker else None
        return beat is not None and load in beat.loaded

    # ---- memory

    def _peak(self, request: Request, ref: ModelRef, device: str, costs: Costs, beside: int) -> Cost | None:
        """Of the worker while it runs, beside the weights that are there and so many other images."""
        seat, step = self._supervisor.seats[device], self._step(request.largest, ref, device)
        worker = seat.worker
        if seat.facts is None or worker is None or worker.heartbeat is None:
            return None
        beat = worker.heartbeat
        images = max(1, beside) if request.deterministic else request.num_images + beside
        rows = min(step.rows * images, _call_rows(step, costs))
        extra = _most(costs.extra_bytes(_with_rows(step, rows)), costs.extra_bytes(_picture_work(step, "decode")))
        load = self._load(request, ref, device)
        weights = Cost(0.0, True) if self._is_there(load, device) else costs.extra_bytes(load)
        if extra is None or weights is None:
            return None
        in_use = seat.facts.base_bytes + beat.weights_bytes + weights.value + extra.value
        held = beat.memory_bytes if seat.facts.kind == "cpu" else 0  # freed memory that the process keeps for later
        return Cost(max(in_use, held + weights.value), extra.measured and weights.measured)

    def _alone(self, request: Request, ref: ModelRef, seat: Seat, costs: Costs) -> int:
        """The least that it can run in: its own weights, one image a call. Never less than it takes."""
        assert seat.facts is not None  # noqa: S101  invariant: `check` has seen to it
        request = request.largest
        step = self._step(request, ref, seat.device)
        weights = costs.extra_bytes(self._load(request, ref, seat.device))
        extra = _most(costs.extra_bytes(step), costs.extra_bytes(_picture_work(step, "decode")))
        model = self._refs.facts(ref)
        adapters = [self._catalog.models.get(one.model) for one in request.controlnets]
        nets = sum(2 * one.bytes for one in adapters if one is not None)  # half precision on disk at most
        if weights is None or not weights.measured:
            weights = Cost(weights_bound(step.executor, step.dtype, model.parameters), False)
        if extra is None or not extra.measured:
            pixels = request.width * request.height
            bound = activation_bytes(ref.family, model.shape, step.rows, step.height * step.width, pixels)
            held_in = 1.0 if step.dtype == "float32" else 0.5
            extra = Cost(UNMEASURED * min(held_in * bound, extra.value if extra else math.inf), False)
        return round(seat.facts.base_bytes + nets + weights.value + extra.value)


def way_out(facts: DeviceFacts, dtype: str) -> str:
    """What else helps who finds no room for a picture on a device, where the model runs in `dtype`."""
    if facts.kind == "cpu":
        return "raise memory_bytes"
    half = [one for one in facts.dtypes if one != "float32"]
    return f"set the model's dtype to {half[0]}" if dtype == "float32" and half else "for one from a smaller model"


_NEVER_RAN = "nothing like it ran on this device yet"


def forecast(
    own: Share, running: Sequence[Share], ahead: Sequence[Share], room: int, costs: Costs
) -> tuple[float, float] | None:
    """Seconds until it starts, and from there to its end. None when a step's time cannot be told.

    Shapes take turns, a call each; those of one shape share it, up to its cap and the more urgent first. The next
    joins, as the dispatcher has it, while fewer than `room` images are inside: twice as many if it overtakes one.
    """
    inside, line = [replace(one) for one in running], [replace(one) for one in ahead]
    mine = replace(own)
    line.append(mine)
    now = 0.0
    started: float | None = None
    while True:
        while line:
            overtakes = any(one.priority < line[0].priority for one in inside)
            if sum(one.images for one in inside) >= room * (2 if overtakes else 1):
                break
            joined = line.pop(0)
            if joined is mine:
                started = now
            now += joined.before_s
            inside.append(joined)
        shapes: dict[tuple[Work, int], list[Share]] = {}
        for one in inside:
            shapes.setdefault((_with_rows(one.work, 0), id(one) if one.is_alone else 0), []).append(one)
        round_s, turns = 0.0, dict[int, float]()
        for members in shapes.values():
            work, is_alone = max((one.work for one in members), key=lambda one: one.rows), members[0].is_alone
            rows = work.rows if is_alone else sum(one.rows for one in members)
            most = _call_rows(work, costs)
            spent = costs.seconds(_with_rows(work, min(rows, most)))
            if spent is None:
                return None
            round_s += spent.value * (members[0].images if is_alone else 1)
            for one in members:  # rounds until each of its images has had a step
                urgent = sum(other.rows for other in members if other.priority >= one.priority)
                turns[id(one)] = 1.0 if is_alone else max(1.0, urgent / most)
        rounds = min(one.calls_left * turns[id(one)] for one in inside)
        now += rounds * round_s
        for one in inside:
            one.calls_left -= rounds / turns[id(one)]
        for one in [one for one in inside if one.calls_left <= 1e-6]:
            now += one.after_s
            inside.remove(one)
            if one is mine:
                assert started is not None  # noqa: S101  invariant: it was inside
                return started, now - started


def _calls(one: Request) -> int:
    """Model calls for one image of a pass."""
    return calls(one.scheduler, one.steps, one.num_inference_steps)


def _call_rows(work: Work, costs: Costs) -> int:
    """Rows of one call at most: those of an image are never split."""
    return max(1, (costs.most_rows(work) or MAX_ROWS) // work.rows) * work.rows


def _with_rows(work: Work, rows: int) -> Work:
    return msgspec.structs.replace(work, rows=rows)


def _picture_work(step: Work, what: str) -> Work:
    return Work(
        what=what, model=step.model, executor=step.executor, dtype=step.dtype, height=step.height, width=step.width
    )


def _most(*costs: Cost | None) -> Cost | None:
    """The largest; measured only if all are. None when one is not known."""
    known = [one for one in costs if one is not None]
    if len(known) < len(costs):
        return None
    return Cost(max(one.value for one in known), all(one.measured for one in known))
