"""API keys in the database, and whose each session is. Must not ask what a key may do."""

import asyncio
import time

import pytest

from mezzotint.api_keys import ApiKey, Limits, id_of, opens
from mezzotint.callers import Caller
from mezzotint.errors import SetupError, TryLater
from mezzotint.keyring import Keyring
from mezzotint.quotas import Quotas
from mezzotint.store import beside
from mezzotint.store.sql import Store
from tests.contract.backends import Backend
from tests.contract.stores import ID, SUCCEEDED, add, claim, finish, image, known, request

pytestmark = pytest.mark.anyio


async def make(backend: Backend, name: str = "shop") -> tuple[ApiKey, str]:
    return await beside.create_key(
        backend.url, name=name, scopes=("submit", "read-own"), limits=Limits(queued=7), expires_at=None
    )


async def test_a_key_made_beside_a_server_is_seen_by_it_and_opens(store: Store, backend: Backend) -> None:
    assert not await store.any_api_key()
    key, text = await make(backend)
    assert await store.any_api_key()
    seen = await store.api_key(key.id)
    assert seen == key
    assert opens(text, seen, time.time())
    assert await store.api_key("aaaaaaaa") is None
    await add(store)  # the server still writes


async def test_a_secret_is_nowhere_in_the_database(store: Store, backend: Backend) -> None:
    key, text = await make(backend)
    assert id_of(text) == key.id
    everything = str(backend.raw("SELECT * FROM api_keys"))
    assert key.id in everything
    assert text.split("_", 2)[2] not in everything  # the secret may hold _ too
    assert key.sha256 not in repr(key)


async def test_a_restarted_server_knows_a_keys_limits_before_it_calls(store: Store, backend: Backend) -> None:
    limits = Limits(running=1)
    key, _ = await beside.create_key(backend.url, name="", scopes=("submit",), limits=limits, expires_at=None)
    keyring = Keyring(store, always=False, never=False)
    await keyring.start()
    assert keyring.most_running(key.id) == 1


async def test_a_revoked_key_opens_nothing_and_stays_listed(store: Store, backend: Backend) -> None:
    first, text = await make(backend, "first")
    second, _ = await make(backend, "second")
    assert await beside.revoke_key(backend.url, first.id)
    assert not await beside.revoke_key(backend.url, first.id), "once is once"
    assert not await beside.revoke_key(backend.url, "aaaaaaaa")
    assert not opens(text, await store.api_key(first.id), time.time())
    assert [key.name for key in await beside.list_keys(backend.url)] == ["first", "second"]
    assert await store.api_key(second.id) == second


async def test_keys_need_a_schema_which_is_made_where_no_server_has(backend: Backend) -> None:
    await beside.bring_up(backend.url)
    for table in ("batches", "outbox", "a1111_options", "api_keys"):
        backend.raw(f"DROP TABLE {table}")
    backend.raw("DROP INDEX sessions_by_owner")
    backend.raw("ALTER TABLE sessions DROP COLUMN owner")
    backend.raw("ALTER TABLE transitions DROP COLUMN steps_resumed")
    backend.raw("UPDATE alembic_version SET version_num = '0004'")
    await beside.bring_up(backend.url)
    key, _ = await make(backend)
    assert [found.id for found in await beside.list_keys(backend.url)] == [key.id]


async def test_a_database_that_cannot_be_opened_says_why() -> None:
    with pytest.raises(SetupError, match="absent"):
        await beside.list_keys("sqlite:////absent/mezzotint.db")


async def test_a_session_is_its_owners_and_counts_for_them(store: Store) -> None:
    await store.add(ID, request(), warnings=[], now=100.0, owner="abc")
    await store.add("ses_2", request(), warnings=[], now=100.0, owner="abc")
    await add(store, "ses_3")
    assert (await known(store)).owner == "abc"
    assert [session.id for session in (await store.list(owner="abc"))[0]] == ["ses_2", ID]
    assert await store.stored_by("abc") == 0
    await claim(store)
    await store.add_image(ID, attempt=1, image=image())
    await finish(store, SUCCEEDED)
    assert await store.stored_by("abc") == 123
    assert await store.stored_by("other") == 0


async def test_what_the_queue_refuses_costs_a_key_none_of_its_steps(backend: Backend) -> None:
    store = await Store.open(backend.url, queue_size=0)
    asked = request()
    quotas = Quotas(store, lambda key: 0)
    caller = Caller(key="abc", scopes=frozenset({"submit"}), limits=Limits(pixel_steps_per_minute=1))
    for _ in range(3):
        with pytest.raises(TryLater) as refused:
            async with quotas.room_for(caller, [asked]):
                await store.add(ID, asked, warnings=[], now=100.0, owner="abc")
        assert refused.value.code == "queue_full"
    async with quotas.room_for(caller, [asked]):
        pass
    with pytest.raises(TryLater, match="pixel_steps_per_minute"):
        async with quotas.room_for(caller, [asked]):
            pass
    await store.close()


async def test_of_two_that_come_at_once_for_a_keys_last_place_one_gets_it(store: Store) -> None:
    waiting = 6
    quotas = Quotas(store, lambda key: waiting)
    caller = Caller(key="abc", scopes=frozenset({"submit"}), limits=Limits(queued=7))

    async def come() -> None:
        async with quotas.room_for(caller, [request()]):
            await asyncio.sleep(0.1)  # both have been looked at by now

    found = await asyncio.gather(come(), come(), return_exceptions=True)
    assert [type(one) for one in found if one is not None] == [TryLater]
    with pytest.raises(TryLater, match=r"these are 8 sessions, .* queued=7; send 7 at most"):
        async with quotas.room_for(caller, [request()] * 8):
            pass
