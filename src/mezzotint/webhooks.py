"""Calls those who asked to be told how a session or batch ended. Must not decide who is told of what: the outbox says.

Beside the sessions, never in their way: a call that hangs costs its 10 s and nothing else, and a receiver that hangs
holds up no other. At least once: what was posted stays in the outbox until a receiver said 2xx or 410, twelve tries
failed, or the settings allow the call no more.
"""

import asyncio
import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import httpx2
import msgspec
import structlog

from mezzotint import __version__, bodies, failpoints
from mezzotint.errors import TryLater
from mezzotint.session import Session
from mezzotint.store.changes import WEBHOOK_OFF
from mezzotint.store.outbox import Outbox, Post, receiver
from mezzotint.webhook_rules import Policy, Target, read

log = structlog.get_logger(__name__)

CONNECT_S, CALL_S = 5.0, 10.0
TRIES = 12
AT_ONCE, AT_ONE = 64, 8  # calls under way: in all, and at one receiver
FIRST_WAIT_S, FACTOR, LONGEST_WAIT_S = 10.0, 3.0, 6 * 3600.0
LOOK_S = 60.0  # however long nothing is due: clocks are set


class _Refused(Exception):
    """The call must not be made."""


class Webhooks:
    """Empties the outbox while it runs."""

    def __init__(self, outbox: Outbox, policy: Policy) -> None:
        self._outbox, self._policy = outbox, policy
        self._calls: dict[str, asyncio.Task[None]] = {}  # under way, by the post's id
        self._receivers: Counter[str] = Counter()  # how many of them each has
        self._loop: asyncio.Task[None] | None = None
        self._client = _client() if policy.hosts else None  # a start without it is 45 ms quicker

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run(), name="webhooks")

    async def stop(self) -> None:
        """Calls under way are cut; they are made again at the next start."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        for call in self._calls.values():
            call.cancel()
        await asyncio.gather(*self._calls.values(), return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    async def deliver(self, now: float) -> int:
        """Make the calls that are due, as far as there is room. Returns how many. Raises TryLater with none made."""
        begun = await self._begin(now)
        await asyncio.gather(*begun)
        return len(begun)

    async def _begin(self, now: float) -> list[asyncio.Task[None]]:
        begun: list[asyncio.Task[None]] = []
        while (room := AT_ONCE - len(self._calls)) > 0:
            due = await self._outbox.due(now, room, without=[*self._calls], busy=self._busy())
            for post in due:
                called = receiver(post.url)
                if self._receivers[called] < AT_ONE:  # the first one has room, and so this comes to an end
                    self._receivers[called] += 1
                    self._calls[post.id] = asyncio.create_task(self._deliver(post, now), name="webhook")
                    self._calls[post.id].add_done_callback(partial(self._over, post.id, called))
                    begun.append(self._calls[post.id])
            if not due:
                break
        return begun

    def _busy(self) -> list[str]:
        return [called for called, count in self._receivers.items() if count >= AT_ONE]

    def _over(self, post_id: str, called: str, _call: asyncio.Task[None]) -> None:
        del self._calls[post_id]
        self._receivers[called] -= 1
        self._receivers += Counter()  # none at zero
        self._outbox.posted.set()

    async def _run(self) -> None:
        while True:
            self._outbox.posted.clear()
            wait_s = LOOK_S
            try:
                await self._begin(time.time())
                if len(self._calls) < AT_ONCE:  # else one must end first
                    due_at = await self._outbox.next_at(without=[*self._calls], busy=self._busy())
                else:
                    due_at = None
                wait_s = min(LOOK_S, max(0.0, due_at - time.time())) if due_at is not None else LOOK_S
            except TryLater as error:
                wait_s = float(error.retry_after_s)
            except Exception:
                log.exception("webhooks failed")  # the loop must outlive any single fault
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._outbox.posted.wait()

    async def _deliver(self, post: Post, now: float) -> None:
        note = await self._outcome(post, now)
        while True:  # until it is written: else it would be told again and again meanwhile
            try:
                return await note()
            except TryLater as error:
                wait_s = float(error.retry_after_s)
            except Exception:
                log.exception("webhooks failed")
                wait_s = LOOK_S
            await asyncio.sleep(wait_s)

    async def _outcome(self, post: Post, now: float) -> Callable[[], Awaitable[None]]:
        """Call, and what is to be written of it."""
        if (reason := self._policy.refusal(post.url)) is not None:  # the settings were others when it was accepted
            log.warning("webhook not called", id=post.id, session=post.session_id, why=reason)
            message = f"{post.type} was not sent: {reason}; nothing more is sent for this session"
            return partial(self._outbox.drop, post, {"code": WEBHOOK_OFF, "message": message, "field": "webhook"})
        try:
            async with asyncio.timeout(CALL_S):
                status = await self._call(post)
            why = f"HTTP {status}"
        except _Refused as error:
            status, why = 0, str(error)
        except TimeoutError:
            status, why = 0, "no answer in time"
        except (httpx2.HTTPError, OSError) as error:
            status, why = 0, f"no connection ({type(error).__name__})"
        except Exception as error:
            log.exception("a webhook could not be called", id=post.id)  # put off, lest it stand first for ever
            status, why = 0, f"not called ({type(error).__name__})"
        if 200 <= status < 300:
            failpoints.reached("webhook.before_ack")
            return partial(self._outbox.done, post.id)
        log.warning("webhook not delivered", id=post.id, session=post.session_id, tries=post.tries + 1, why=why)
        if status == 410:
            message = f"{post.type} was refused for good with HTTP 410; nothing more is sent for this session"
            return partial(self._outbox.drop, post, {"code": WEBHOOK_OFF, "message": message, "field": "webhook"})
        if post.tries + 1 >= TRIES:
            message = f"{post.type} could not be delivered in {TRIES} tries; the last one: {why}"
            return partial(self._outbox.drop, post, {"code": "webhook_failed", "message": message, "field": "webhook"})
        return partial(self._outbox.put_off, post.id, now + wait_after(post.tries + 1, random.random()))  # noqa: S311

    async def _call(self, post: Post) -> int:
        """The status of the answer, of which nothing else is read."""
        target = read(post.url)
        assert target is not None and self._client is not None  # noqa: S101, PT018  invariant: `refusal` has seen to it
        address = await self._address(target)
        now = time.time()
        data = bodies.session(post.data) if isinstance(post.data, Session) else bodies.batch(*post.data)
        content = msgspec.json.encode({"type": post.type, "timestamp": bodies.time(post.at), "data": data})
        headers = {
            "Host": target.authority,
            "webhook-id": post.id,
            "webhook-timestamp": str(int(now)),
            "webhook-signature": self._policy.signature(post.id, int(now), content),
        }
        host = f"[{address}]" if ":" in address else address
        url = f"{target.scheme}://{host}:{target.port}{target.path}"
        extensions = {"sni_hostname": target.host}  # the certificate must be the name's, not the address's
        async with self._client.stream("POST", url, content=content, headers=headers, extensions=extensions) as answer:
            return answer.status_code

    async def _address(self, target: Target) -> str:
        """Resolved once, and that address is called: a name cannot mean another one between check and call."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        addresses = [str(one[4][0]) for one in found]
        for address in addresses:
            if not self._policy.may_connect(address, target.scheme):
                raise _Refused("the host's address is one that this server does not call")
        return addresses[0]


def _client() -> httpx2.AsyncClient:
    """Neither proxies nor certificates from the environment: nothing but the settings says who is called."""
    return httpx2.AsyncClient(
        verify=ssl.create_default_context(),
        trust_env=False,
        follow_redirects=False,
        timeout=httpx2.Timeout(CALL_S, connect=CONNECT_S),
        headers={"User-Agent": f"mezzotint/{__version__}", "Content-Type": "application/json"},
    )


def wait_after(tries: int, drawn: float) -> float:
    """Seconds until the next call after so many: 10, 30, 90, ... at most 6 hours, up to a fifth less. `drawn` 0..1."""
    return min(FIRST_WAIT_S * FACTOR ** (tries - 1), LONGEST_WAIT_S) * (1.0 - 0.2 * drawn)
