"""What a store keeps through restarts, kills and bad files. Must not test one session's rules."""

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event

from mezzotint.errors import SetupError
from mezzotint.session import State
from mezzotint.store import schema
from mezzotint.store.sql import Store
from tests.contract.backends import Backend, Sqlite
from tests.contract.stores import (
    CANCELLED,
    FAILED,
    ID,
    PAUSED,
    QUEUED,
    REQUEST,
    RUNNING,
    SUCCEEDED,
    add,
    finish,
    flag,
    image,
    in_state,
    known,
    running,
)

pytestmark = pytest.mark.anyio


async def test_recover_sends_each_by_its_flags(store: Store, backend: Backend) -> None:
    cases = {
        "ses_none": ((), QUEUED),
        "ses_pause": (("pause_requested",), PAUSED),
        "ses_cancel": (("cancel_requested",), CANCELLED),
        "ses_both": (("cancel_requested", "pause_requested"), CANCELLED),
    }
    for session_id, (flags, _) in cases.items():
        await running(store, session_id)
        for name in flags:
            flag(backend, name, session_id)
    for state in State:
        if state is not RUNNING:
            await in_state(store, backend, state, f"ses_{state}")
    untouched = [await known(store, f"ses_{state}") for state in State if state is not RUNNING]

    assert await store.recover(now=900.0) == {QUEUED: 1, PAUSED: 1, CANCELLED: 2}
    for session_id, (_, state) in cases.items():
        session = await known(store, session_id)
        assert (session.state, session.attempt, session.losses) == (state, 1, 0)
        assert session.ended_at == (900.0 if state is CANCELLED else None)
        assert sum(session.spans.values()) == 900.0 - session.created_at, "no time is lost"
        last = (await store.transitions(session_id))[-1]
        assert (last.from_state, last.to_state, last.cause, last.at) == (RUNNING, state, "restart", 900.0)
    assert untouched == [await known(store, session.id) for session in untouched]
    assert await store.recover(now=901.0) == {}


async def test_reopening_keeps_every_row(backend: Backend) -> None:
    store = await Store.open(backend.url)
    await running(store)
    await store.add_image(ID, attempt=1, image=image())
    before = await finish(store, FAILED)
    history = await store.transitions(ID)
    await store.close()
    store = await Store.open(backend.url)
    assert await store.get(ID) == before
    assert await store.transitions(ID) == history
    await store.close()


CHILD = """
import asyncio, sys
sys.path.insert(0, sys.argv[3])
from tests.contract.backends import Backend, Sqlite
from tests.contract.stores import add, claim
from mezzotint.store.sql import Store

async def main():
    store = await Store.open(sys.argv[1])
    for i in range(1000):
        session_id = f"ses_{sys.argv[2]}_{i:03}"
        await add(store, session_id)
        print(session_id, "queued", flush=True)
        await claim(store, session_id)
        print(session_id, "running", flush=True)

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_kill_9(backend: Backend) -> None:
    acknowledged: dict[str, str] = {}
    for round_number, lines in enumerate([1, 2, 3, 8, 21]):
        command = [sys.executable, "-c", CHILD, backend.url, str(round_number), str(Path(__file__).parents[2])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for _ in range(lines):
                session_id, state = child.stdout.readline().split()
                acknowledged[session_id] = state
            child.send_signal(signal.SIGKILL)
            for line in child.stdout.read().splitlines():  # what it said before the signal came
                session_id, state = line.split()
                acknowledged[session_id] = state

    async def states() -> dict[str, State]:
        store = await Store.open(backend.url)
        try:
            return {session.id: session.state for session in (await store.list(limit=1000))[0]}
        finally:
            await store.close()

    stored = asyncio.run(states())
    assert len(acknowledged) >= 5
    for session_id, state in acknowledged.items():
        assert session_id in stored
        assert state == "queued" or stored[session_id] is RUNNING
    if isinstance(backend, Sqlite):
        assert backend.raw("PRAGMA integrity_check") == [("ok",)]


async def test_a_new_database_is_made_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "50% of it" / "new.db"
    path.parent.mkdir()
    store = await Store.open(f"sqlite:///{path}")
    await add(store)
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    await store.close()


def test_the_head_in_the_code_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(schema.MIGRATIONS)).get_current_head() == schema.HEAD


async def test_a_newer_schema_is_refused_untouched(sqlite: Sqlite) -> None:
    sqlite.raw("PRAGMA journal_mode=DELETE")
    sqlite.raw("UPDATE alembic_version SET version_num = '9999'")
    before = sqlite.path.read_bytes()
    with pytest.raises(SetupError, match=rf"9999.*{schema.HEAD}"):
        await Store.open(sqlite.url)
    assert sqlite.path.read_bytes() == before
    assert [file.name for file in sqlite.path.parent.iterdir()] == [sqlite.path.name]


def make_first_schema(backend: Backend) -> None:
    """Make it as the first schema had it, with a session in every state."""
    for table in ("batches", "outbox", "a1111_options", "events", "starts", "idempotency_keys", "api_keys"):
        backend.raw(f"DROP TABLE {table}")
    for index in ("sessions_by_end", "sessions_by_owner"):
        backend.raw(f"DROP INDEX {index}")
    backend.raw("ALTER TABLE sessions DROP COLUMN owner")
    for column in ("device", "steps_resumed"):
        backend.raw(f"ALTER TABLE transitions DROP COLUMN {column}")
    backend.raw("UPDATE alembic_version SET version_num = '0001'")
    for state in State:
        names = "id, state, type, model, priority, created_at, request, spans, usage, warnings"
        request = msgspec.json.encode(REQUEST).decode()
        row = f"'ses_{state}', 'queued', 'text2img', 'tiny', 5, 1.0, ?, '{{}}', '{{}}', '[]'"
        backend.raw(f"INSERT INTO sessions ({names}) VALUES ({row})", request)
        backend.raw(
            "INSERT INTO transitions (session_id, seq, to_state, attempt, cause, at) "
            f"VALUES ('ses_{state}', 1, 'queued', 0, 'accepted', 1.0)"
        )
        for step in {QUEUED: (), PAUSED: (RUNNING, PAUSED), SUCCEEDED: (RUNNING, SUCCEEDED)}.get(state, (state,)):
            backend.raw(f"UPDATE sessions SET state = '{step}' WHERE id = 'ses_{state}'")


async def test_an_older_schema_is_brought_up_with_all_its_sessions(backend: Backend) -> None:
    make_first_schema(backend)
    store = await Store.open(backend.url)
    assert {session.id: session.state for session in (await store.list())[0]} == {f"ses_{s}": s for s in State}
    assert (await known(store, "ses_queued")).request == REQUEST
    await store.recover(now=2.0)
    assert [session.id for session in await store.queued()] == ["ses_queued", "ses_running"]
    await store.close()


async def test_before_that_a_file_is_copied_and_the_last_copy_kept(sqlite: Sqlite) -> None:
    make_first_schema(sqlite)
    folder = sqlite.path.parent
    (folder / "mezzotint.db.before-0000").write_bytes(b"an older copy")
    await (await Store.open(sqlite.url)).close()
    copy = folder / f"mezzotint.db.before-{schema.HEAD}"
    assert sorted(file.name for file in folder.iterdir()) == ["mezzotint.db", copy.name]
    assert copy.stat().st_mode & 0o777 == 0o600
    old = Sqlite(copy)
    assert old.raw("SELECT version_num FROM alembic_version") == [("0001",)]
    assert old.raw("SELECT count(*) FROM sessions") == [(len(State),)]
    assert old.raw("PRAGMA integrity_check") == [("ok",)]
    await (await Store.open(sqlite.url)).close()
    assert copy.exists(), "a start that changes nothing touches nothing"


async def test_somebody_elses_database_is_refused_untouched(tmp_path: Path) -> None:
    foreign = Sqlite(tmp_path / "foreign.db")
    foreign.raw("CREATE TABLE recipes (name TEXT)")
    before = foreign.path.read_bytes()
    with pytest.raises(SetupError, match="recipes"):
        await Store.open(foreign.url)
    assert foreign.path.read_bytes() == before


async def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    (tmp_path / "noise.db").write_bytes(b"this is no database at all, but it is long enough to be looked at" * 20)
    cases = {
        f"sqlite:///{tmp_path}/absent/x.db": "No such file",
        f"sqlite:///{tmp_path}/noise.db": "not a database",
        f"sqlite:///{tmp_path}": "directory",
        "sqlite:///:memory:": "path",
        "sqlite://": "path",
        "mysql://here/there": "not supported",
        "what is this": "cannot be read",
    }
    for url, reason in cases.items():
        with pytest.raises(SetupError, match=reason):
            await Store.open(url)


async def test_one_connection_checkpoints_and_fsyncs_and_the_others_cannot_write(sqlite: Sqlite) -> None:
    connections: list[Any] = []

    def collect(connection: Any, _record: object) -> None:
        connections.append(connection)

    event.listen(Engine, "connect", collect)
    store = await Store.open(sqlite.url)
    try:
        await add(store)
        await asyncio.gather(*(store.get(ID) for _ in range(20)))
        event.remove(Engine, "connect", collect)

        def setting(connection: Any, name: str) -> Any:
            return connection.execute(f"PRAGMA {name}").fetchone()[0]

        writers = [c for c in connections if setting(c, "query_only") == 0]
        assert len(writers) == 1
        assert setting(writers[0], "synchronous") == 2
        for connection in connections:
            assert setting(connection, "journal_mode") == "wal"
            assert setting(connection, "foreign_keys") == 1
            assert setting(connection, "busy_timeout") == 5000
            assert (setting(connection, "wal_autocheckpoint") > 0) is (connection in writers)
    finally:
        await store.close()


async def test_a_claim_alone_waits_for_no_disk(sqlite: Sqlite) -> None:
    """A power cut undoes it, and ends the worker that it was for."""
    levels: list[str] = []

    def note(statement: str) -> None:
        if "synchronous" in statement:
            levels.append(statement.partition("=")[2])

    def watch(connection: Any, _record: Any) -> None:
        connection.set_trace_callback(note)

    event.listen(Engine, "connect", watch)
    store = await Store.open(sqlite.url)
    try:
        levels.clear()
        await add(store)
        assert await store.claim(ID, worker="w", device="cpu:0", now=2.0) is not None
        assert await store.request_pause(ID) is not None
        assert await store.request_cancel(ID, now=3.0) is not None
    finally:
        event.remove(Engine, "connect", watch)
        await store.close()
    assert levels == ["FULL", "NORMAL", "FULL", "FULL"]


async def test_close_leaves_one_file_and_no_thread(sqlite: Sqlite) -> None:
    before = set(threading.enumerate())
    store = await Store.open(sqlite.url)
    adds = [asyncio.ensure_future(add(store, f"ses_{i}")) for i in range(30)]
    await asyncio.sleep(0)
    await asyncio.gather(store.close(), *adds)  # calls under way end first
    await store.close()
    assert [file.name for file in sqlite.path.parent.iterdir()] == [sqlite.path.name]
    assert sqlite.raw("SELECT count(*) FROM sessions") == [(30,)]
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=1)  # told to end, and ending
    assert set(threading.enumerate()) <= before
    with pytest.raises(RuntimeError, match="closed"):
        await store.get(ID)


async def test_the_log_is_emptied_at_close_even_when_another_process_looks_on(sqlite: Sqlite) -> None:
    with contextlib.closing(sqlite3.connect(sqlite.path)) as other:
        store = await Store.open(sqlite.url)
        other.execute("SELECT count(*) FROM sessions").fetchall()
        await add(store)
        await store.close()
        log = sqlite.path.with_name(sqlite.path.name + "-wal")
        assert log.stat().st_size == 0


def test_the_store_does_not_bring_torch_or_alembic_along() -> None:
    code = "import sys, mezzotint.store.sql, mezzotint.store.blobs; print({'torch', 'alembic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
