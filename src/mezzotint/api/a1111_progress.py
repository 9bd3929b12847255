"""How far a session is, as AUTOMATIC1111 tells it. Must not fetch anything."""

import base64
from typing import Any

from mezzotint.api import a1111_answer
from mezzotint.schema import MAX_STEPS
from mezzotint.session import Preview, Session, State

LEAST = 0.01  # clients take 0 for idle


def progress(session: Session | None, name: str, preview: Preview | None) -> dict[str, Any]:
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
        "current_image": _base64(preview) if preview else None,
        "textinfo": None,
    }


def internal(session: Session | None, preview: Preview | None, known: int) -> dict[str, Any]:
    """The shape that the web page of AUTOMATIC1111 asks for; of None all false. `known`: the preview that it has."""
    state = session.state if session is not None else None
    busy = session is not None and not session.ended
    shown = preview.image_index * MAX_STEPS + preview.step if preview else -1
    return {
        "active": state is State.RUNNING,
        "queued": state is State.QUEUED,
        "paused": state is State.PAUSED,
        "completed": session is not None and session.ended,
        "progress": max(LEAST, session.progress.fraction) if session is not None and busy else None,
        "eta": session.progress.eta_s if session is not None and busy else None,
        "live_preview": f"data:image/{preview.format};base64,{_base64(preview)}"
        if preview and shown != known
        else None,
        "id_live_preview": shown,
        "textinfo": "Waiting..." if state is State.QUEUED else None,
    }


def _base64(preview: Preview) -> str:
    return base64.b64encode(preview.b64_json).decode()
