"""Draws through the server's own engine and its worker, so that what is measured is what ships. Measures nothing."""

import asyncio
import base64
import contextlib
import io
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mezzotint import Mezzotint
from training import data

AT_ONCE = 64  # sessions that wait for the worker


class Studio:
    """`with Studio() as studio:` starts the engine and its worker, on a folder of their own."""

    def __enter__(self) -> "Studio":
        with contextlib.ExitStack() as opened:
            folder = opened.enter_context(tempfile.TemporaryDirectory())
            self._runner = opened.enter_context(asyncio.Runner())
            self._mezzotint = self._runner.run(Mezzotint(data=folder).__aenter__())
            opened.callback(lambda: self._runner.run(self._mezzotint.__aexit__(None, None, None)))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def draw(self, requests: Sequence[dict[str, Any]]) -> data.Pixels:
        """One picture a request, fields as in the HTTP contract, (n, height, width, 3). All must be of one size."""
        return np.stack(self._runner.run(self._draw(requests)))

    async def _draw(self, requests: Sequence[dict[str, Any]]) -> list[data.Pixels]:
        drawn = []
        for start in range(0, len(requests), AT_ONCE):
            accepted = [await self._mezzotint.submit(**request) for request in requests[start : start + AT_ONCE]]
            for session in accepted:
                (picture,) = (await session.result()).images
                drawn.append(np.asarray(Image.open(picture.path).convert("RGB")))
        return drawn


def sent(picture: data.Pixels) -> str:
    """Pixels (height, width, 3), or (height, width) of a mask, as a request takes a picture."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
