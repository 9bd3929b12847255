"""What a session is told as it runs: phases, warnings, progress, pictures on the way, and the states it goes on from.

Must not move a trajectory or end a session.
"""

import logging
from collections.abc import Callable

from mezzotint import failpoints, images
from mezzotint.engine import snapshot
from mezzotint.engine.preview import Previews
from mezzotint.engine.stopwatch import is_device
from mezzotint.engine.trajectory import Running, Trajectory
from mezzotint.workers import wire

log = logging.getLogger(__name__)

Event = tuple[wire.FromWorker, bytes]

CHECK_S = 0.25  # between two checkpoints of a session


class Telling:
    """Of all sessions of an engine; `clock` is its own."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._previews = clock, Previews(clock)

    def phase(self, running: Running, phase: str) -> list[Event]:
        running.phase = phase
        at_s = self._clock()
        return [(wire.Phase(session_id=running.id, attempt=running.submit.attempt, phase=phase, at_s=at_s), b"")]

    def warning(self, running: Running, code: str, message: str, field: str | None = None) -> list[Event]:
        attempt = running.submit.attempt
        return [(wire.Warned(session_id=running.id, attempt=attempt, code=code, message=message, field=field), b"")]

    def step(self, running: Running, *, call: int, within_s: float) -> list[Event]:
        lowest, request = running.lowest, running.submit.request
        progress = wire.Progress(
            session_id=running.id,
            attempt=running.submit.attempt,
            image_index=lowest.index,
            step=lowest.step,
            steps=request.steps,
            done=running.steps_so_far,
            total=request.steps * request.num_images,
            call=call,
        )
        events: list[Event] = [(progress, b"")]
        if lowest.shows:
            try:
                events += self._show(running, lowest, within_s)
            except Exception as error:
                if is_device(error):
                    raise
                log.exception("session %s cannot be shown on its way", running.id)
                for trajectory in running.trajectories:
                    trajectory.shows = False
                message = "an image on its way cannot be shown; it is drawn, without previews"
                events += self.warning(running, "preview_failed", message, field="preview")
        events += self._check(running)
        if all(one.done for one in running.trajectories):
            events += self.phase(running, "decoding")
        return events

    def _show(self, running: Running, trajectory: Trajectory, within_s: float) -> list[Event]:
        """The image that progress is told of, as it looks by now, if this step is one to show it at.

        For one of every few there may have been no time: then after a later step.
        """
        request, step = running.submit.request, trajectory.step
        asked, shown = request.preview, (trajectory.index, step)
        if asked is None or trajectory.done or running.shown == shown:
            return []
        if not asked.at(step) and not running.owed:
            return []
        running.shown = shown
        pixels = self._previews.draw(trajectory, within_s=within_s, must=step in asked.at_steps)
        running.owed = pixels is None and asked.every_steps > 0
        if pixels is None:
            return []
        running.shown_at = self._clock()
        if running.pictures is not None:
            pixels = running.pictures.paste(pixels)
        file, width, height = images.preview(pixels.numpy(), request.output, asked.max_px)
        told = wire.Preview(
            session_id=running.id,
            attempt=running.submit.attempt,
            image_index=trajectory.index,
            step=step,
            steps=request.steps,
            width=width,
            height=height,
        )
        return [(told, file)]

    def _check(self, running: Running) -> list[Event]:
        """The state of each image that has moved, now and then."""
        now = self._clock()
        if now - running.checked_at < CHECK_S:
            return []
        running.checked_at = now
        return self.states(running)

    def states(self, running: Running) -> list[Event]:
        """Of each image that has moved since it was told last."""
        events: list[Event] = []
        for trajectory in running.trajectories:
            if trajectory.sampler.calls == trajectory.checked_calls:
                continue
            trajectory.checked_calls = trajectory.sampler.calls
            failpoints.reached("checkpoint.before_send")
            told = wire.Checkpoint(
                session_id=running.id,
                attempt=running.submit.attempt,
                index=trajectory.index,
                step=trajectory.step,
                usage=running.usage(),
            )
            events.append((told, snapshot.take(trajectory)))
        return events
