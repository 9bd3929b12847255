"""What a batch is as a whole, and how what is sent for one is read."""

from typing import Any

import pytest

from mezzotint import batches, bodies
from mezzotint.batches import Batch, Item, Standing
from mezzotint.errors import ErrorInfo, InvalidRequest
from mezzotint.inputs import BatchInput, CancelInput, checked, read, with_defaults, without
from mezzotint.session import State


def batch_of(*states: State | None) -> tuple[Batch, dict[str, Standing]]:
    """A session in each state; None: an invalid request that never became one."""
    invalid = ErrorInfo(code="invalid_request", message="no")
    items = tuple(
        Item(index=index, session_id=f"ses_{index}") if state else Item(index=index, error=invalid)
        for index, state in enumerate(states)
    )
    standings = {f"ses_{index}": Standing(state=state) for index, state in enumerate(states) if state}
    return Batch(id="bat_1", created_at=1.0, items=items), standings


@pytest.mark.parametrize(
    ("states", "whole"),
    [
        ((State.SUCCEEDED, State.SUCCEEDED), "succeeded"),
        ((State.SUCCEEDED, State.QUEUED), "running"),
        ((State.PAUSED, State.FAILED), "running"),
        ((State.SUCCEEDED, State.FAILED), "partially_succeeded"),
        ((State.SUCCEEDED, None), "partially_succeeded"),
        ((State.CANCELLED, State.FAILED), "cancelled"),
        ((State.EXPIRED, State.FAILED), "failed"),
        ((None, None), "failed"),
    ],
)
def test_a_batch_is_what_its_sessions_are(states: tuple[State | None, ...], whole: str) -> None:
    assert batches.state(*batch_of(*states)) == whole


def test_a_session_that_was_removed_counts_for_nothing() -> None:
    batch, standings = batch_of(State.SUCCEEDED, State.FAILED)
    del standings["ses_1"]
    assert batches.state(batch, standings) == "succeeded"
    assert batches.standing(batch.items[1], standings) is None


def test_of_a_batch_whose_sessions_were_all_removed_nothing_is_said() -> None:
    batch, _ = batch_of(State.SUCCEEDED, State.FAILED)
    assert batches.state(batch, {}) is None
    told = bodies.batch(batch, {})
    assert (told["state"], told["counts"], told["progress"]["done"]) == (None, {}, 2)


def test_defaults_count_where_a_request_does_not_say_it_in_any_spelling() -> None:
    defaults = {"steps": 4, "Seed": 7, "nonsense": 1, "other": 2}
    assert with_defaults({"numInferenceSteps": 9}, defaults) == {
        "Seed": 7,
        "nonsense": 1,
        "other": 2,
        "numInferenceSteps": 9,
    }
    assert with_defaults("no object", defaults) == "no object"


def faults(body: Any, schema: Any = BatchInput, path: str = "") -> dict[str | None, str]:
    with pytest.raises(InvalidRequest) as told:
        read(body, schema, path)
    return {fault.field: fault.code for fault in told.value.faults}


def test_every_fault_of_what_is_sent_is_told_by_its_field() -> None:
    assert faults([]) == {None: "invalid_request"}
    assert faults({}) == {"requests": "missing_field"}
    assert faults({"requests": []}) == {"requests": "invalid_value"}
    assert faults({"requests": [{}] * 1001}) == {"requests": "invalid_value"}
    assert faults({"requests": [{}], "skipInvalid": "yes", "default": {}}) == {
        "skip_invalid": "invalid_value",
        "default": "unknown_field",
    }
    assert faults({"requests": [{}], "metadata": {"a": float("nan")}}) == {"metadata": "invalid_value"}
    assert faults({"sessionId": "a", "session_id": "a"}, CancelInput, "data.") == {"data.session_id": "duplicate_field"}


def test_what_is_sound_beside_faults_is_read() -> None:
    found, wrong = checked({"requests": [1], "skip_invalid": True, "metadata": 5, "nonsense": 1}, BatchInput)
    assert found is not None
    assert (found.requests, found.skip_invalid, found.metadata) == ([1], True, {})
    assert [fault.field for fault in wrong] == ["nonsense", "metadata"]
    assert checked({"requests": 5, "skip_invalid": 1}, BatchInput)[0] is None


def test_any_spelling_is_read_and_taken_out() -> None:
    assert read({"Requests": [1], "StopOnFirstError": True}, BatchInput).stop_on_first_error is True
    assert without({"waitS": 3, "prompt": "x"}, "wait_s") == ({"prompt": "x"}, {"waitS": 3})
