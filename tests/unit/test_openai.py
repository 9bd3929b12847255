"""What OpenAI's routes answer where a session does not go as it should, over operations that do as a test says."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mezzotint.api.app import RequestIds, routed
from mezzotint.errors import ErrorInfo, NotFound
from mezzotint.events import Event
from mezzotint.session import ImageRecord, Session, State
from tests.requests import request, session

pytestmark = pytest.mark.anyio

LATE = ErrorInfo(code="timeout", message="ran longer than 6 s")
IMAGES = tuple(
    ImageRecord(index=index, seed=7 + index, width=8, height=8, format="png", bytes=3, sha256="") for index in range(2)
)


class Scripted:
    """One session that ends as told. Its listeners are dropped behind every `drops` events."""

    def __init__(self, folder: Path, ends: Session, *, drops: int = 100) -> None:
        self._file, self._ends, self._drops = folder / "picture", ends, drops
        self._file.write_bytes(b"png")
        told = [*(("image", image) for image in ends.images), ("state", ends), ("end", ends)]
        self._events = [Event(id=number, kind=kind, data=data) for number, (kind, data) in enumerate(told, 1)]
        self.removed = False

    def own_steps(self, model_id: str | None, body: Any) -> int:
        return 20

    async def create(self, body: Any, key: str | None, foreign: Any) -> Session:
        return session(state=State.QUEUED, request=request(num_images=2))

    async def wait(self, session: Session, limit_s: float | None = None, leaving: Any = None) -> Session:
        return self._ends

    async def left(self, session: Session) -> None: ...

    async def image(self, session_id: str, index: int) -> tuple[ImageRecord, Path]:
        if self.removed:
            raise NotFound(f"session {session_id!r} is not here", code="session_not_found")
        return IMAGES[index], self._file

    async def events(self, session_id: str, after: int = 0) -> AsyncIterator[Event]:
        async def told() -> AsyncIterator[Event]:
            for event in [one for one in self._events if one.id > after][: self._drops]:
                yield event

        return told()


async def asked(operations: Scripted, **fields: Any) -> httpx2.Response:
    app = routed()
    app.state.operations = operations
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(RequestIds(app)), base_url="http://here") as client:
        return await client.post("/v1/images/generations", json={"prompt": "x", "n": 2} | fields)


def frames(answer: httpx2.Response) -> list[Any]:
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def ended(*images: ImageRecord, **changes: Any) -> Session:
    return session(request=request(num_images=2), images=images, **changes)


async def test_an_answer_with_fewer_pictures_says_why_and_of_which_session(tmp_path: Path) -> None:
    answer = await asked(Scripted(tmp_path, ended(IMAGES[0], state=State.FAILED, error=LATE)))
    body = answer.json()
    assert (answer.status_code, [one["b64_json"] for one in body["data"]]) == (200, [base64.b64encode(b"png").decode()])
    why = "session ses_1 failed: ran longer than 6 s; 1 of its 2 pictures are done"
    assert body["warnings"] == [{"code": "timeout", "message": why, "field": None}]
    none = await asked(Scripted(tmp_path, ended(state=State.CANCELLED)))
    assert (none.status_code, none.json()["error"]["message"]) == (422, "session ses_1 was cancelled")


async def test_a_stream_of_a_session_that_fails_half_way_brings_what_was_done_and_then_why(tmp_path: Path) -> None:
    answer = await asked(Scripted(tmp_path, ended(IMAGES[0], state=State.FAILED, error=LATE)), stream=True)
    first, last = frames(answer)
    assert (first["type"], first["image_index"]) == ("image_generation.completed", 0)
    assert (last["error"]["code"], last["error"]["type"]) == ("timeout", "invalid_request_error")
    assert last["error"]["message"].startswith("session ses_1 failed: ran longer")


async def test_a_slow_reader_of_a_stream_misses_no_picture_and_hears_of_no_cancelling(tmp_path: Path) -> None:
    answer = await asked(Scripted(tmp_path, ended(*IMAGES), drops=1), stream=True)
    *pictures, last = frames(answer)
    assert [one["image_index"] for one in pictures] == [0, 1]
    assert last == "[DONE]"


async def test_a_session_removed_under_its_stream_is_an_error_in_it(tmp_path: Path) -> None:
    operations = Scripted(tmp_path, ended(*IMAGES))
    operations.removed = True
    (told,) = frames(await asked(operations, stream=True))
    assert told["error"]["code"] == "session_not_found"
