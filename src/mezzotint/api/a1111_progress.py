"""How far a session is, as AUTOMATIC1111 tells it. Must not fetch anything."""

from typing import Any

from mezzotint.api import a1111_answer
from mezzotint.session import Session, State

LEAST = 0.01  # clients take 0 for idle


def progress(session: Session | None, name: str) -> dict[str, Any]:
    """Of one session; of None that nothing runs. Every key is always there."""
    busy = session is not None and not session.ended
    told = session.progress if session is not None else None
    state = {
        "skipped": False,
        "interrupted": bool(session and session.cancel_requested),
        "stopping_generation": bool(session and session.cancel_requested),
        "job": name if busy else "",
        "job_count": 1 if busy else 0,
        "job_timestamp": a1111_answer.timestamp(session) if session else "0",
        "job_no": 0,
        "sampling_step": told.step if told and busy else 0,
        "sampling_steps": told.steps if told and busy else 0,
    }
    return {
        "progress": max(LEAST, told.fraction) if told and busy else 0.0,
        "eta_relative": (told.eta_s or 0.0) if told and busy else 0.0,
        "state": state,
        "current_image": None,
        "textinfo": None,
    }


def internal(session: Session | None) -> dict[str, Any]:
    """The shape that the web page of AUTOMATIC1111 asks for; of None all false."""
    state = session.state if session is not None else None
    busy = session is not None and not session.ended
    return {
        "active": state is State.RUNNING,
        "queued": state is State.QUEUED,
        "paused": state is State.PAUSED,
        "completed": session is not None and session.ended,
        "progress": max(LEAST, session.progress.fraction) if session is not None and busy else None,
        "eta": session.progress.eta_s if session is not None and busy else None,
        "live_preview": None,
        "id_live_preview": -1,
        "textinfo": "Waiting..." if state is State.QUEUED else None,
    }
