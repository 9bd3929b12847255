"""Who asked to be told is told, once it is committed and until it arrives. Must not test the rules of URLs."""

import asyncio
import base64
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mezzotint import bodies
from mezzotint.batches import Batch, Item
from mezzotint.errors import ErrorInfo
from mezzotint.request import Resolved, WebhookUse
from mezzotint.schema import WEBHOOK_EVENTS
from mezzotint.session import State, Usage
from mezzotint.store.changes import WEBHOOK_OFF
from mezzotint.store.sql import Store
from mezzotint.webhook_rules import Policy, policy
from mezzotint.webhooks import AT_ONE, TRIES, Webhooks
from tests.contract.backends import Backend
from tests.contract.stores import CANCELLED, FAILED, ID, SUCCEEDED, add, claim, finish, known, request, requeue

pytestmark = pytest.mark.anyio

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OPEN = policy(["127.0.0.1", "localhost"], ["127.0.0.0/8", "::1/128"], [SECRET])


class Receiver:
    """Answers POSTs with what it is told to, and remembers them."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {"": head[0]}
        for line in filter(None, head[1:]):
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        self.got.append((headers, await reader.readexactly(int(headers["content-length"]))))
        writer.write(self.answer)
        writer.close()

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.got]


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[Receiver, int]]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    try:
        yield receiver, server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def sending(store: Store, rules: Policy = OPEN) -> AsyncIterator[Webhooks]:
    webhooks = Webhooks(store.outbox, rules)
    try:
        yield webhooks
    finally:
        await webhooks.stop()


def told(port: int, events: tuple[str, ...] = WEBHOOK_EVENTS, host: str = "127.0.0.1") -> dict[str, Any]:
    return {"webhook": WebhookUse(url=f"http://{host}:{port}/told?by=us", events=events)}


def count(backend: Backend) -> int:
    return int(backend.raw("SELECT count(*) FROM outbox")[0][0])


async def test_each_change_that_was_asked_for_is_told_once_with_the_session_as_it_was(store: Store) -> None:
    async with receiving() as (receiver, port), sending(store) as webhooks:
        await add(store, **told(port))
        await claim(store, now=150.0)
        await requeue(store)
        await claim(store, now=350.0)
        await finish(store, SUCCEEDED, attempt=2)
        assert await webhooks.deliver(150.0) == 1, "what happened later is due later"
        assert await webhooks.deliver(1000.0) == 1
        assert await webhooks.deliver(2000.0) == 0
        assert receiver.types == ["session.started", "session.succeeded"]
        (headers, body), (last, end) = receiver.got
        started, ended = json.loads(body), json.loads(end)
        assert (started["data"]["id"], started["data"]["state"], started["data"]["attempt"]) == (ID, "running", 1)
        assert (ended["data"]["state"], ended["timestamp"]) == ("succeeded", ended["data"]["timing"]["ended_at"])
        assert headers[""] == "POST /told?by=us HTTP/1.1"
        assert headers["host"] == f"127.0.0.1:{port}"
        assert headers["webhook-id"] != last["webhook-id"]
        signature = OPEN.signature(headers["webhook-id"], int(headers["webhook-timestamp"]), body)
        assert headers["webhook-signature"] == signature


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED, CANCELLED])
async def test_only_what_was_asked_for_is_told(store: Store, backend: Backend, state: State) -> None:
    await add(store, "ses_none")
    await add(store, "ses_other", **told(9, ("session.expired",)))
    await add(store, **told(9, (f"session.{state}",)))
    for session_id in ("ses_none", "ses_other", ID):
        await claim(store, session_id)
        await finish(store, state, session_id=session_id)
    assert backend.raw("SELECT session_id, type FROM outbox") == [(ID, f"session.{state}")]


async def add_batch(store: Store, webhooks: dict[str, Any], *, refused: int = 0) -> None:
    """A batch of a session for each, by its id, and of requests that never became one."""
    items = [Item(index=index, session_id=session_id) for index, session_id in enumerate(webhooks)]
    items += [Item(index=len(items), error=ErrorInfo(code="invalid_request", message="no"))] * refused
    accepted = {name: Resolved(request=request(**webhook), warnings=()) for name, webhook in webhooks.items()}
    await store.batches.add(Batch(id="bat_1", created_at=1.0, items=tuple(items), metadata={"a": 1}), accepted)


async def test_the_end_of_a_batch_is_told_to_each_who_asked_once_as_the_batch_then_stands(store: Store) -> None:
    async with receiving() as (receiver, port), sending(store) as webhooks:
        asked, other = told(port, ("batch.ended",)), told(port, ("batch.ended",), host="localhost")
        await add_batch(
            store,
            {"ses_a": asked, "ses_b": other, "ses_c": asked, "ses_d": told(port, ("session.failed",))},
            refused=1,
        )
        for session_id in ("ses_a", "ses_b", "ses_c"):
            await claim(store, session_id, now=100.0)
            await finish(store, SUCCEEDED, session_id=session_id)
        assert await webhooks.deliver(1000.0) == 0, "one still waits"
        await store.request_cancel("ses_d", now=400.0)
        found = await store.batches.get("bat_1")
        assert found is not None
        assert await store.delete("ses_a")
        assert await webhooks.deliver(1000.0) == 2
        assert await webhooks.deliver(2000.0) == 0
        assert {headers["host"] for headers, _ in receiver.got} == {f"127.0.0.1:{port}", f"localhost:{port}"}
        batch = bodies.batch(*found)
        assert batch["state"] == "partially_succeeded"
        ended = {"type": "batch.ended", "timestamp": bodies.time(400.0), "data": batch}
        assert [json.loads(body) for _, body in receiver.got] == [ended, ended]


async def test_the_end_of_a_batch_whose_sessions_end_at_one_instant_is_told_once(
    store: Store, backend: Backend
) -> None:
    ids = [f"ses_{number}" for number in range(6)]
    await add_batch(store, dict.fromkeys(ids, told(9, ("batch.ended",))))
    for session_id in ids[:4]:
        await claim(store, session_id, now=100.0)
    ends = [finish(store, SUCCEEDED, session_id=session_id) for session_id in ids[:3]]
    cancels = [store.request_cancel(session_id, now=300.0) for session_id in ids[3:]]
    await asyncio.gather(*ends, *cancels)
    assert count(backend) == 0, "one still runs"
    await store.recover(now=400.0)
    assert backend.raw("SELECT session_id, type FROM outbox") == [("ses_0", "batch.ended")]


async def test_the_end_of_a_batch_is_not_told_to_who_wants_no_more_of_it(store: Store, backend: Backend) -> None:
    async with receiving() as (receiver, port), sending(store) as webhooks:
        receiver.answer = b"HTTP/1.1 410 Gone\r\nConnection: close\r\n\r\n"
        await add_batch(store, {"ses_a": told(port), "ses_b": told(port)})
        await store.request_cancel("ses_a", now=100.0)
        assert await webhooks.deliver(100.0) == 1
        await store.request_cancel("ses_b", now=200.0)
        assert backend.raw("SELECT type FROM outbox") == [("session.cancelled",)]


async def test_the_end_of_a_batch_that_cannot_be_told_is_in_the_warnings_of_a_session(store: Store) -> None:
    async with receiving() as (receiver, port), sending(store) as webhooks:
        receiver.answer = b"HTTP/1.1 410 Gone\r\nConnection: close\r\n\r\n"
        await add_batch(store, {"ses_a": told(port, ("session.failed",)), "ses_b": told(port, ("batch.ended",))})
        await store.request_cancel("ses_b", now=100.0)
        await store.request_cancel("ses_a", now=100.0)
        assert await webhooks.deliver(100.0) == 1
        (warning,) = (await known(store, "ses_b")).warnings
        assert (warning["code"], warning["message"][:11]) == (WEBHOOK_OFF, "batch.ended")


async def test_what_cannot_be_committed_is_not_posted(store: Store, backend: Backend) -> None:
    await add(store, **told(9))
    await claim(store)
    assert await finish(store, SUCCEEDED, attempt=7) is None
    assert await finish(store, SUCCEEDED) is not None
    assert await finish(store, FAILED) is None
    assert count(backend) == 2


async def test_sessions_cancelled_expired_and_recovered_are_told_too(store: Store, backend: Backend) -> None:
    for name in ("ses_cancelled", "ses_expired", "ses_recovered"):
        await add(store, name, **told(9), expires_s=10.0)
    await store.request_cancel("ses_cancelled", now=1.0)
    await claim(store, "ses_expired", now=500.0)
    await claim(store, "ses_recovered", now=105.0)
    await store.request_cancel("ses_recovered", now=106.0)
    await store.recover(now=107.0)
    assert sorted(backend.raw("SELECT session_id, type FROM outbox")) == [
        ("ses_cancelled", "session.cancelled"),
        ("ses_expired", "session.expired"),
        ("ses_recovered", "session.cancelled"),
        ("ses_recovered", "session.started"),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 No\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:PORT/elsewhere\r\nConnection: close\r\n\r\n",
        b"not HTTP at all\r\n\r\n",
        b"",
    ],
)
async def test_any_other_answer_is_tried_again_under_the_same_id(backend: Backend, answer: bytes) -> None:
    store = await Store.open(backend.url)
    async with receiving() as (receiver, port), sending(store) as webhooks:
        good, receiver.answer = receiver.answer, answer.replace(b"PORT", str(port).encode())
        await add(store, **told(port))
        await store.request_cancel(ID, now=100.0)
        assert await webhooks.deliver(100.0) == 1
        assert await webhooks.deliver(107.9) == 0
        assert receiver.connections == 1, "a redirect is not followed"
        receiver.answer = good
        assert await webhooks.deliver(110.0) == 1
        assert await webhooks.deliver(9999.0) == 0
        (first, body), (second, again) = receiver.got
        assert (first["webhook-id"], body) == (second["webhook-id"], again)
    await store.close()


async def test_after_twelve_tries_it_is_given_up_and_the_session_says_so(store: Store, backend: Backend) -> None:
    async with receiving() as (receiver, port), sending(store) as webhooks:
        receiver.answer = b"HTTP/1.1 503 Busy\r\nConnection: close\r\n\r\n"
        await add(store, **told(port))
        await store.request_cancel(ID, now=100.0)
        now = 100.0
        while await webhooks.deliver(now):
            now += 6 * 3600
        assert len(receiver.got) == TRIES
        (warning,) = (await known(store)).warnings
        assert (warning["code"], warning["field"]) == ("webhook_failed", "webhook")
        assert "HTTP 503" in warning["message"]
        assert count(backend) == 0


@asynccontextmanager
async def gone_while_it_runs(store: Store) -> AsyncIterator[tuple[Receiver, Webhooks]]:
    """A receiver that answered 410 to the start of the session."""
    async with receiving() as (receiver, port), sending(store) as webhooks:
        receiver.answer = b"HTTP/1.1 410 Gone\r\nConnection: close\r\n\r\n"
        await add(store, **told(port))
        await claim(store, now=100.0)
        await webhooks.deliver(100.0)
        yield receiver, webhooks


async def test_a_receiver_that_has_gone_is_told_no_more(store: Store, backend: Backend) -> None:
    async with gone_while_it_runs(store) as (receiver, webhooks):
        assert [warning["code"] for warning in (await known(store)).warnings] == [WEBHOOK_OFF]
        await finish(store, SUCCEEDED)
        assert await webhooks.deliver(9999.0) == 0
        assert (receiver.types, count(backend)) == (["session.started"], 0)


async def test_the_end_does_not_forget_that_the_receiver_has_gone(store: Store, backend: Backend) -> None:
    async with gone_while_it_runs(store):
        small = {"code": "size_far_from_native", "message": "small", "field": "width"}
        ended = await store.finish(ID, attempt=1, state=SUCCEEDED, now=300.0, spans={}, usage=Usage(), warnings=[small])
        assert ended is not None
        assert [warning["code"] for warning in ended.warnings] == [WEBHOOK_OFF, "size_far_from_native"]
        assert count(backend) == 0


async def test_an_address_that_is_not_allowed_is_never_connected_to(store: Store) -> None:
    closed = dataclasses.replace(OPEN, networks=policy(["x"], ["10.0.0.0/8"], [SECRET]).networks)
    async with receiving() as (receiver, port), sending(store, closed) as webhooks:
        for number, host in enumerate(("127.0.0.1", "localhost")):
            await add(store, f"ses_at_{number}", **told(port, host=host))
            await store.request_cancel(f"ses_at_{number}", now=100.0)
        assert await webhooks.deliver(100.0) == 2
        assert receiver.connections == 0
    async with receiving() as (receiver, port), sending(store) as webhooks:
        await add(store, **told(port, host="localhost"))
        await store.request_cancel(ID, now=100.0)
        assert await webhooks.deliver(101.0) == 1
        assert receiver.types == ["session.cancelled"]
        assert receiver.got[0][0]["host"] == f"localhost:{port}"


@pytest.mark.parametrize("hosts", [("shop.example.com",), ()])
async def test_a_host_that_was_taken_off_the_list_ends_it_at_once_with_the_reason(
    store: Store, backend: Backend, hosts: tuple[str, ...]
) -> None:
    async with receiving() as (receiver, port), sending(store, dataclasses.replace(OPEN, hosts=hosts)) as webhooks:
        await add(store, **told(port))
        await claim(store, now=100.0)
        assert await webhooks.deliver(100.0) == 1
        (warning,) = (await known(store)).warnings
        assert (warning["code"], warning["field"]) == (WEBHOOK_OFF, "webhook")
        assert "webhook_hosts" in warning["message"]
        await finish(store, SUCCEEDED)
        assert (await webhooks.deliver(9999.0), count(backend), receiver.connections) == (0, 0, 0)


async def test_calls_that_fail_in_a_way_nobody_foresaw_are_put_off_and_hold_up_no_other(store: Store) -> None:
    class Unforeseen(Policy):
        def may_connect(self, address: str, scheme: str) -> bool:
            if address == "127.0.0.2":
                raise UnicodeError("label empty or too long")
            return super().may_connect(address, scheme)

    rules = Unforeseen(hosts=(*OPEN.hosts, "127.0.0.2"), networks=OPEN.networks, keys=OPEN.keys)
    async with receiving() as (receiver, port), sending(store, rules) as webhooks:
        for number in range(AT_ONE + 1):
            await add(store, f"ses_bad_{number}", **told(port, host="127.0.0.2"))
            await store.request_cancel(f"ses_bad_{number}", now=100.0)
        await add(store, **told(port))
        await store.request_cancel(ID, now=101.0)
        assert await webhooks.deliver(101.0) == AT_ONE + 1
        assert receiver.types == ["session.cancelled"]
        assert await webhooks.deliver(101.0) == 1


async def test_a_receiver_that_hangs_holds_up_no_other(store: Store) -> None:
    hung = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hung.set()
        await reader.read()
        writer.close()

    hanging = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with hanging, receiving() as (receiver, port), sending(store) as webhooks:
        for number in range(AT_ONE + 1):
            await add(store, f"ses_hung_{number}", **told(hanging.sockets[0].getsockname()[1]))
            await store.request_cancel(f"ses_hung_{number}", now=100.0)
        webhooks.start()
        await hung.wait()
        await add(store, **told(port))
        await store.request_cancel(ID, now=100.0)
        async with asyncio.timeout(5):
            while not receiver.got:
                await asyncio.sleep(0.01)


async def test_whoever_deletes_the_session_is_told_of_its_end_all_the_same(store: Store) -> None:
    async with receiving() as (receiver, port), sending(store) as webhooks:
        await add(store, **told(port))
        await store.request_cancel(ID, now=100.0)
        assert await store.delete(ID)
        await webhooks.deliver(100.0)
        assert receiver.types == ["session.cancelled"]


async def test_a_change_is_told_as_soon_as_it_is_committed(store: Store) -> None:
    async with receiving() as (receiver, port), sending(store) as webhooks:
        webhooks.start()
        await asyncio.sleep(0.05)
        await add(store, **told(port))
        await store.request_cancel(ID, now=100.0)
        async with asyncio.timeout(5):
            while not receiver.got:
                await asyncio.sleep(0.01)
