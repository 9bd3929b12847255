"""Requests and sessions for tests: complete ones, with what a test says changed."""

from dataclasses import replace
from typing import Any

from mezzotint.request import Request, plain
from mezzotint.session import Progress, Session, State, Usage


def request(**changes: Any) -> Request:
    return replace(plain("tiny", "a red boat", 7), **changes)


def session(**changes: Any) -> Session:
    ended = Session(
        id="ses_1",
        state=State.SUCCEEDED,
        request=request(),
        device="cpu:0",
        attempt=1,
        losses=0,
        created_at=100.0,
        started_at=102.0,
        ended_at=112.0,
        spans={"queued": 2.0, "loading": 1.0, "denoising": 9.0},
        usage=Usage(steps_run=6),
        images=(),
        error=None,
        warnings=(),
        cancel_requested=False,
        pause_requested=False,
        progress=Progress(),
    )
    return ended.having(**changes)
