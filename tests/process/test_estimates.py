"""What is promised before a session runs comes from what was measured, and follows it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mezzotint import bodies
from mezzotint.config import load_settings
from mezzotint.estimates import Busy, Estimate
from mezzotint.operations import forecast, intake
from mezzotint.server import Mezzotint
from mezzotint.session import Session

pytestmark = pytest.mark.anyio

PLAIN = {"executor": "torch", "dtype": "float32"}


@pytest.fixture
async def engine(tmp_path: Path, random_sd: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mezzotint]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = load_settings(data=tmp_path / "data", models=(random_sd,), **PLAIN)
    async with Mezzotint(settings=settings) as opened:
        await opened.supervisor.until_ready()
        yield opened


async def promised(engine: Mezzotint, **body: Any) -> Estimate:
    parts = engine.operations._parts
    return await forecast.estimate(parts, (await intake.read(parts, body)).request)


async def draw(engine: Mezzotint, **body: Any) -> Session:
    submitted = await engine.submit(**body)
    return await engine.operations.wait(submitted.accepted)


SMALL = {"model": "tiny", "steps": 6, "seed": 1}
LARGE = {**SMALL, "width": 96, "height": 96}
OTHER = {"model": "icons", "steps": 6, "seed": 1}


async def test_promises_come_from_measurements_and_differ_as_the_sessions_do(engine: Mezzotint) -> None:
    nothing = await promised(engine, **SMALL)
    assert (nothing.basis, nothing.duration_s, nothing.queue_s) == ("unknown", None, None)
    assert nothing.unknown["duration_s"] == "nothing like it ran on this device yet"

    await draw(engine, **SMALL)
    drawn_on = await promised(engine, **LARGE)
    assert drawn_on.basis == "extrapolated"
    family = await promised(engine, **OTHER)
    assert family.basis == "extrapolated", "a model of the same family, by size"

    for body in (SMALL, LARGE, OTHER) * 3:
        await draw(engine, **body)
    small, large, other = [await promised(engine, **body) for body in (SMALL, LARGE, OTHER)]
    assert {one.basis for one in (small, large, other)} == {"measured"}
    assert small.queue_s == 0
    assert small.duration_s is not None
    assert large.duration_s is not None
    assert other.duration_s is not None
    assert small.duration_s < large.duration_s
    assert small.duration_s < other.duration_s
    more = await promised(engine, **{**OTHER, "steps": 24})
    assert more.duration_s is not None
    assert 2.0 < more.duration_s / other.duration_s < 4.5

    parts = engine.operations._parts
    four, two = [(await intake.read(parts, {**OTHER, "num_images": count})).request for count in (4, 2)]
    half_done, just_begun = Busy(request=four, fraction=0.5, images_left=2), Busy(request=two, fraction=1e-9)
    beside = [await parts.estimates.of(two, "cpu:0", running=[one]) for one in (half_done, just_begun)]
    assert beside[0].duration_s == pytest.approx(beside[1].duration_s), "two of four images are all still to be drawn"

    running = [await engine.submit(**{**OTHER, "steps": 40, "num_images": 4, "seed": seed}) for seed in range(6)]
    busy = await promised(engine, **OTHER)
    assert busy.duration_s is not None
    assert busy.queue_s is not None
    assert busy.duration_s > other.duration_s
    assert busy.queue_s > 0, "sixteen images are claimed, eight more wait"
    for one in running:
        await one.cancel()
        await engine.operations.wait(one.accepted)


async def test_a_session_is_promised_what_validation_told_and_all_of_a_batch_are_counted(
    engine: Mezzotint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await draw(engine, **SMALL)
    accepted: list[tuple[Any, ...]] = []
    monkeypatch.setattr(engine.operations._parts.metrics, "accepted", lambda *told: accepted.append(told[1:]))
    told = await promised(engine, **SMALL)
    await draw(engine, **SMALL)
    assert [promise for _, promise in accepted] == [(told.duration_s, "measured")], "it does not wait for itself"
    accepted.clear()
    await engine.operations.create_batch({"requests": [SMALL, {**SMALL, "type": "text2img"}]})
    assert [kind for (kind,) in accepted] == ["text2img", "text2img"]


async def test_a_model_that_is_loaded_in_another_dtype_is_still_to_be_loaded(
    tmp_path: Path, random_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = load_settings(data=tmp_path / "data", models=(random_sd,), executor="torch", dtype="bfloat16")
    async with Mezzotint(settings=settings) as engine:
        for body in (SMALL, {**SMALL, "deterministic": True}) * 3:
            await draw(engine, **body)
        worker = engine.supervisor.seats["cpu:0"].worker
        while worker is None or worker.heartbeat is None or len(worker.heartbeat.loaded) < 2:
            await asyncio.sleep(0.05)
        both = await promised(engine, **SMALL, deterministic=True)
        await engine.operations.unload_model("tiny")
        await engine.operations.load_model("tiny")
        half = await promised(engine, **SMALL, deterministic=True)
        assert half.duration_s is not None
        assert both.duration_s is not None
        assert half.duration_s > both.duration_s


# What is the same whatever runs: the machine's, what a caller set, and what would tell of trouble that there was not.
STILL = {
    "devices.memory.total_bytes", "devices.threads", "analytics.window_s", "workers.pid", "workers.restarts",
    "trace.attempts.number", "trace.attempts.steps_resumed", "trace.spans.paused_s", "session.usage.steps_resumed",
    "session.timing.paused_s", "session.progress.fraction", "session.progress.image_index",
    "analytics.all.spans.paused_s", "analytics.groups.spans.paused_s",
}  # fmt: skip


def figures(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a body, by where it stands; not told apart by place in a list, percentile or number of rows."""
    if isinstance(value, dict):
        for name, inner in value.items():
            counts = name.removeprefix("p").isdigit()
            yield from figures(inner, path if counts else f"{path}.{name}" if path else name)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from figures(inner, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


async def test_no_figure_is_a_constant(engine: Mezzotint) -> None:
    seen: dict[str, set[float]] = {}

    async def look(**shown: Any) -> None:
        told = await operations.capabilities()
        shown |= {"devices": await operations.devices(), "batching": told["batching"], "workers": operations.workers()}
        shown |= {"analytics": await operations.analytics(), "free": told["limits"]["queue_free"]}
        for name, value in figures(shown):
            seen.setdefault(name, set()).add(value)

    operations = engine.operations
    tiny = {**SMALL, "width": 32, "height": 32}
    sizes = [SMALL, {**tiny, "steps": 7}, OTHER, {**OTHER, "width": 128, "height": 96, "steps": 8}]
    for body in sizes * 3:
        await draw(engine, **body)
        await look()
    larger = await operations.validate({**OTHER, "width": 512, "height": 512})  # than what the process keeps for later
    await look(estimate=larger["estimate"])
    for company in (0, 20):  # more than are drawn at once
        beside = [await engine.submit(**{**SMALL, "steps": 1000, "seed": seed}) for seed in range(company)]
        for body in sizes if not company else sizes[::3]:
            estimate = (await operations.validate(body))["estimate"]
            ended = await draw(engine, **body, priority=9)
            told = bodies.session(ended)
            trace = bodies.trace(*await operations.trace(ended.id))
            await look(
                estimate=estimate,
                session={name: told[name] for name in ("timing", "usage", "progress")},
                trace=trace,
            )
        for one in beside:
            await one.cancel()
            await operations.wait(one.accepted)
    seen.pop("batching.max_batch.rows")  # goes down where larger calls gain nothing, which depends on the machine
    assert {name for name, values in seen.items() if len(values) == 1} == STILL
    assert {
        "estimate.peak_memory_bytes",
        "estimate.duration_s",
        "estimate.queue_s",
        "devices.utilization",
    } < seen.keys()
