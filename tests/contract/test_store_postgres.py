"""What only a server can do to a store: stop, crash, cut a connection, be owned by another. Must not test SQLite."""

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import make_url

from mezzotint.errors import SetupError, TryLater
from mezzotint.session import Session
from mezzotint.store import postgres as sockets
from mezzotint.store.sql import Store
from tests.contract.backends import Postgres, PostgresServer
from tests.contract.stores import CANCELLED, ID, QUEUED, RUNNING, SUCCEEDED, add, claim, finish, known, running

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(postgres: Postgres) -> AsyncIterator[Store]:
    opened = await Store.open(postgres.url)
    yield opened
    await opened.close()


async def refused(call: Awaitable[object], code: str) -> None:
    with pytest.raises(TryLater) as caught:
        await call
    assert caught.value.code == code


async def test_a_second_owner_is_refused_until_the_first_has_gone(store: Store, postgres: Postgres) -> None:
    with pytest.raises(SetupError, match=r"in use by another server.*--database"):
        await Store.open(postgres.url)
    assert await add(store)
    await store.close()
    second = await Store.open(postgres.url)
    assert await second.get(ID)
    await second.close()


async def test_an_owner_that_is_gone_without_a_word_is_asked_after(postgres_server: PostgresServer) -> None:
    """As with its machine, or the way to it: else it would own the database for as long as TCP waits, two hours."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    await asyncio.to_thread(postgres_server.stop)
    await asyncio.to_thread(postgres_server.start, port=port)
    try:
        engines = sockets.open(sockets.address(make_url(f"postgresql://postgres@127.0.0.1:{port}/postgres")), 1.0)
        for engine in engines:
            told = await engine.run(lambda it: it.exec_driver_sql("SHOW tcp_keepalives_idle").scalar_one())
            await engine.dispose()
            assert told == "10"
    finally:
        await asyncio.to_thread(postgres_server.stop)
        await asyncio.to_thread(postgres_server.start)


@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="apt-get install pgbouncer")
async def test_a_pooler_that_keeps_sessions_may_stand_between(
    postgres: Postgres, postgres_server: PostgresServer
) -> None:
    folder = postgres.folder / "pooler"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={postgres.folder} user=postgres\n"
        f"[pgbouncer]\nlisten_port=5432\nunix_socket_dir={folder}\nauth_type=any\npool_mode=session\n"
    )
    command = [*postgres_server.run_as, "pgbouncer", "--quiet", str(settings)]
    pooler = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        url = f"postgresql://postgres@/{postgres.name}?host={folder}"
        with anyio.fail_after(20):
            while not (folder / ".s.PGSQL.5432").exists():
                await asyncio.sleep(0.05)
        first = await Store.open(url)
        assert await add(first)
        with pytest.raises(SetupError, match="in use by another server"):
            await Store.open(url)
        await first.close()
        second = await Store.open(url)
        assert await second.get(ID)
        await second.close()
    finally:
        pooler.terminate()
        await pooler.wait()
    shutil.rmtree(folder)


async def test_while_the_server_is_away_calls_say_try_later_and_then_work_again(
    store: Store, postgres_server: PostgresServer
) -> None:
    before = await running(store)
    await asyncio.to_thread(postgres_server.stop)
    try:
        await refused(store.get(ID), "not_ready")
        await refused(add(store, "ses_away"), "not_ready")
        await refused(finish(store, SUCCEEDED), "not_ready")
    finally:
        await asyncio.to_thread(postgres_server.start)
    assert await known(store) == before
    assert await store.get("ses_away") is None
    assert await finish(store, SUCCEEDED)


async def test_a_crash_under_load_loses_nothing_that_was_acknowledged(
    store: Store, postgres_server: PostgresServer
) -> None:
    acknowledged: list[str] = []
    refusals: set[str] = set()

    async def live(number: int) -> None:
        for turn in range(100):
            session_id = f"ses_{number}_{turn:03}"
            try:
                await add(store, session_id)
                acknowledged.append(session_id)
                claimed = await claim(store, session_id)
                assert claimed is not None, "or a claim that said try later had happened"
            except TryLater as error:
                refusals.add(error.code)
                await asyncio.sleep(0.02)

    lives = [asyncio.ensure_future(live(number)) for number in range(10)]
    for _ in range(3):
        await asyncio.sleep(0.3)
        await asyncio.to_thread(postgres_server.stop, "immediate")
        await asyncio.to_thread(postgres_server.start)
    await asyncio.gather(*lives)
    stored = {session.id for session in (await store.list(limit=2000))[0]}
    assert set(acknowledged) == stored, "all that was promised is there, and nothing that was refused"
    assert len(acknowledged) > 100
    assert refusals == {"not_ready"}


@asynccontextmanager
async def cut_after_commit(postgres: Postgres, *, silently: bool = False) -> AsyncIterator[tuple[str, list[int]]]:
    """An address whose connections break, while the list holds a number, when a commit was done but not yet told.

    Silently: they stay open, and nothing is answered any more.
    """
    left: list[int] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pipe(reader: Any, writer: Any, other: Any, *, watch: bool) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            if watch and left and b"COMMIT" in data:
                left.pop()
                other.pause = True  # the answer is read, and dropped
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_unix_connection(f"{postgres.folder}/.s.PGSQL.5432")

        class Flag:
            pause = False

        flag = Flag()

        async def answers() -> None:
            while data := await back_reader.read(65536):
                if flag.pause and silently:
                    continue
                if flag.pause:
                    writer.transport.abort()
                    back_writer.transport.abort()
                    return
                writer.write(data)
            writer.close()

        for work in (pipe(reader, back_writer, flag, watch=True), answers()):
            task = asyncio.ensure_future(work)
            tasks.add(task)

    with tempfile.TemporaryDirectory() as folder:
        server = await asyncio.start_unix_server(serve, f"{folder}/.s.PGSQL.5432")
        yield postgres.url.replace(str(postgres.folder), folder), left
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("silently", [False, True], ids=["cut", "no answer in time"])
async def test_a_commit_that_was_done_but_not_told_is_told_as_what_became_of_it(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, silently: bool
) -> None:
    monkeypatch.setattr("mezzotint.store.postgres.ANSWER_S", 0.5)
    async with cut_after_commit(postgres, silently=silently) as (url, cuts):
        store = await Store.open(url)
        cuts.append(1)
        assert isinstance(await add(store), Session)
        assert not cuts, "it was cut"
        cuts.append(1)
        claimed = await claim(store)
        assert claimed is not None
        assert (claimed.state, claimed.attempt) == (RUNNING, 1)
        cuts.append(1)
        ended = await finish(store, SUCCEEDED)
        assert ended is not None
        assert len(await store.transitions(ID)) == 3
        await store.close()


async def test_a_connection_cut_in_mid_commit_leaves_nothing_and_says_so(store: Store, postgres: Postgres) -> None:
    await add(store)
    postgres.raw("CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(30); END $$")
    postgres.raw(
        "CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON sessions DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION nap()"
    )
    claiming = asyncio.ensure_future(claim(store))
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = ?"
    for _ in range(100):
        await asyncio.sleep(0.05)
        if await asyncio.to_thread(postgres.raw, cut, postgres.name):
            break
    await refused(claiming, "not_ready")
    postgres.raw("DROP TRIGGER slow ON sessions")
    session = await known(store)
    assert (session.state, session.attempt) == (QUEUED, 0)
    assert await claim(store)


CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mezzotint' AND datname = ?"


async def test_a_read_over_a_connection_that_was_cut_asks_again_over_a_new_one(
    store: Store, postgres: Postgres
) -> None:
    await add(store)
    for _ in range(5):
        postgres.raw(CUT, postgres.name)  # while the loop stands still: nobody has heard of it yet
        assert (await known(store)).state is QUEUED


async def test_connections_that_an_operator_cuts_cost_at_most_one_refusal_each(
    store: Store, postgres: Postgres
) -> None:
    for turn in range(20):
        session_id = f"ses_{turn:02}"
        assert await add(store, session_id)
        await asyncio.to_thread(postgres.raw, CUT, postgres.name)
        for _ in range(2):
            try:
                cancelled = await store.request_cancel(session_id, now=1.0)
            except TryLater:
                continue
            assert cancelled is not None
            assert cancelled.state is CANCELLED
            break
        assert (await known(store, session_id)).state is CANCELLED
        assert len(await store.transitions(session_id)) == 2


@pytest.mark.parametrize(("sqlstate", "code"), [("53100", "storage_full"), ("58030", "not_ready")])
async def test_a_full_or_broken_disk_of_the_server_changes_nothing(
    store: Store, postgres: Postgres, sqlstate: str, code: str
) -> None:
    before = await add(store)
    postgres.raw(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'could not write' USING ERRCODE = '{sqlstate}'; END $$"
    )
    for table in ("transitions", "sessions"):
        postgres.raw(f"CREATE TRIGGER failing BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION fail()")
    await refused(claim(store), code)
    await refused(add(store, "ses_2"), code)
    assert [before] == await store.queued()
    for table in ("transitions", "sessions"):
        postgres.raw(f"DROP TRIGGER failing ON {table}")
    assert await claim(store)


async def test_what_cannot_be_opened_says_why_and_never_the_password(postgres: Postgres, tmp_path: Path) -> None:
    cases = {
        postgres.url.replace(postgres.name, "nowhere"): "nowhere.*does not exist",
        postgres.url.replace(str(postgres.folder), str(tmp_path)): "cannot open",
        "postgresql://me:canary-secret@127.0.0.1:9/x": "refused|cannot open",
        "postgresql://me:canary-secret@127.0.0.1": "names no database",
        "me:canary-secret@here": "cannot be read",
    }
    for url, why in cases.items():
        with pytest.raises(SetupError, match=why) as caught:
            await Store.open(url)
        assert "canary-secret" not in str(caught.value)
