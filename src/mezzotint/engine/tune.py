"""Measures a model under every executor and dtype and writes its profile. A process of its own.

`python -m mezzotint.engine.tune` with a Subject as JSON; `--refused` says why there are no graphs. Must not convert.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mezzotint import profiles
from mezzotint.profiles import CANDIDATES, Candidate, Profile, Subject
from mezzotint.request import Output, Request, plain
from mezzotint.workers import wire
from mezzotint.workers.limits import limit_myself

if TYPE_CHECKING:
    from torch import Tensor

    from mezzotint.families.base import Family, Rows

PROBES = ("a red boat on a lake", "a slice of pizza", "")
PROBE_STEPS = 10
ROUNDS = 7
ENOUGH_S = 8.0  # of one kind of call; slow models get fewer rounds
SLOW_S = 1.0  # a step of one image in torch float32; such a model is looked at with less
SLOW_STEPS = 4
TOO_SLOW = 3.0  # times torch in float32, as bfloat16 is on a CPU that only imitates it: not worth the minutes


def main() -> None:
    parser = argparse.ArgumentParser(prog="mezzotint-tune")
    parser.add_argument("subject")
    parser.add_argument("--refused")
    parser.add_argument("--memory-bytes", type=int, required=True)
    args = parser.parse_args()
    limit_myself(memory_bytes=args.memory_bytes)  # not nicer than a worker, or it would not measure what a worker does
    subject = msgspec.json.decode(args.subject, type=Subject)
    try:
        profiles.write(Path(subject.cache), measure(subject, args.refused))
    except Exception as error:  # noqa: BLE001  whatever a model's files can cause; the reason is for a person
        from mezzotint.engine.stopwatch import why

        sys.stderr.write(f"measuring failed: {why(error)}\n")
        raise SystemExit(1) from None


def measure(subject: Subject, refused: str | None) -> Profile:
    from mezzotint.workers.imports import import_quickly

    import_quickly()
    import torch

    from mezzotint.engine import executors
    from mezzotint.engine.memory import give_back
    from mezzotint.engine.stopwatch import why
    from mezzotint.families import products
    from mezzotint.families.table import implementation

    kind = subject.device.partition(":")[0]
    device = torch.device(kind if kind == "cpu" else subject.device)
    torch.set_num_threads(subject.threads)
    torch.set_grad_enabled(False)
    if kind == "cpu":
        products.choose()

    def loaded(dtype: torch.dtype) -> Any:
        vae = Path(subject.vae) if subject.vae else None
        family = implementation(subject.family)(Path(subject.path), device, dtype, vae)
        family.pack()
        return family

    held = {torch.float32: loaded(torch.float32)}
    graphs = profiles.graphs_of(Path(subject.cache), subject.sha256)

    def opened(executor: str, dtype: str) -> "Family":
        if executor == "openvino" and refused:
            raise executors.Unavailable(refused)
        wanted = executors.loaded_in(executor, dtype)
        if wanted not in held:
            if slow:
                held.clear()
                give_back()
            held[wanted] = loaded(wanted)
        family = executors.open_with(held[wanted], executor, dtype, graphs=graphs, threads=subject.threads)
        rows = _rows(family, subject, 1)
        family.predict(rows)
        limit_s = TOO_SLOW * plain_s if (executor, dtype) != ("torch", "float32") else math.inf
        if (taken := _predicting(family, rows)) > limit_s and (taken := _predicting(family, rows)) > limit_s:
            raise executors.Unavailable(f"a step takes {taken / plain_s:.1f} times what torch takes in float32")
        return family

    rows = _rows(held[torch.float32], subject, 1)
    held[torch.float32].predict(rows)  # the first is not timed
    plain_s = _predicting(held[torch.float32], rows)
    slow = plain_s > SLOW_S
    # A large model is not held in every form at once, and fills the cores with one image.
    groups = [(one,) for one in CANDIDATES[kind]] if slow else [CANDIDATES[kind]]
    measured: list[Candidate] = []
    reference: Tensor | None = None
    for group in groups:
        found: dict[tuple[str, str], Family] = {}
        pictures: dict[tuple[str, str], Tensor] = {}
        for one in group:
            try:
                family = opened(*one)
                pictures[one] = _pictures(family, subject, slow=slow)
                found[one] = family
            except executors.Unavailable as error:
                measured.append(Candidate(executor=one[0], dtype=one[1], reason=str(error)))
            except (RuntimeError, MemoryError) as error:
                if one == ("torch", "float32"):
                    raise
                measured.append(Candidate(executor=one[0], dtype=one[1], reason=why(error)))
        try:
            spent = {images: _times(found, subject, images) for images in ((1,) if slow else (1, 4))}
            decoding = _interleaved({one: _decoding(family, subject) for one, family in found.items()})
        except (RuntimeError, MemoryError) as error:
            if reference is None:
                raise
            measured += [Candidate(executor=one[0], dtype=one[1], reason=why(error)) for one in found]
            continue
        reference = pictures["torch", "float32"] if reference is None else reference
        for one in found:
            step, step_at_4 = spent[1][one], spent[4][one] / 4 if 4 in spent else None
            difference = float((pictures[one] - reference).abs().mean())
            measured.append(_candidate(one, subject, step, step_at_4, decoding[one], difference))
    return Profile(
        model=subject.sha256,
        device=subject.device,
        machine=profiles.machine(),
        threads=subject.threads,
        versions=profiles.versions(),
        ranking=profiles.rank(tuple(measured)),
    )


def _candidate(
    one: tuple[str, str], subject: Subject, step: float, step_at_4: float | None, decoding: float, difference: float
) -> Candidate:
    each = step if step_at_4 is None else step_at_4
    timed = Candidate(
        executor=one[0],
        dtype=one[1],
        ms_per_step=_ms(step),
        ms_per_step_at_4=None if step_at_4 is None else _ms(step_at_4),
        ms_per_image=_ms(subject.steps * each + decoding),
        difference=round(difference, 4),
    )
    if timed.is_close:
        return timed
    limit = profiles.MAX_DIFFERENCE[timed.dtype]
    reason = f"its pictures differ by {difference:.2f} of 255; {limit:g} is the most"
    return msgspec.structs.replace(timed, reason=reason)


def _times(found: dict[tuple[str, str], "Family"], subject: Subject, images: int) -> dict[tuple[str, str], float]:
    def call(family: "Family") -> Callable[[], Any]:
        rows = _rows(family, subject, images)
        return lambda: family.predict(rows)

    return _interleaved({one: call(family) for one, family in found.items()})


def _decoding(family: "Family", subject: Subject) -> Callable[[], Any]:
    latents = _rows(family, subject, 1).latents[:1]
    return lambda: family.decode(latents)


def _interleaved(calls: dict[tuple[str, str], Callable[[], Any]]) -> dict[tuple[str, str], float]:
    """Median seconds of each, taken in turns, so that what else runs on the machine falls on all alike."""
    taken: dict[tuple[str, str], list[float]] = {one: [] for one in calls}
    for call in calls.values():
        call()
    started = time.perf_counter()
    for done in range(ROUNDS):
        if done >= 2 and time.perf_counter() - started > ENOUGH_S:
            break
        for one, call in calls.items():
            taken[one].append(_seconds(call))
    return {one: statistics.median(times) for one, times in taken.items()}


def _predicting(family: "Family", rows: "Rows") -> float:
    return _seconds(lambda: family.predict(rows))


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _rows(family: "Family", subject: Subject, images: int) -> "Rows":
    """So many images with guidance: two rows each, at the model's own size."""
    from mezzotint.engine import probe

    rows = probe.rows(family, 2 * images, subject.height // family.vae_factor, subject.width // family.vae_factor)
    return replace(rows, latents=probe.paired(rows.latents), timesteps=probe.paired(rows.timesteps))


def _pictures(family: "Family", subject: Subject, *, slow: bool) -> "Tensor":
    """What the engine draws with it, (n, H, W, 3) float."""
    import torch

    from mezzotint.engine.engine import Engine
    from mezzotint.engine.meter import HostMeter

    drawn: dict[str, Tensor] = {}

    def keep(pixels: "Tensor", submit: wire.Submit, index: int) -> tuple[bytes, bytes]:
        drawn[submit.session_id] = pixels.float()
        return b"", b""

    engine = Engine(lambda model: family, keep, time.monotonic, meter=HostMeter(), budget_bytes=1)
    model = wire.ModelRef(
        id=subject.id, kind="checkpoint", family=subject.family, path=subject.path, bytes=0, sha256=subject.sha256
    )
    probes, steps = (PROBES[:1], SLOW_STEPS) if slow else (PROBES, PROBE_STEPS)
    for number, prompt in enumerate(probes):
        request = _request(subject, prompt, number, steps)
        engine.submit(wire.Submit(session_id=str(number), attempt=1, request=request, model=model))
    while not engine.idle:
        for message, _ in engine.step():
            if isinstance(message, wire.Ended) and message.error is not None:
                raise RuntimeError(f"a probe picture failed: {message.error.message}")
    return torch.stack([drawn[str(number)] for number in range(len(probes))])


def _request(subject: Subject, prompt: str, seed: int, steps: int) -> Request:
    return replace(
        plain(subject.id, prompt, seed),
        width=subject.width,
        height=subject.height,
        num_inference_steps=min(steps, subject.steps),
        guidance_scale=subject.guidance_scale,
        scheduler=subject.scheduler,
        output=Output(format="png", quality=95, embed_metadata=False),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


if __name__ == "__main__":
    main()
