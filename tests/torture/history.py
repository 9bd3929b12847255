"""Reads what a server left behind and says which promises it broke: its SQLite file, its pictures, its folders.

Knows the law of states by itself and shares no code with the store that it checks.
"""

import contextlib
import hashlib
import io
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FINAL = {"succeeded", "failed", "cancelled", "expired"}
LEGAL = {
    (None, "queued"),
    ("queued", "running"),
    ("queued", "cancelled"),
    ("queued", "expired"),
    ("queued", "failed"),
    ("running", "queued"),
    ("running", "paused"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("paused", "queued"),
    ("paused", "cancelled"),
}
ALIKE = 0.5  # mean difference, of 255, between two pictures of one request: neighbours in a batch round otherwise

Key = str  # of idempotency


def check(data: Path, acknowledged: Mapping[Key, str], truths: Mapping[str, list[bytes]]) -> list[str]:
    """Faults, each with the invariant it breaks; none when all is well. Call when the server has stopped.

    `acknowledged`: the session that the server named for each key. `truths`: prompt -> undisturbed files, by image.
    """
    with contextlib.closing(sqlite3.connect(f"file:{data / 'mezzotint.db'}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        rows = {
            row["id"]: row for row in db.execute("SELECT *, json_extract(request, '$.prompt') AS said FROM sessions")
        }
        keys = list(db.execute("SELECT key, session_id FROM idempotency_keys"))
        faults = [f"I1 {one} was acknowledged and is not there" for one in acknowledged.values() if one not in rows]
        faults += _keys(keys, acknowledged)
        for row in rows.values():
            moves = list(db.execute("SELECT * FROM transitions WHERE session_id = ? ORDER BY seq", (row["id"],)))
            images = list(db.execute("SELECT * FROM images WHERE session_id = ? ORDER BY idx", (row["id"],)))
            faults += _moves(row, moves)
            faults += _images(data / "sessions" / row["id"], row, images, truths.get(row["said"], []))
    return faults + _remains(data, set(rows))


def _keys(keys: list[sqlite3.Row], acknowledged: Mapping[Key, str]) -> list[str]:
    found: dict[str, set[str]] = {}
    for row in keys:
        found.setdefault(row["key"], set()).add(row["session_id"])
    faults = [f"I5 key {key} stands for {len(ids)} sessions" for key, ids in found.items() if len(ids) > 1]
    for key, session_id in acknowledged.items():
        if found.get(key) != {session_id}:
            faults.append(f"I5 key {key} was answered with {session_id} and stands for {found.get(key)}")
    return faults


def _moves(row: sqlite3.Row, moves: list[sqlite3.Row]) -> list[str]:
    name, faults, state, attempt = row["id"], [], None, 0
    for number, move in enumerate(moves, 1):
        step = (move["from_state"], move["to_state"])
        if move["seq"] != number or move["from_state"] != state:
            faults.append(f"I2 {name}: move {move['seq']} {step} does not follow {state}")
        if step not in LEGAL:
            faults.append(f"I2 {name}: {step} is against the law")
        claims = move["to_state"] == "running"
        if move["attempt"] != attempt + claims:
            faults.append(f"I6 {name}: attempt {move['attempt']} at {step} after {attempt}")
        state, attempt = move["to_state"], move["attempt"]
    ends = sum(move["to_state"] in FINAL for move in moves)
    if ends != 1 or row["state"] not in FINAL:
        faults.append(f"I1 {name}: {row['state']} with {ends} ends")
    if row["state"] != state or row["attempt"] != attempt:
        faults.append(f"I6 {name}: the row says {row['state']} {row['attempt']}, its moves {state} {attempt}")
    return faults


def _images(folder: Path, row: sqlite3.Row, images: list[sqlite3.Row], truth: list[bytes]) -> list[str]:
    name, faults = row["id"], []
    if row["state"] == "succeeded":
        wanted = len(truth) or len(images) or 1
        if [image["idx"] for image in images] != list(range(wanted)):
            faults.append(f"I3 {name}: succeeded with {len(images)} of {wanted} images")
    for image in images:
        path = folder / f"{image['sha256']}"
        files = [one for one in folder.glob(f"*{image['sha256']}*") if "thumb" not in one.name]
        if not files:
            faults.append(f"I3 {name}: {path.name} is not there")
            continue
        content = files[0].read_bytes()
        if hashlib.sha256(content).hexdigest() != image["sha256"]:
            faults.append(f"I3 {name}: image {image['idx']} is not what was written")
            continue
        pixels = _pixels(content)
        if pixels.shape[:2] != (image["height"], image["width"]):
            faults.append(f"I3 {name}: image {image['idx']} has another size")
        elif image["idx"] < len(truth):
            apart = float(np.abs(pixels - _pixels(truth[image["idx"]])).mean())
            if apart > ALIKE:
                faults.append(f"I9 {name}: image {image['idx']} differs by {apart:.2f} from the undisturbed one")
    return faults


def _pixels(content: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    with Image.open(io.BytesIO(content)) as opened:
        return np.asarray(opened.convert("RGB"), dtype=np.float32)


def _remains(data: Path, known: set[str]) -> list[str]:
    faults = [f"I4 {one.relative_to(data)} is left" for one in data.rglob("*.tmp")]
    kept = data / "checkpoints"
    if kept.exists():
        faults += [f"I4 a state of {one.name} is left" for one in kept.iterdir()]
    drawn = data / "sessions"
    if drawn.exists():
        faults += [f"I4 pictures of no session: {one.name}" for one in drawn.iterdir() if one.name not in known]
    return faults
