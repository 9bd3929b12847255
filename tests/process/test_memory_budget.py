"""With little memory what is accepted ends well, and what is refused is told which number it is over."""

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mezzotint.config import load_settings
from mezzotint.errors import InvalidRequest
from mezzotint.server import Mezzotint
from mezzotint.session import State

pytestmark = pytest.mark.anyio

BUDGET = 640 << 20  # the worker's imports, the bundled model and small pictures
REQUESTS = int(os.environ.get("MEMORY_REQUESTS", "24"))  # 100 takes a minute or two: MEMORY_REQUESTS=100


@pytest.fixture
async def engine(tmp_path: Path, random_sd: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mezzotint]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = load_settings(
        data=tmp_path / "data", models=(random_sd,), memory_bytes=BUDGET, executor="torch", dtype="float32"
    )
    async with Mezzotint(settings=settings) as opened:
        await opened.supervisor.until_ready()
        yield opened


async def test_with_little_memory_what_is_accepted_ends_well_and_what_is_refused_names_the_numbers(
    engine: Mezzotint,
) -> None:
    rng = random.Random(5)
    accepted = []
    refused: list[InvalidRequest] = []
    for number in range(REQUESTS):
        side = rng.choice((32, 64, 128, 256, 512))
        body = {
            "model": rng.choice(("tiny", "icons")),
            "width": side,
            "height": rng.choice((side, max(32, side // 2))),
            "steps": 1,
            "guidance_scale": rng.choice((1.0, 4.0)),
            "num_images": rng.choice((1, 1, 2)),
            "seed": number,
        }
        try:
            accepted.append(await engine.submit(**body))
        except InvalidRequest as error:
            refused.append(error)
        if number == REQUESTS // 5:
            # sizes measured by then differ
            await asyncio.gather(*(engine.operations.wait(one.accepted) for one in accepted))
    ended = await asyncio.gather(*(engine.operations.wait(one.accepted) for one in accepted))
    assert {one.state for one in ended} == {State.SUCCEEDED}, [one.error for one in ended if one.error]
    assert engine.supervisor.seats["cpu:0"].restarts == 0
    assert len(accepted) > REQUESTS * 0.3
    assert refused
    for fault in refused:
        assert fault.code == "over_budget"
        needs, budget = map(int, re.findall(r"about (\d+) bytes .* the (\d+) that", fault.message)[0])
        assert needs > budget == BUDGET
