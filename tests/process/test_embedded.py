"""The engine inside a program: `Mezzotint` as the README shows it, with a real worker."""

import asyncio
import base64
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import structlog
from PIL import Image

from mezzotint import InvalidRequest, Mezzotint, MezzotintError
from mezzotint.config import load_settings
from mezzotint.errors import TryLater
from mezzotint.refs import Refs
from mezzotint.server import Submitted
from tests.process.conftest import picture

pytestmark = pytest.mark.anyio


async def test_a_program_submits_follows_and_saves(tmp_path: Path, random_sd: Path) -> None:
    async with Mezzotint(models=[random_sd], data=tmp_path / "data") as m:
        session = await m.submit(model="tiny", prompt="a slice of pizza", seed=7, steps=3, num_images=2)
        assert [one.id for one in await m.get_active_sessions()] == [session.id]
        kinds = [event.kind async for event in session.events()]
        assert (kinds[0], kinds[-1]) == ("state", "end")
        result = await session.result()
        assert [picture.record.seed for picture in result.images] == [7, 8]
        result.images[0].save(tmp_path / "pizza.png")
        assert picture(tmp_path / "pizza.png").size == (16, 16)
        assert (await m.get_session_status(session.id)).state == "succeeded"
        assert await m.get_active_sessions() == []
        deleted = await asyncio.gather(*(m.operations.delete(session.id) for _ in range(3)), return_exceptions=True)
        assert sorted(getattr(one, "code", "") for one in deleted) == ["", "session_not_found", "session_not_found"]

        with pytest.raises(InvalidRequest):
            await m.submit(prompt="x", steps=0)
        with pytest.raises(InvalidRequest, match="self is not a field"):
            await m.submit(prompt="x", self=1)
        long = await m.submit(model="tiny", prompt="x", steps=1000)
        await m.cancel_session(long.id)
        with pytest.raises(MezzotintError, match="cancelled"):
            await long.result()


async def test_who_waits_for_a_session_hears_when_the_engine_is_closed_or_was_never_opened(tmp_path: Path) -> None:
    with pytest.raises(MezzotintError, match="async with"):
        await Mezzotint(data=tmp_path / "data").submit(prompt="x")
    settings = load_settings(data=tmp_path / "data", drain_s=0.0)
    async with Mezzotint(settings=settings) as m:
        long = await m.submit(prompt="x", steps=1000)
        waiting = asyncio.create_task(long.result())
        following = asyncio.create_task(_kinds(long))
        await asyncio.sleep(0.2)
    async with asyncio.timeout(10):
        with pytest.raises(TryLater, match="opened again"):
            await waiting
        assert "end" not in await following
        with pytest.raises(TryLater):
            await long.result()
    message = {"type": "get_active_sessions", "data": {}, "request_id": "1"}
    for asked in (m.submit(prompt="x"), m.get_capabilities(), m.get_session_status(long.id), m.handle(message)):
        with pytest.raises(MezzotintError) as told:
            await asked
        assert told.value.code == "not_ready"


@pytest.mark.parametrize("state", ["running", "succeeded"])
@pytest.mark.parametrize("read", ["get", "list"])
async def test_a_row_that_was_read_just_before_a_claim_or_an_end_is_not_shown(
    tmp_path: Path, random_sd: Path, monkeypatch: pytest.MonkeyPatch, state: str, read: str
) -> None:
    async with Mezzotint(models=[random_sd], data=tmp_path / "data") as m:
        session = await m.submit(model="tiny", prompt="x", steps=300)
        store = m.operations._parts.store
        get, reads = store.get, getattr(store, read)

        async def reads_early(*args: Any, **named: Any) -> Any:
            monkeypatch.undo()
            row = await reads(*args, **named)
            async with asyncio.timeout(60):
                while (now := await get(session.id)) is None or now.state != state:
                    await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)  # it is in memory as in its row
            return row

        if state == "succeeded":
            async with asyncio.timeout(60):
                while (await m.get_session_status(session.id)).progress.step == 0:
                    await asyncio.sleep(0.005)
        monkeypatch.setattr(store, read, reads_early)
        shown = await m.get_session_status(session.id) if read == "get" else (await m.operations.list())[0][0]
        assert shown.state == state
        assert sum(shown.spans.values()) > 0.05


@pytest.mark.parametrize(("part", "verb"), [("estimates", "of"), ("assets", "link")])
async def test_what_breaks_before_a_session_is_stored_leaves_no_folder_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, verb: str
) -> None:
    async with Mezzotint(data=tmp_path / "data") as m:
        found = getattr(m.operations._parts, part)
        works = getattr(found, verb)

        async def breaks(*args: Any) -> None:
            await works(*args)
            raise RuntimeError("nobody foresaw it")

        monkeypatch.setattr(found, verb, breaks)
        drawn = io.BytesIO()
        Image.new("RGB", (64, 64)).save(drawn, "PNG")
        with pytest.raises(RuntimeError):
            await m.submit(prompt="x", image=base64.b64encode(drawn.getvalue()).decode())
        assert list((tmp_path / "data" / "sessions").glob("*")) == []


async def _kinds(session: Submitted) -> list[str]:
    return [event.kind async for event in session.events()]


async def test_what_is_wrong_is_told_as_a_server_tells_it(tmp_path: Path) -> None:
    async with Mezzotint(data=tmp_path / "data") as m:
        for refused in (m.submit(prompt="x", loras=(("ink", 0.5),)), m.submit(prompt="x", loras=[["ink", 0.5]])):
            with pytest.raises(InvalidRequest) as caught:
                await refused
            assert caught.value.message == 'loras[0] must be an object; got ["ink", 0.5]'
        told = await m.validate_request(loras=({"name": "quick"},), metadata={"sizes": (1, 2)})
        assert (told["valid"], told["resolved"]["metadata"]) == (True, {"sizes": [1, 2]})
        operation = {"type": "inference.batch_process", "data": {"requests": ({"loras": ("quick",)},)}}
        assert (await m.handle(operation))["error"]["field"] == "requests[0].loras[0]"
        for asked in ({"metadata": {"a": {1}}}, {"image": b"PNG"}, {"guidance_scale": float("nan")}):
            with pytest.raises(MezzotintError) as refusal:
                await m.submit(prompt="x", **asked)
            assert refusal.value.code == "invalid_json"


async def test_a_model_that_vanishes_while_a_request_is_read_is_no_fault_of_the_server(
    tmp_path: Path, random_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(random_sd, folder)
    at_once = Refs.at_once

    async def and_gone(self: Refs, model_id: str) -> Any:
        ref = await at_once(self, model_id)
        shutil.rmtree(folder / model_id, ignore_errors=True)
        self._catalog.scan()
        return ref

    async with Mezzotint(models=[folder], data=tmp_path / "data") as m:
        await (await m.submit(model="tiny", prompt="x", steps=2)).result()  # from here on requests are estimated
        monkeypatch.setattr(Refs, "at_once", and_gone)
        told = await m.validate_request(model="tiny", prompt="x", steps=2)
        assert (told["valid"], told["recommendations"]) == (True, [])
        shutil.copytree(random_sd, folder, dirs_exist_ok=True)
        await m.operations.rescan()
        session = await m.submit(model="tiny", prompt="x", steps=2)
        with pytest.raises(MezzotintError, match="'tiny' is gone"):
            await session.result()


async def test_what_is_logged_of_an_error_holds_no_variables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Mezzotint(data=tmp_path / "data"):
        prompt = "canary".upper()
        try:
            int(prompt[:0])
        except ValueError:
            structlog.get_logger().exception("it failed")
    said = capsys.readouterr().out
    assert "ValueError: invalid literal" in said
    assert "CANARY" not in said


async def test_pictures_at_any_legal_size_and_several_models_at_once(tmp_path: Path, random_sd: Path) -> None:
    async with Mezzotint(models=[random_sd], data=tmp_path / "data") as m:
        asked = [
            await m.submit(model="tiny", prompt="x", steps=2, width=24, height=8),
            await m.submit(model="icons", prompt="x", steps=2, width=32, height=48),
            await m.submit(model="tiny", prompt="long " * 60, steps=2, scheduler="heun", guidance_scale=1),
        ]
        results = [await one.result() for one in asked]
        sizes = [(result.images[0].record.width, result.images[0].record.height) for result in results]
        assert sizes == [(24, 8), (32, 48), (16, 16)]


async def test_a_prompt_beyond_the_last_window_is_cut_with_a_warning(tmp_path: Path, random_sd: Path) -> None:
    async with Mezzotint(models=[random_sd], data=tmp_path / "data") as m:
        asked = {"prompt": "boat " * 400, "negative_prompt": "a cup"}
        session = await m.submit(model="tiny", steps=1, **asked)
        kinds = [event.kind async for event in session.events()]
        assert "warning" in kinds
        result = await session.result()
        assert [(one["code"], one["field"]) for one in result.session.warnings] == [("prompt_cut", "prompt")]
        session = await m.submit(model="tiny", steps=1, prompt="a cup", negative_prompt="boat " * 400)
        warnings = (await session.result()).session.warnings
        assert [(one["code"], one["field"]) for one in warnings] == [("prompt_cut", "negative_prompt")]


async def test_a_model_whose_weights_do_not_fit_fails_its_session_and_not_the_worker(
    tmp_path: Path, random_sd: Path
) -> None:
    import json
    import shutil

    broken = tmp_path / "models" / "broken"
    shutil.copytree(random_sd / "tiny", broken)
    config = broken / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [16, 64]}))
    async with Mezzotint(models=[random_sd, broken], data=tmp_path / "data") as m:
        failing = await m.submit(model="broken", prompt="x", steps=1)
        with pytest.raises(MezzotintError) as caught:
            await failing.result()
        assert caught.value.code == "model_invalid"
        fine = await m.submit(model="tiny", prompt="x", steps=1)
        assert (await fine.result()).session.attempt == 1
