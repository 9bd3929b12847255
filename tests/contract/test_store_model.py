"""The store against a plain model of the table of states: whatever is called in whatever order, the two agree.

Real SQLite files, closed and killed on the way. What a worker says also comes from attempts that own nothing.
HISTORIES=200 takes so many, drawn anew; the ordinary lane's are the same each time.
"""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mezzotint.errors import Conflict, TryLater
from mezzotint.session import ImageRecord, Session, State, Usage
from mezzotint.store.blobs import Blobs
from mezzotint.store.rows import Once
from mezzotint.store.sql import Store
from tests.contract.model import Model
from tests.contract.stores import LOST, request
from tests.pictures import SIZE, encoded, picture
from tests.torture.history import FINAL, LEGAL, check

HISTORIES = int(os.environ.get("HISTORIES", "0"))
LIVING, QUEUE_SIZE = 4, 3
TRUTH = [encoded(picture()), encoded(picture("L"))]
ROWS = "SELECT id, state, attempt, losses, ended_at, cancel_requested, pause_requested, worker FROM sessions"
SESSION = st.runner().flatmap(lambda machine: st.sampled_from(machine.sessions()))
OFF = st.sampled_from([0, 0, 0, 0, -1, 1])  # from the attempt that runs


class Agreement(RuleBasedStateMachine):
    """Each rule calls the store and the model alike; after each the two hold the same."""

    template: ClassVar[Path]
    moved: ClassVar[set[tuple[str | None, str]]] = set()  # over all histories

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="mezzotint-model-"))
        self.data = self.folder / "0"
        self.data.mkdir()
        shutil.copy(self.template, self.data / "mezzotint.db")
        self.model = Model(QUEUE_SIZE)
        self.now = 1000.0
        self.accepts = self.starts = 0
        self.open()

    # ---- what callers ask

    def sessions(self) -> list[str]:
        """To choose from: those that live three times as often as those that have ended."""
        return [*self.model.rows, *self.model.living(), *self.model.living()]

    @initialize()
    def begin(self) -> None:
        self.submit(None, "boat", None)

    @precondition(lambda self: len(self.model.living()) < LIVING)  # few, so that each sees much
    @rule(
        key=st.sampled_from([None, None, "a", "b"]),
        body=st.sampled_from(["boat", "tree"]),
        expires_s=st.sampled_from([None, 5.0]),
    )
    def submit(self, key: str | None, body: str, expires_s: float | None) -> None:
        self.accepts += 1
        session_id = f"ses_{self.accepts:03}"
        once = None if key is None else Once(scope="all", key=key, fingerprint=body)
        asked = request(prompt=body, expires_s=expires_s)
        wanted = self.model.add(session_id, key, body, self.now, expires_s)
        try:
            answer = self.run(self.store.add(session_id, asked, warnings=[], now=self.now, once=once)).id
        except (Conflict, TryLater) as error:
            answer = error.code
        assert answer == wanted

    @rule(session_id=SESSION)
    def cancel(self, session_id: str) -> None:
        self.model.request_cancel(session_id, self.now)
        assert self.run(self.store.request_cancel(session_id, now=self.now)) is not None

    @rule(session_id=SESSION)
    def pause(self, session_id: str) -> None:
        self.model.request_pause(session_id)
        assert self.run(self.store.request_pause(session_id)) is not None

    @rule(session_id=SESSION)
    def resume(self, session_id: str) -> None:
        self.agree(self.store.resume(session_id, now=self.now), self.model.resume(session_id, self.now))

    # ---- what the dispatcher does

    @rule(session_id=SESSION)
    def claim(self, session_id: str) -> None:
        call = self.store.claim(session_id, worker="w0", device="cpu:0", now=self.now)
        self.agree(call, self.model.claim(session_id, self.now))

    @precondition(lambda self: self.model.in_state("queued"))
    @rule()
    def claim_the_oldest(self) -> None:
        self.claim(self.model.in_state("queued")[0])

    @rule(session_id=SESSION, state=st.sampled_from([State.EXPIRED, State.FAILED]))
    def end_queued(self, session_id: str, state: State) -> None:
        error = LOST if state is State.FAILED else None
        call = self.store.end_queued(session_id, state=state, now=self.now, spans={}, error=error)
        self.agree(call, self.model.end_queued(session_id, state, error.code if error else state, self.now))

    @rule()
    def time_passes(self) -> None:
        self.now += 3.0

    # ---- what workers say

    @rule(session_id=SESSION, off=OFF, index=st.sampled_from([0, 1]))
    def store_image(self, session_id: str, off: int, index: int) -> None:
        attempt, image = self.model.rows[session_id].attempt + off, self.drawn(session_id, index)
        kept = self.run(self.store.add_image(session_id, attempt=attempt, image=image))
        assert kept == self.model.add_image(session_id, attempt, index)

    def drawn(self, session_id: str, index: int) -> ImageRecord:
        data = TRUTH[index]
        sha256 = self.run(Blobs(self.data / "sessions").put(session_id, data))
        return ImageRecord(
            index=index, seed=index, width=SIZE[0], height=SIZE[1], format="png", bytes=len(data), sha256=sha256
        )

    @rule(session_id=SESSION, off=OFF)
    def succeed(self, session_id: str, off: int) -> None:
        *others, last = range(len(TRUTH))
        for index in others:
            self.store_image(session_id, off, index)
        self.finish(session_id, off, State.SUCCEEDED, self.drawn(session_id, last))

    @rule(session_id=SESSION, off=OFF, state=st.sampled_from([State.FAILED, State.CANCELLED]))
    def finish(self, session_id: str, off: int, state: State, last: ImageRecord | None = None) -> None:
        attempt, error = self.model.rows[session_id].attempt + off, LOST if state is State.FAILED else None
        call = self.store.finish(
            session_id, attempt=attempt, state=state, now=self.now, spans={}, usage=Usage(), image=last, error=error
        )
        cause = error.code if error else state.value
        if last is not None:
            self.model.add_image(session_id, attempt, last.index)
        self.agree(call, self.model.finish(session_id, attempt, state, cause, self.now))

    @rule(session_id=SESSION, off=OFF)
    def at_the_boundary(self, session_id: str, off: int) -> None:
        attempt = self.model.rows[session_id].attempt + off
        call = self.store.paused(session_id, attempt=attempt, spans={}, usage=Usage(), now=self.now)
        self.agree(call, self.model.paused(session_id, attempt, self.now))

    @precondition(lambda self: self.model.in_state("running"))
    @rule()
    def pause_the_oldest(self) -> None:
        session_id = self.model.in_state("running")[0]
        self.pause(session_id)
        self.at_the_boundary(session_id, 0)

    @rule(session_id=SESSION, off=OFF, losses=st.integers(0, 3))
    def lose_the_worker(self, session_id: str, off: int, losses: int) -> None:
        attempt = self.model.rows[session_id].attempt + off
        call = self.store.requeue(
            session_id, attempt=attempt, cause="worker_lost", losses=losses, spans={}, now=self.now
        )
        self.agree(call, self.model.requeue(session_id, attempt, losses, self.now))

    # ---- the server's own ends

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        self.starts += 1
        before, self.data = self.data, self.folder / str(self.starts)
        if killed:  # what the files hold this instant is what a kill would leave
            shutil.copytree(before, self.data, ignore=shutil.ignore_patterns("*-shm"))
        self.run(self.store.close())
        if not killed:
            before.rename(self.data)
        self.open()

    # ---- what must hold

    @invariant()
    def the_rows_are_as_the_model_says(self) -> None:
        with contextlib.closing(sqlite3.connect(self.data / "mezzotint.db")) as db:
            found = {row[0]: row[1:] for row in db.execute(ROWS)}
            drawn = set(db.execute("SELECT session_id, idx FROM images"))
        assert found.keys() == self.model.rows.keys()  # I1
        for session_id, (state, attempt, losses, ended_at, cancel, pause, worker) in found.items():
            row = self.model.rows[session_id]
            assert (state, attempt, losses, ended_at) == (row.state, row.attempt, row.losses, row.ended_at)
            if row.ended_at is None:
                assert (cancel, pause) == (row.cancel_requested, row.pause_requested)
            assert (worker is not None) == (row.state == "running")  # I8; for the queue see `open`
        assert drawn == {(session_id, index) for session_id, row in self.model.rows.items() for index in row.images}

    def teardown(self) -> None:
        try:
            self.end_all()
        finally:
            self.run(self.store.close())
            self.runner.close()
        try:
            keys = {key: session_id for key, (session_id, _) in self.model.keys.items()}
            assert check(self.data, keys, {"boat": TRUTH, "tree": TRUTH}) == []
        finally:
            shutil.rmtree(self.folder)

    def end_all(self) -> None:
        """Every accepted session comes to an end, each in another way, and its history is the model's."""
        for number, (session_id, row) in enumerate(self.model.rows.items(), self.starts):
            if row.state == "paused":
                self.cancel(session_id) if number % 2 else self.resume(session_id)
            if row.state == "queued" and number % 2:
                self.end_queued(session_id, [State.EXPIRED, State.FAILED][number % 4 // 2])
            if row.state == "queued":
                self.claim(session_id)
            if row.state == "running" and number % 3:
                self.finish(session_id, 0, [State.FAILED, State.CANCELLED][number % 3 - 1])
            if row.state == "running":
                self.succeed(session_id, 0)
            if row.state == "running":  # a cancel is pending
                self.finish(session_id, 0, State.CANCELLED)
            assert row.state in FINAL
            history = self.run(self.store.transitions(session_id))
            assert [(one.from_state, one.to_state, one.attempt, one.cause) for one in history] == row.moves
            self.moved.update((before, after) for before, after, _, _ in row.moves)

    def open(self) -> None:
        self.store = self.run(Store.open(f"sqlite:///{self.data / 'mezzotint.db'}", queue_size=QUEUE_SIZE))
        self.run(self.store.begin(now=self.now))
        self.run(self.store.recover(now=self.now))
        self.model.recover(self.now)
        assert [session.id for session in self.run(self.store.queued())] == self.model.in_state("queued")

    def agree(self, call: Coroutine[Any, Any, Session | None], changes: bool) -> None:
        assert (self.run(call) is not None) == changes

    def run(self, call: Any) -> Any:
        async def wait() -> Any:
            return await call

        return self.runner.run(wait())


def test_the_store_agrees_with_the_model_and_every_legal_change_was_made(template: Path) -> None:
    Agreement.template = template
    run_state_machine_as_test(
        Agreement,
        settings=settings(
            max_examples=HISTORIES or 30,
            stateful_step_count=50,
            derandomize=not HISTORIES,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Agreement.moved == LEGAL
