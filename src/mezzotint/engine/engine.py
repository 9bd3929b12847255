"""The step loop: sessions in, events out, one batch and one step at a time.

Owns no process, socket or file: it is handed a loader and an encoder, and returns wire messages. Each call of `step`
is bounded: one model call, and before it encoding and decoding that take about as long each.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import msgspec
import torch
from torch import Tensor

from mezzotint import failpoints
from mezzotint.engine import inputs, prepare, snapshot
from mezzotint.engine.batching import Batch, pick_batch
from mezzotint.engine.enlarge import begin_second
from mezzotint.engine.inputs import Pictures
from mezzotint.engine.limits import Limits
from mezzotint.engine.loading import Loads
from mezzotint.engine.memory import Residents, give_back, names_of
from mezzotint.engine.meter import Meter
from mezzotint.engine.prompts import Prompts
from mezzotint.engine.stopwatch import Stopwatch, is_device, is_memory
from mezzotint.engine.telling import Event, Telling
from mezzotint.engine.trajectory import BatchKey, Running, Trajectory, rows_of
from mezzotint.errors import ErrorInfo
from mezzotint.families.base import Family, Rows
from mezzotint.workers import wire

log = logging.getLogger(__name__)

LOOK_S = 0.05  # that a step waits for a load, if there is nothing else to do, before the caller may look for messages


class Engine:
    """Denoises many sessions at once. Not thread-safe: one thread calls everything."""

    def __init__(
        self,
        load: Callable[[wire.ModelRef], Family],
        encode_image: Callable[[Tensor, wire.Submit, int], tuple[bytes, bytes]],
        clock: Callable[[], float],
        *,
        meter: Meter,
        budget_bytes: int,
        max_rows: int = wire.MAX_ROWS,
    ) -> None:
        """`encode_image(pixels (H, W, 3) uint8, submit, index)` gives a file and its thumbnail (empty: as small
        itself), with what did run in `submit.model`; `clock` is monotonic seconds. `budget_bytes` of weights stay
        loaded; more only while sessions use them.
        """
        self._encode_image, self._clock = encode_image, clock
        self._watch, self._tell = Stopwatch(clock, meter), Telling(clock)
        self.prompts = Prompts(self._watch)
        self.limits = Limits(max_rows)
        self._sessions: dict[str, Running] = {}
        self._residents = Residents(load, budget_bytes)
        self._loads = Loads(self._residents, self._watch, clock)
        self._served: dict[BatchKey, int] = {}
        self._calls = self._ends = 0
        self._call_s = 0.0  # how long the last model call took
        self.phase: str | None = None  # what a blocking call is doing, for the heartbeat

    @property
    def idle(self) -> bool:
        return not self._sessions and self._loads.idle

    @property
    def doing(self) -> tuple[wire.Work, float] | None:
        """The measured piece of work that a blocking call is in, and since when. Any thread may ask."""
        return self._watch.doing

    @property
    def loading(self) -> tuple[wire.Work, float] | None:
        """What is being loaded beside that, and since when. Any thread may ask."""
        return self._loads.doing

    @property
    def resident(self) -> tuple[str, ...]:
        """Ids of the models that are loaded."""
        return self._residents.models

    @property
    def loaded(self) -> tuple[wire.Work, ...]:
        """The loads that these were."""
        return self._residents.loads

    @property
    def weights_bytes(self) -> int:
        """Of all that is loaded."""
        return self._residents.bytes

    def know(self, known: wire.Known) -> None:
        """What earlier workers found out on this device."""
        self._watch.know(known.things)
        self.limits.know(known.things)

    def submit(self, submit: wire.Submit, states: Mapping[int, bytes] = MappingProxyType({})) -> None:
        """Take a session. It joins the batch at a later step boundary; images with a state go on from there."""
        steps_done = len(submit.done) * submit.request.steps
        running = Running(
            submit=submit, stage="loading", states=states, steps_done=steps_done, steps_resumed=steps_done
        )
        self._sessions[submit.session_id] = running

    def keep(self, names: Sequence[str]) -> None:
        """What to hold on to when room is short, the most wanted first."""
        self._residents.keep(names)

    def ask(self, load: wire.Load) -> None:
        """Load a model before a session needs it; `load.ahead`: only if nothing has to go for it. `Loaded` tells."""
        self._loads.ask(load)

    def unload(self, model_id: str) -> ErrorInfo | None:
        """Let go of a model and what was read for it, and give the memory back. Returns why not, if it is in use."""
        users = [one.submit.session_id for one in self._sessions.values() if model_id in names_of(one.submit)]
        if users:
            message = f"model {model_id!r} is in use by {len(users)} sessions, such as {users[0]}; wait or cancel them"
            return ErrorInfo(code="model_in_use", message=message)
        if self._loads.concerns(model_id):
            message = f"model {model_id!r} is being loaded; unload it when it is there"
            return ErrorInfo(code="model_in_use", message=message)
        self._residents.let_go(model_id)
        return None

    def cancel(self, session_id: str, attempt: int) -> None:
        """Stop a session at the next boundary. Unknown ids and other attempts are ignored: they have ended."""
        running = self._sessions.get(session_id)
        if running is not None and running.submit.attempt == attempt:
            running.cancelled = True

    def pause(self, session_id: str, attempt: int) -> None:
        """Let go of a session at the next boundary, its state told. Ignores what `cancel` ignores."""
        running = self._sessions.get(session_id)
        if running is not None and running.submit.attempt == attempt:
            running.pausing = True

    def step(self) -> list[Event]:
        """Advance one batch by one denoising step. Returns what happened; never blocks on a caller."""
        if self._loads.busy and not self._denoising():
            self.phase = "loading"
            self._loads.wait(LOOK_S)
            self.phase = None
        events = self._drop_cancelled() + self._drop_pausing()
        events += self._take_loaded() + self._loads.begin_asked(self._submits) + self._admit() + self._decode_done()
        batch = pick_batch(self._denoising(), self._served, self.limits.rows)
        if batch is not None:
            failpoints.reached("step")
            events += self._denoise(batch)
        # first what was measured: who hears of an end may count on it
        return self._watch.take(soon=any(not isinstance(event, wire.Progress) for event, _ in events)) + events

    # ---- sessions in

    @property
    def _submits(self) -> list[wire.Submit]:
        return [one.submit for one in self._sessions.values()]

    def _take_loaded(self) -> list[Event]:
        events, failed = self._loads.take(self._submits)
        if failed is None or (running := self._sessions.get(failed[0])) is None:
            return events  # of a session that was cancelled meanwhile: another one that needs the part tries again
        _, ref, error = failed
        if is_memory(error):
            return events + self._give_way(running, "not enough memory for loading")
        return events + self._fail(running, *_cause(running, ref, error))

    def _drop_cancelled(self) -> list[Event]:
        dropped = [running for running in self._sessions.values() if running.cancelled]
        return [event for running in dropped for event in self._end(running, "cancelled")]

    def _drop_pausing(self) -> list[Event]:
        events: list[Event] = []
        for running in [one for one in self._sessions.values() if one.pausing]:
            failpoints.reached("pause.at_boundary")
            try:
                events += self._tell.states(running)
            except Exception as error:
                events += self._fault(running, error, "keeping its state", again=False)
                continue
            self._leave(running)
            paused = wire.Paused(session_id=running.id, attempt=running.submit.attempt, usage=running.usage())
            events.append((paused, b""))
        if events:
            give_back()
        return events

    def _admit(self) -> list[Event]:
        """Bring newcomers in, one at least, and more while that takes no longer than a model call does."""
        started = self._clock()
        events: list[Event] = []
        for running in [one for one in self._sessions.values() if one.stage != "denoising" and not self._waits(one)]:
            if len(running.submit.done) == running.submit.request.num_images:
                events += self._end(running, "succeeded")  # its worker was lost between its last picture and its end
                continue
            if missing := self._residents.missing(running.submit):
                if running.phase != "loading":
                    events += self._tell.phase(running, "loading")
                if not self._loads.busy:
                    self._loads.begin(missing[0], self._submits, session_id=running.id)
                continue
            events += self._admit_one(running)
            if self._clock() - started >= self._call_s:
                break
        return events

    def _admit_one(self, running: Running) -> list[Event]:
        """Encode what it asks for and start it."""
        try:
            self.phase = running.stage = "encoding"
            announced = self._tell.phase(running, "encoding")
            warnings = self._prepare(running)
            running.stage = "denoising"
            if running.submit.attempt == 1:  # a later one shows with its first step that it is not what kills workers
                running.checked_at = self._clock()
            is_drawn = all(one.done for one in running.trajectories)
            return announced + warnings + self._tell.phase(running, "decoding" if is_drawn else "denoising")
        except Exception as error:
            return self._fault(running, error, running.stage)
        finally:
            self.phase = None

    def _prepare(self, running: Running) -> list[Event]:
        """Encode the prompts, read the pictures, draw the first latents of every image."""
        failpoints.reached("encode")
        submit, request = running.submit, running.submit.request
        family = self._residents.family(submit.model)
        adapters = [self._residents.lora(submit.model, ref) for ref in submit.loras]
        plain = request.deterministic or not all(one.stays_within(family.executor.adapts) for one in adapters)
        if plain and family.executor.twin is not None:
            family = family.executor.twin
        running.executor = family.executor
        loras = tuple((lora, asked.scale) for lora, asked in zip(adapters, request.loras, strict=True))
        embeddings = tuple((ref.id, self._residents.embedding(submit.model, ref)) for ref in submit.embeddings)
        text, negative = self.prompts.read(submit, family, loras, embeddings)
        passes = [inputs.read(one, submit.inputs) if submit.inputs else Pictures() for one in request.passes]
        running.pictures = passes[0]
        parts = prepare.Parts(
            family=family,
            model=submit.model.sha256,
            session_id=running.id,
            request=request,
            text=text,
            negative=negative,
            pictures=running.pictures,
            nets=[self._residents.controlnet(submit.model, ref) for ref in submit.controlnets],
            loras=loras,
            larger=passes[-1].controls,
            done=submit.done,
        )
        if submit.inputs:
            with self._watch.time(_work("pictures", prepare.key(parts, 0, request.passes[0]))):
                running.trajectories = prepare.trajectories(parts)
        else:
            running.trajectories = prepare.trajectories(parts)
        warnings = self._put_back(running)
        for field, encoded in (("prompt", text), ("negative_prompt", negative)):
            if encoded is not None and encoded.cut:
                message = f"{field} is longer than the encoder's windows; the rest was left out"
                warnings += self._tell.warning(running, "prompt_cut", message, field=field)
        return warnings

    def _put_back(self, running: Running) -> list[Event]:
        """Bring images to where an earlier attempt left them."""
        warnings: list[Event] = []
        for trajectory in running.trajectories:
            if (state := running.states.get(trajectory.index)) is None:
                continue
            try:
                snapshot.put_back(trajectory, state)
            except snapshot.Unreadable as error:
                log.warning("session %s, image %d begins anew: %s", running.id, trajectory.index, error)
                message = f"what was kept of image {trajectory.index} cannot be read; it begins at its first step"
                warnings += self._tell.warning(running, "checkpoint_unreadable", message)
        running.states = MappingProxyType({})
        running.steps_resumed = running.steps_so_far
        return warnings

    # ---- the step

    def _denoising(self) -> list[Trajectory]:
        running = [one for one in self._sessions.values() if not self._waits(one)]
        return [trajectory for one in running for trajectory in one.trajectories]

    def _denoise(self, batch: Batch) -> list[Event]:
        """One model call, and what it brings or costs its sessions."""
        members = batch.trajectories
        self.phase = "denoising"
        try:
            rows = rows_of(members)
            with self._watch.time(_work("step", batch.key, rows)):
                output = members[0].family.predict(rows)
        except Exception as error:
            return self._run_short(batch) if is_memory(error) else self._part(batch, error)
        finally:
            self.phase = None
        spent = self._call_s = self._watch.seconds
        peak = self._watch.peak
        if not self._watch.disturbed:
            self.limits.measured(batch.key, len(output), spent)
        self._watch.add(cap=self.limits.cap(batch.key))
        self._calls += 1
        self._served[batch.key] = self._calls
        parts = dict(zip(members, output.split([one.rows for one in members]), strict=True))
        events: list[Event] = []
        for running in [*self._sessions.values()]:
            own = sum(one.rows for one in running.trajectories if one in parts)
            if own:
                running.ran_in(len(output), peak)
            running.device_s += spent * own / len(output)
            try:
                for trajectory in running.trajectories:
                    if trajectory in parts:
                        trajectory.advance(parts[trajectory])
                        trajectory.rejoin()
                    elif trajectory.key == batch.key:
                        trajectory.waited += 1
                        trajectory.waited_s += spent
            except Exception as error:
                events += self._fault(running, error, "denoising", again=False)
        return events + self._report(batch)

    def _part(self, batch: Batch, error: Exception) -> list[Event]:
        """A call failed, not of memory. Its images run apart, so that who is to blame fails alone."""
        chosen = set(batch.trajectories)
        members = [one for one in self._sessions.values() if chosen.intersection(one.trajectories)]
        if len(members) == 1 or is_device(error):
            return self._fault(members[0], error, "denoising")
        log.warning("a call of %d sessions failed; each is tried alone", len(members), exc_info=error)
        for running in members:
            for trajectory in chosen.intersection(running.trajectories):
                trajectory.part(f"{running.id}/{trajectory.index}")
        return []

    def _run_short(self, batch: Batch) -> list[Event]:
        """Memory did not hold the call: the next one has half the rows; one image alone gives way to the others."""
        rows = sum(one.rows for one in batch.trajectories)
        log.warning("no memory for %d rows of %dx%d latents", rows, batch.key.width, batch.key.height)
        self.limits.exhausted(batch.key, rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch.trajectories) > 1:
            return []
        lost = next(one for one in self._sessions.values() if batch.trajectories[0] in one.trajectories)
        return self._give_way(lost, "not enough memory for one image of this size")

    def _fault(self, running: Running, error: Exception, doing: str, *, again: bool = True) -> list[Event]:
        """What one session alone was doing failed: it ends, or waits for memory if it can do it `again`; its neighbours
        go on. An error of the device is raised again: that ends the worker, since nothing on it can be trusted.
        """
        if is_memory(error) and again:
            return self._give_way(running, f"not enough memory for {doing}")
        if is_memory(error):
            return self._fail(running, "out_of_memory", f"not enough memory for {doing}")
        if is_device(error):
            raise error
        log.error("session %s failed while %s", running.id, doing, exc_info=error)
        if isinstance(error, FloatingPointError):
            return self._fail(running, "internal", str(error))
        return self._fail(running, "internal", f"{doing} failed; the server's log has the cause")

    def _give_way(self, running: Running, message: str) -> list[Event]:
        """Memory did not hold it: what nobody needs is let go of; else it waits for a neighbour; alone it fails."""
        self.prompts.forget()
        if self._residents.free(self._submits):
            return []
        if any(one is not running and not self._waits(one) for one in self._sessions.values()):
            running.waits_since = self._ends
            return []
        return self._fail(running, "out_of_memory", message)

    def _waits(self, running: Running) -> bool:
        """For a neighbour to end, since memory does not hold both."""
        return running.waits_since == self._ends

    def _report(self, batch: Batch) -> list[Event]:
        chosen = set(batch.trajectories)
        events: list[Event] = []
        for running in sorted(self._sessions.values(), key=lambda one: one.shown_at):  # there may be time to show one
            if not chosen.intersection(running.trajectories):
                continue
            try:
                events += self._tell.step(running, call=self._calls, within_s=self._call_s)
            except Exception as error:
                events += self._fault(running, error, "keeping its state", again=False)
        return events

    # ---- pictures out

    def _decode_done(self) -> list[Event]:
        """One, and then more for as long as a model call takes: those that ended together leave together."""
        events = self._decode_one()
        if not events:
            return []
        until = self._clock() + self._call_s
        while self._clock() < until and (told := self._decode_one()):
            events += told
        return events

    def _decode_one(self) -> list[Event]:
        for running in [one for one in self._sessions.values() if not self._waits(one)]:
            for trajectory in running.trajectories:
                if trajectory.done:
                    return self._decode(running, trajectory)
                if trajectory.sampler.done:
                    return self._enlarge(running, trajectory)
        return []

    def _enlarge(self, running: Running, trajectory: Trajectory) -> list[Event]:
        """Into its second pass."""
        self.phase = "decoding"
        try:
            begin_second(trajectory)
        except Exception as error:
            return self._fault(running, error, "the second pass")
        finally:
            self.phase = None
        return []

    def _decode(self, running: Running, trajectory: Trajectory) -> list[Event]:
        failpoints.reached("decode")
        submit = running.submit
        self.phase = "decoding"
        try:
            _see_finite(trajectory)
            with self._watch.time(_work("decode", trajectory.key)):
                pixels = trajectory.family.decode(trajectory.latents)[0]
                if running.pictures is not None:
                    pixels = running.pictures.paste(pixels)
        except Exception as error:
            return self._fault(running, error, "decoding")
        finally:
            self.phase = None
        running.saw_peak(self._watch.peak)
        executor = trajectory.family.executor
        ran = msgspec.structs.replace(submit.model, executor=executor.name, dtype=executor.dtype)
        try:
            with self._watch.time(_work("file", trajectory.key)):
                submit = msgspec.structs.replace(submit, model=ran)
                file, thumbnail = self._encode_image(pixels, submit, trajectory.index)
        except Exception as error:
            return self._fault(running, error, "writing the picture")
        running.trajectories.remove(trajectory)
        running.steps_done += trajectory.steps
        image = wire.ImageDone(
            session_id=running.id,
            attempt=submit.attempt,
            index=trajectory.index,
            seed=trajectory.seed,
            width=pixels.shape[1],
            height=pixels.shape[0],
            format=submit.request.output.format,
            thumbnail_bytes=len(thumbnail),
            usage=running.usage(),
        )
        events: list[Event] = [(image, file + thumbnail)]
        if not running.trajectories:
            events += self._tell.phase(running, "storing") + self._end(running, "succeeded")
        return events

    def _fail(self, running: Running, code: str, message: str) -> list[Event]:
        error = ErrorInfo(code=code, message=message, phase=running.phase, retryable=False)
        return self._end(running, "failed", error)

    def _end(self, running: Running, outcome: str, error: ErrorInfo | None = None) -> list[Event]:
        self._leave(running)
        usage = running.usage()
        attempt = running.submit.attempt
        ended = wire.Ended(session_id=running.id, attempt=attempt, outcome=outcome, usage=usage, error=error)
        return [(ended, b"")]

    def _leave(self, running: Running) -> None:
        del self._sessions[running.id]
        self._ends += 1
        for key in [one for one in self._served if one.alone.startswith(f"{running.id}/")]:
            del self._served[key]  # nobody will have it again


def _work(what: str, key: BatchKey, rows: Rows | None = None) -> wire.Work:
    return wire.Work(
        what=what,
        model=key.model,
        executor=key.executor,
        dtype=key.dtype,
        height=key.height,
        width=key.width,
        windows=key.windows if rows else 0,
        rows=len(rows.latents) if rows else 1,
        nets=max(map(len, rows.controls), default=0) if rows else 0,
        loras=bool(rows.loras) if rows else False,
    )


def _see_finite(trajectory: Trajectory) -> None:
    if not trajectory.latents.isfinite().all():
        raise FloatingPointError(
            f"the values of image {trajectory.index} are not finite after its last step; take another scheduler, other "
            "scheduler_options or fewer steps"
        )


def _cause(running: Running, ref: wire.ModelRef, error: Exception) -> tuple[str, str]:
    """Code and message for a caller of what went wrong while loading."""
    why = (
        f": {error}"
        if isinstance(error, ValueError) and ref.kind != "checkpoint"
        else "; the server's log has the cause"
    )
    return "model_invalid", f"{ref.kind} {ref.id!r} could not be loaded for {running.submit.model.id!r}{why}"
