"""What is promised before a session runs comes from what was measured, and follows it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mezzotint.config import load_settings
from mezzotint.estimates import Estimate
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
    return await engine.operations.wait(submitted.id)


SMALL = {"model": "tiny", "steps": 6, "seed": 1}
LARGE = {**SMALL, "width": 256, "height": 256}
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

    running = [await engine.submit(**{**OTHER, "steps": 40, "num_images": 4, "seed": seed}) for seed in range(6)]
    busy = await promised(engine, **OTHER)
    assert busy.duration_s is not None
    assert busy.queue_s is not None
    assert busy.duration_s > other.duration_s
    assert busy.queue_s > 0, "sixteen images are claimed, eight more wait"
    for one in running:
        await one.cancel()
        await engine.operations.wait(one.id)
