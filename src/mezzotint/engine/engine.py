"""The step loop: sessions in, events out, one batch and one step at a time.

Owns no process, socket or file: it is handed a loader and an encoder, and returns wire messages. Each call of `step`
is bounded: at most one load or encoding, one decoding and one model call.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable

import msgspec
import torch
from torch import Tensor

from mezzotint.engine.batching import Batch, pick_batch
from mezzotint.engine.samplers import Sampler
from mezzotint.engine.trajectory import BatchKey, Running, Trajectory
from mezzotint.errors import ErrorInfo
from mezzotint.families.base import Conditioning, Family, Prompt, Rows
from mezzotint.session import Usage
from mezzotint.workers import wire

log = logging.getLogger(__name__)

Event = tuple[wire.FromWorker, bytes]

MAX_ROWS = 16  # of one model call, until caps are learned per model and shape
MAX_MODELS = 2  # kept loaded; more only while sessions use them
MAX_CONDITIONINGS = 128


class Engine:
    """Denoises many sessions at once. Not thread-safe: one thread calls everything."""

    def __init__(
        self,
        load: Callable[[wire.ModelRef], Family],
        encode_image: Callable[[Tensor, wire.Submit, int], bytes],
        clock: Callable[[], float],
        *,
        max_rows: int = MAX_ROWS,
    ) -> None:
        """`encode_image(pixels (H, W, 3) uint8, submit, index)` gives a file, with what did run in `submit.model`;
        `clock` is monotonic seconds."""
        self._load, self._encode_image, self._clock = load, encode_image, clock
        self._max_rows = max_rows
        self._sessions: dict[str, Running] = {}
        self._models: OrderedDict[wire.ModelRef, Family] = OrderedDict()  # least recently used first
        self._conditionings: OrderedDict[tuple[wire.ModelRef, Prompt], Conditioning] = OrderedDict()
        self._served: dict[BatchKey, int] = {}
        self._calls = 0
        self._call_s = 0.0  # how long the last model call took
        self.phase: str | None = None  # what a blocking call is doing, for the heartbeat

    @property
    def idle(self) -> bool:
        return not self._sessions

    @property
    def resident(self) -> tuple[str, ...]:
        """Ids of the models that are loaded."""
        return tuple(dict.fromkeys(model.id for model in self._models))

    def submit(self, submit: wire.Submit) -> None:
        """Take a session. It joins the batch at a later step boundary."""
        self._sessions[submit.session_id] = Running(submit=submit, stage="loading")

    def load(self, model: wire.ModelRef) -> None:
        """Load ahead of need. What cannot be loaded is told to the session that asks for it."""
        self.phase = "loading"
        try:
            self._load_model(model)
        except Exception:
            log.exception("model %s could not be loaded", model.id)
        finally:
            self.phase = None

    def cancel(self, session_id: str, attempt: int) -> None:
        """Stop a session at the next boundary. Unknown ids and other attempts are ignored: they have ended."""
        running = self._sessions.get(session_id)
        if running is not None and running.submit.attempt == attempt:
            running.cancelled = True

    def step(self) -> list[Event]:
        """Advance one batch by one denoising step. Returns what happened; never blocks on a caller."""
        events = self._drop_cancelled() + self._admit() + self._decode_one()
        batch = pick_batch(self._denoising(), self._served, self._max_rows)
        if batch is None:
            return events
        self._denoise(batch)
        return events + self._report(batch)

    # ---- sessions in

    def _drop_cancelled(self) -> list[Event]:
        dropped = [running for running in self._sessions.values() if running.cancelled]
        return [event for running in dropped for event in self._end(running, "cancelled")]

    def _admit(self) -> list[Event]:
        """Bring newcomers in, one at least, and more while that takes no longer than a model call does."""
        started = self._clock()
        events: list[Event] = []
        for running in [one for one in self._sessions.values() if one.stage != "denoising"]:
            loaded = running.submit.model in self._models
            events += self._admit_one(running)
            if not loaded or self._clock() - started >= self._call_s:
                break
        return events

    def _admit_one(self, running: Running) -> list[Event]:
        """Announce a load, do it the next time, or encode and start."""
        if running.submit.model not in self._models and running.phase != "loading":
            return self._announce(running, "loading")
        try:
            if running.submit.model not in self._models:
                self.phase = "loading"
                self._load_model(running.submit.model)
            self.phase = running.stage = "encoding"
            announced = self._announce(running, "encoding")
            warnings = self._prepare(running)
            running.stage = "denoising"
            return announced + warnings + self._announce(running, "denoising")
        except Exception as error:
            if _is_memory(error):
                return self._fail(running, "out_of_memory", f"not enough memory for {running.stage}")
            log.exception("session %s failed while %s", running.id, running.stage)
            code = "model_invalid" if running.stage == "loading" else "internal"
            return self._fail(running, code, f"{running.stage} failed; the server's log has the cause")
        finally:
            self.phase = None

    def _load_model(self, model: wire.ModelRef) -> None:
        in_use = {running.submit.model for running in self._sessions.values()}
        for loaded in list(self._models):
            replaced = loaded.id == model.id  # the same one, to be run otherwise from here on
            if (replaced or len(self._models) >= MAX_MODELS) and loaded not in in_use:
                del self._models[loaded]
        self._models[model] = self._load(model)

    def _prepare(self, running: Running) -> list[Event]:
        """Encode the prompts and draw the first latents of every image."""
        request, model = running.submit.request, running.submit.model
        family = self._models[model]
        self._models.move_to_end(model)
        if request.deterministic and family.executor.twin is not None:
            family = family.executor.twin
        running.executor = family.executor
        guided = request.guidance_scale > 1
        texts = [request.prompt, request.negative_prompt] if guided else [request.prompt]
        syntax = request.prompt_syntax
        windows = max(family.windows(text, syntax) for text in texts)
        encoded = [
            self._conditioning(family, model, Prompt(text=text, syntax=syntax, clip_skip=skip, windows=windows))
            # diffusers applies clip_skip to the prompt only
            for text, skip in zip(texts, (request.clip_skip, None), strict=False)
        ]
        height, width = request.height // family.vae_factor, request.width // family.vae_factor
        for index in range(request.num_images):
            sampler = Sampler(request, family.scheduler_config, request.seed + index)
            trajectory = Trajectory(
                key=BatchKey(
                    model=f"{model.sha256} {family.executor.name} {family.executor.dtype}",
                    height=height,
                    width=width,
                    windows=windows,
                    alone=f"{running.id}/{index}" if request.deterministic else "",
                ),
                family=family,
                index=index,
                seed=request.seed + index,
                sampler=sampler,
                latents=sampler.noise(family.latent_channels, height, width),
                hidden=encoded[0].hidden,
                negative=encoded[1].hidden if guided else None,
                guidance_scale=request.guidance_scale,
                priority=request.priority,
            )
            running.trajectories.append(trajectory)
        if not any(conditioning.cut for conditioning in encoded):
            return []
        message = "the prompt is longer than the encoder's windows; the rest was left out"
        warned = wire.Warned(
            session_id=running.id,
            attempt=running.submit.attempt,
            code="prompt_cut",
            message=message,
            field="prompt",
        )
        return [(warned, b"")]

    def _conditioning(self, family: Family, model: wire.ModelRef, prompt: Prompt) -> Conditioning:
        key = (model, prompt)
        if key not in self._conditionings:
            self._conditionings[key] = family.encode([prompt])[0]
            if len(self._conditionings) > MAX_CONDITIONINGS:
                self._conditionings.popitem(last=False)
        self._conditionings.move_to_end(key)
        return self._conditionings[key]

    # ---- the step

    def _denoising(self) -> list[Trajectory]:
        return [trajectory for running in self._sessions.values() for trajectory in running.trajectories]

    def _denoise(self, batch: Batch) -> None:
        members = batch.trajectories
        self.phase = "denoising"
        started = self._clock()
        output = members[0].family.predict(_rows(members))
        spent = self._call_s = self._clock() - started
        self.phase = None
        for trajectory, part in zip(members, output.split([one.rows for one in members]), strict=True):
            trajectory.advance(part)
        self._calls += 1
        self._served[batch.key] = self._calls
        chosen = set(members)
        for running in self._sessions.values():
            own = sum(one.rows for one in running.trajectories if one in chosen)
            running.device_s += spent * own / len(output)
            for trajectory in running.trajectories:
                if trajectory.key == batch.key and trajectory not in chosen:
                    trajectory.waited += 1

    def _report(self, batch: Batch) -> list[Event]:
        chosen = set(batch.trajectories)
        events: list[Event] = []
        for running in self._sessions.values():
            if not chosen.intersection(running.trajectories):
                continue
            lowest = next((one for one in running.trajectories if not one.sampler.done), running.trajectories[-1])
            request = running.submit.request
            progress = wire.Progress(
                session_id=running.id,
                attempt=running.submit.attempt,
                image_index=lowest.index,
                step=lowest.sampler.step,
                steps=request.num_inference_steps,
                done=running.steps_run,
                total=request.num_inference_steps * request.num_images,
            )
            events.append((progress, b""))
            if all(one.sampler.done for one in running.trajectories):
                events += self._announce(running, "decoding")
        return events

    # ---- pictures out

    def _decode_one(self) -> list[Event]:
        for running in self._sessions.values():
            for trajectory in running.trajectories:
                if trajectory.sampler.done:
                    return self._decode(running, trajectory)
        return []

    def _decode(self, running: Running, trajectory: Trajectory) -> list[Event]:
        submit = running.submit
        self.phase = "decoding"
        try:
            pixels = trajectory.family.decode(trajectory.latents)[0]
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            return self._fail(running, "out_of_memory", "not enough memory for decoding")
        finally:
            self.phase = None
        executor = trajectory.family.executor
        ran = msgspec.structs.replace(submit.model, executor=executor.name, dtype=executor.dtype)
        blob = self._encode_image(pixels, msgspec.structs.replace(submit, model=ran), trajectory.index)
        running.trajectories.remove(trajectory)
        running.steps_done += trajectory.sampler.steps
        image = wire.ImageDone(
            session_id=running.id,
            attempt=submit.attempt,
            index=trajectory.index,
            seed=trajectory.seed,
            width=pixels.shape[1],
            height=pixels.shape[0],
            format=submit.request.output.format,
        )
        events: list[Event] = [(image, blob)]
        if not running.trajectories:
            events += self._announce(running, "storing") + self._end(running, "succeeded")
        return events

    def _fail(self, running: Running, code: str, message: str) -> list[Event]:
        error = ErrorInfo(code=code, message=message, phase=running.phase, retryable=False)
        return self._end(running, "failed", error)

    def _end(self, running: Running, outcome: str, error: ErrorInfo | None = None) -> list[Event]:
        del self._sessions[running.id]
        unknown = {"peak_memory_bytes": "not measured per session by this version"}
        ran = running.executor
        usage = Usage(
            device_s=running.device_s,
            steps_run=running.steps_run,
            executor=ran.name if ran else None,
            dtype=ran.dtype if ran else None,
            unknown=unknown,
        )
        attempt = running.submit.attempt
        ended = wire.Ended(session_id=running.id, attempt=attempt, outcome=outcome, usage=usage, error=error)
        return [(ended, b"")]

    def _announce(self, running: Running, phase: str) -> list[Event]:
        running.phase = phase
        at_s = self._clock()
        return [(wire.Phase(session_id=running.id, attempt=running.submit.attempt, phase=phase, at_s=at_s), b"")]


def _is_memory(error: Exception) -> bool:
    """torch has a class of its own for a device that is full, but only words for a full host."""
    told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _rows(members: tuple[Trajectory, ...]) -> Rows:
    latents, timesteps, hidden = [], [], []
    for one in members:
        scaled = one.sampler.scaled(one.latents)
        texts = [one.hidden] if one.negative is None else [one.negative, one.hidden]
        latents += [scaled] * len(texts)
        timesteps += [one.sampler.timestep.to(torch.float32)] * len(texts)
        hidden += texts
    return Rows(latents=torch.cat(latents), timesteps=torch.stack(timesteps), hidden=torch.stack(hidden))
