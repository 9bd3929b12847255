import random

import pytest

from mezzotint.session import Usage
from mezzotint.workers import wire


def test_a_message_and_its_blob_come_back_as_sent() -> None:
    sent = wire.Ended(session_id="s", attempt=2, outcome="succeeded", usage=Usage(steps_run=4), error=None)
    raw = wire.frame(sent, b"picture")
    message, blob = wire.lengths(raw[: wire.HEAD_BYTES])
    body = raw[wire.HEAD_BYTES :]
    assert wire.decode_from_worker(body[:message]) == sent
    assert body[message:] == b"picture"
    assert len(body) == message + blob


def test_a_frame_over_the_cap_is_refused_before_it_is_read() -> None:
    with pytest.raises(wire.WireError, match="over the cap"):
        wire.lengths(b"\xff" * wire.HEAD_BYTES)


def test_garbage_is_refused_with_our_error() -> None:
    source = random.Random(1)
    for _ in range(2000):
        with pytest.raises(wire.WireError):
            wire.decode_from_worker(source.randbytes(source.randrange(0, 60)))


def test_a_field_that_nobody_sends_is_refused() -> None:
    import msgspec

    raw = msgspec.msgpack.encode({"t": "cancel", "session_id": "s", "attempt": 1, "more": True})
    with pytest.raises(wire.WireError):
        wire.decode_from_worker(raw)
