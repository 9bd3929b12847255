"""The checker of histories sees each broken promise: a sound history is bent in one way after the other."""

import hashlib
import io
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.torture.history import check


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


TRUTH = picture(100)
SHA = hashlib.sha256(TRUTH).hexdigest()
MOVES = [(None, "queued", 0), ("queued", "running", 1), ("running", "queued", 1), ("queued", "running", 2)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """What a server leaves that drew one picture in two attempts."""
    with sqlite3.connect(tmp_path / "mezzotint.db") as db:
        db.executescript(
            """CREATE TABLE sessions (id, state, attempt, request);
            CREATE TABLE transitions (session_id, seq, from_state, to_state, attempt);
            CREATE TABLE images (session_id, idx, width, height, sha256);
            CREATE TABLE idempotency_keys (key, session_id);
            INSERT INTO sessions VALUES ('ses_1', 'succeeded', 2, '{"prompt": "a cat"}');
            INSERT INTO idempotency_keys VALUES ('key', 'ses_1');"""
        )
        for number, (before, after, attempt) in enumerate([*MOVES, ("running", "succeeded", 2)], 1):
            db.execute("INSERT INTO transitions VALUES ('ses_1', ?, ?, ?, ?)", (number, before, after, attempt))
        db.execute("INSERT INTO images VALUES ('ses_1', 0, 8, 8, ?)", (SHA,))
    db.close()
    folder = tmp_path / "sessions" / "ses_1"
    folder.mkdir(parents=True)
    (folder / f"{SHA}.png").write_bytes(TRUTH)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def found(data: Path) -> set[str]:
    return {fault[:2] for fault in check(data, {"key": "ses_1"}, {"a cat": [TRUTH]})}


def sql(statement: str) -> Callable[[Path], None]:
    def bend(data: Path) -> None:
        with sqlite3.connect(data / "mezzotint.db") as db:
            assert db.execute(statement).rowcount > 0
        db.close()

    return bend


def other_picture(data: Path) -> None:
    other = picture(110)
    sha = hashlib.sha256(other).hexdigest()
    (data / "sessions/ses_1" / f"{sha}.png").write_bytes(other)
    sql(f"UPDATE images SET sha256 = '{sha}'")(data)


def test_a_sound_history_has_no_faults(data: Path) -> None:
    assert check(data, {"key": "ses_1"}, {"a cat": [TRUTH]}) == []


@pytest.mark.parametrize(
    ("invariant", "bend"),
    [
        ("I1", sql("DELETE FROM sessions")),
        ("I1", sql("UPDATE sessions SET state = 'running'")),
        ("I1", sql("INSERT INTO transitions VALUES ('ses_1', 6, 'succeeded', 'failed', 2)")),
        ("I2", sql("UPDATE transitions SET to_state = 'expired' WHERE seq = 5")),
        ("I2", sql("DELETE FROM transitions WHERE seq = 3")),
        ("I3", sql("DELETE FROM images")),
        ("I3", sql("UPDATE images SET width = 16")),
        ("I3", lambda data: (data / "sessions/ses_1" / f"{SHA}.png").unlink()),
        ("I3", lambda data: (data / "sessions/ses_1" / f"{SHA}.png").write_bytes(TRUTH[:-4])),
        ("I4", lambda data: (data / "checkpoints/ses_1").mkdir()),
        ("I4", lambda data: (data / "sessions/half.tmp").write_bytes(b"")),
        ("I4", lambda data: (data / "sessions/ses_2").mkdir()),
        ("I5", sql("INSERT INTO idempotency_keys VALUES ('key', 'ses_2')")),
        ("I5", sql("DELETE FROM idempotency_keys")),
        ("I6", sql("UPDATE transitions SET attempt = 1 WHERE seq = 5")),
        ("I6", sql("UPDATE sessions SET attempt = 3")),
        ("I9", other_picture),
    ],
)
def test_a_bent_history_is_seen(data: Path, invariant: str, bend: Callable[[Path], None]) -> None:
    bend(data)
    assert invariant in found(data)
