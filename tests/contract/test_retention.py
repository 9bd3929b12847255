"""What is old is forgotten, with its files, and nothing else is. Must not test the clock that calls it."""

import dataclasses
from pathlib import Path

import pytest

from mezzotint.batches import Batch
from mezzotint.events import Events
from mezzotint.request import Resolved
from mezzotint.retention import DAY_S, KEYS_KEPT_S, SLICE, Retention
from mezzotint.session import FINAL, State
from mezzotint.store.blobs import Blobs
from mezzotint.store.rows import Once
from mezzotint.store.sql import Store
from tests.contract.backends import Backend
from tests.contract.stores import ID, add, finish, image, in_state, request, running

pytestmark = pytest.mark.anyio

NOW = 100 * DAY_S


async def ended(store: Store, session_id: str, at: float) -> None:
    await add(store, session_id)
    await store.request_cancel(session_id, now=at)


async def test_only_what_ended_before_the_day_goes_with_its_files(store: Store, tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "sessions")
    for session_id, age in {"ses_old": 7.01, "ses_young": 6.99, "ses_new": 0.0}.items():
        await ended(store, session_id, NOW - age * DAY_S)
        await blobs.put(session_id, b"picture")
    assert await Retention(store, blobs, Events(), retention_days=7).sweep(NOW) == 1
    assert [session.id for session in (await store.list())[0]] == ["ses_young", "ses_new"]
    assert sorted(path.name for path in (tmp_path / "sessions").iterdir()) == ["ses_new", "ses_young"]


async def test_what_has_not_ended_is_never_forgotten(store: Store, backend: Backend, tmp_path: Path) -> None:
    for state in State:
        await in_state(store, backend, state, f"ses_{state}")
    backend.raw("UPDATE sessions SET ended_at = 1.0")  # also of those that have none
    assert await Retention(store, Blobs(tmp_path), Events(), retention_days=1).sweep(NOW) == len(FINAL)
    assert {session.state for session in (await store.list())[0]} == set(State) - FINAL


async def test_without_the_setting_sessions_stay(store: Store, tmp_path: Path) -> None:
    await ended(store, ID, 1.0)
    assert await Retention(store, Blobs(tmp_path), Events(), retention_days=None).sweep(NOW) == 0
    assert await store.get(ID)


async def test_many_go_in_slices_oldest_first(store: Store, tmp_path: Path) -> None:
    for i in range(5):
        await ended(store, f"ses_{i}", float(i))
    assert await store.prune(before=4.0, limit=3) == ["ses_0", "ses_1", "ses_2"]
    assert await store.prune(before=4.0, limit=3) == ["ses_3"]
    for i in range(SLICE + 1):
        await ended(store, f"ses_{i:03}x", 1.0)
    assert await Retention(store, Blobs(tmp_path), Events(), retention_days=1).sweep(NOW) == SLICE + 2


async def test_keys_go_after_a_day_and_not_before(store: Store, tmp_path: Path) -> None:
    once = Once(scope="anybody", key="k", fingerprint="body")
    await store.add(ID, request(), warnings=[], now=NOW, once=once)
    retention = Retention(store, Blobs(tmp_path), Events(), retention_days=None)
    await retention.sweep(NOW + DAY_S)
    assert await store.first(once)
    await retention.sweep(NOW + KEYS_KEPT_S + 1)
    assert await store.first(once) is None
    assert await store.get(ID)


async def test_an_empty_batch_and_a_batchs_key_go_after_a_day_and_not_before(store: Store, tmp_path: Path) -> None:
    once = Once(scope="anybody batches", key="k", fingerprint="body")
    one = Batch(id="bat_1", created_at=NOW, items=())
    await store.batches.add(one, {ID: Resolved(request=request(), warnings=())}, once=once)
    retention = Retention(store, Blobs(tmp_path), Events(), retention_days=None)
    await retention.sweep(NOW + DAY_S)
    assert await store.batches.first(once)
    await retention.sweep(NOW + KEYS_KEPT_S + 1)
    assert await store.batches.first(once) is None
    assert await store.batches.get("bat_1")
    await store.request_cancel(ID, now=NOW)
    await store.delete(ID)
    await retention.sweep(NOW + KEYS_KEPT_S + 1)
    assert await store.batches.get("bat_1") is None


async def test_files_that_no_row_tells_of_go_and_those_of_what_runs_stay(store: Store, tmp_path: Path) -> None:
    blobs, root = Blobs(tmp_path / "sessions"), tmp_path / "sessions"
    retention = Retention(store, blobs, Events(), retention_days=None)
    await running(store, "ses_runs")
    await blobs.put("ses_runs", b"not recorded yet")
    await running(store, "ses_ended")
    kept, stray = [await blobs.put("ses_ended", data) for data in (b"recorded", b"of an attempt that was killed")]
    (root / "ses_ended" / "input-image.png").write_bytes(b"sent")
    await store.add_image("ses_ended", attempt=1, image=dataclasses.replace(image(), sha256=kept))
    await finish(store, State.SUCCEEDED, session_id="ses_ended")
    for number in range(SLICE + 5):
        (root / f"ses_never_{number}").mkdir()
        (root / f"ses_never_{number}" / "input-image.png").write_bytes(b"sent")
    (root / "not one of ours").mkdir()
    assert await retention.sweep_files() == 0, "only what was there at the start is looked at"
    retention.start()
    (root / "ses_being_sent").mkdir()
    await retention.stop()
    assert await retention.sweep_files() == SLICE + 5 + 1
    assert {path.name for path in root.iterdir()} == {"ses_runs", "ses_ended", "ses_being_sent", "not one of ours"}
    assert len(list((root / "ses_runs").iterdir())) == 1
    assert {path.name for path in (root / "ses_ended").iterdir()} == {kept, "input-image.png"}
    assert stray != kept
