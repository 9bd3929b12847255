"""What the engine loads and what makes room for it, over a toy family."""

import gc
import threading
import weakref

import msgspec
import pytest

from mezzotint.workers import wire
from tests.requests import request
from tests.unit.toys import Rig, ref


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_loading_is_told_before_it_is_done(rig: Rig) -> None:
    rig.slow["tiny"] = threading.Event()
    rig.submit("a")
    rig.step(3)
    assert ([one.phase for one in rig.of("a", wire.Phase)], rig.engine.resident) == (["loading"], ())
    assert rig.engine.loading is not None
    assert rig.engine.loading[0].what == "load"
    rig.slow["tiny"].set()
    rig.run()
    assert (rig.outcome("a"), rig.loads) == ("succeeded", ["tiny"])


def test_while_one_model_loads_the_sessions_of_another_come_to_their_end(rig: Rig) -> None:
    rig.load(ref("tiny"))
    rig.slow["large"] = threading.Event()
    rig.submit("waits", model="large")
    rig.submit("runs", request(num_inference_steps=5))
    for _ in range(100):
        rig.step()
        if rig.of("runs", wire.Ended):
            break
    assert rig.outcome("runs") == "succeeded"
    beside = [one for one in rig.measured if one.work.what == "step"]
    assert len(beside) == 5
    assert not any(one.seconds or one.extra_bytes for one in beside), "they say nothing of a step alone"
    error = rig.engine.unload("large")
    assert error is not None
    assert error.code == "model_in_use"
    rig.slow["large"].set()
    rig.run()
    assert rig.outcome("waits") == "succeeded"
    loads = [one for one in rig.measured if one.work.what == "load"]
    (load,) = [one for one in loads if one.work.model == ref("large").sha256]
    assert load.seconds


def test_a_model_that_is_about_to_be_loaded_is_not_said_to_be_unloaded(rig: Rig) -> None:
    rig.engine.ask(wire.Load(model=ref("tiny")))
    error = rig.engine.unload("tiny")
    assert error is not None
    assert error.code == "model_in_use"
    rig.run()
    assert rig.engine.unload("tiny") is None
    assert rig.engine.resident == ()


def test_a_load_for_which_there_is_no_thread_to_be_had_is_one_that_memory_does_not_hold(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", none_left)
        rig.submit("a")
        rig.run()
    assert rig.outcome("a") == "out_of_memory"
    rig.submit("b")
    rig.run()
    assert rig.outcome("b") == "succeeded"


def test_a_load_whose_session_is_cancelled_serves_the_next_one_and_its_failure_nobody() -> None:
    for error, outcome in ((None, "succeeded"), (ValueError("shapes"), "model_invalid")):
        rig = Rig(load_error=error)
        rig.slow["tiny"] = threading.Event()
        rig.submit("gone")
        rig.step()
        rig.engine.cancel("gone", 1)
        rig.step()
        assert rig.outcome("gone") == "cancelled"
        rig.submit("next")
        rig.step()
        rig.slow["tiny"].set()
        rig.run()
        assert (rig.outcome("next"), rig.loads) == (outcome, ["tiny"] * (2 if error else 1))


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("shapes"), "model_invalid"), (MemoryError(), "out_of_memory")],
    ids=["broken", "memory"],
)
def test_a_model_that_cannot_be_loaded_fails_its_session_only(error: Exception, code: str) -> None:
    rig = Rig(load_error=error)
    rig.submit("a")
    rig.run()
    assert rig.outcome("a") == code
    assert "shapes" not in rig.of("a", wire.Ended)[0].error.message


def test_the_least_recently_used_model_makes_room(rig: Rig) -> None:
    names = ["m0", "m1", "m2"]
    for name in names:
        rig.submit(name, request(num_inference_steps=1), model=name)
        rig.run()
    assert list(rig.engine.resident) == names[1:]
    rig.submit("again", request(num_inference_steps=1), model=names[-1])
    rig.run()
    assert rig.loads == names


def test_what_a_waiting_session_needs_stays_loaded(rig: Rig) -> None:
    for name in ("m0", "m1"):
        rig.submit(name, request(num_inference_steps=1), model=name)
        rig.run()
    rig.submit("new", request(num_inference_steps=1), model="m2")
    rig.submit("old", request(num_inference_steps=1), model="m0")  # m0 is the least recently used, but needed
    rig.run()
    assert rig.loads == ["m0", "m1", "m2"]


def test_adapters_are_read_once_and_go_with_their_model(rig: Rig) -> None:
    rig.submit("a", loras=("ink", "fog"))
    rig.submit("b", loras=("fog",))
    rig.run()
    assert sorted(rig.toy.read) == ["fog", "ink"]
    for name in ("m1", "m2"):
        rig.submit(name, request(num_inference_steps=1), model=name)
        rig.run()
    rig.submit("c", loras=("fog",))
    rig.run()
    assert rig.loads.count("tiny") == 2
    assert rig.toy.read[2:] == ["fog"]


def test_an_adapter_that_made_room_is_let_go_of_altogether(rig: Rig) -> None:
    rig.submit("a", loras=("ink",))
    rig.run()
    read = weakref.ref(rig.toy.loras[0])
    rig.toy.loras.clear()
    assert read() is not None
    for name in ("m1", "m2"):
        rig.submit(name, request(num_inference_steps=1), model=name)
        rig.run()
    gc.collect()
    assert read() is None, "nothing that is cached may hold its tensors"


def test_an_adapter_that_does_not_fit_fails_its_session_and_says_why(rig: Rig) -> None:
    rig.submit("good")
    rig.submit("bad", loras=("broken",))
    rig.run()
    (ended,) = rig.of("bad", wire.Ended)
    assert ended.error.code == "model_invalid"
    assert "lora 'broken'" in ended.error.message
    assert "it fits nothing" in ended.error.message
    assert rig.outcome("good") == "succeeded"


def test_a_model_loaded_otherwise_takes_the_place_of_the_same_one_that_nobody_uses(rig: Rig) -> None:
    plain = ref("tiny")
    rig.load(plain)
    rig.submit("old")
    rig.step(3)
    rig.load(msgspec.structs.replace(ref("tiny"), executor="openvino"))
    assert rig.loads == ["tiny"] * 2
    assert rig.engine.resident == ("tiny",)
    rig.run()
    assert rig.outcome("old") == "succeeded", "it keeps what it began with"
    rig.submit("again")
    rig.run()
    assert rig.loads == ["tiny"] * 2


def test_a_load_ahead_that_fails_is_told_to_the_session_that_needs_it() -> None:
    rig = Rig(load_error=ValueError("shapes"))
    rig.load(ref("tiny"))
    rig.submit("a")
    rig.run()
    assert rig.outcome("a") == "model_invalid"
