"""The step loop over a toy family: who shares a call, what is told, and what one session's fault does to the others."""

from collections.abc import Callable
from typing import Any

import diffusers
import msgspec
import pytest
from torch import Tensor

from mezzotint.families.base import Executor, Rows
from mezzotint.request import Hires, PreviewUse
from mezzotint.workers import wire
from tests.requests import request
from tests.unit.toys import Rig, Toy


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_session_is_told_from_loading_to_its_picture(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=3))
    rig.run()
    phases = [phase.phase for phase in rig.of("a", wire.Phase)]
    assert phases == ["loading", "encoding", "denoising", "decoding", "storing"]
    times = [phase.at_s for phase in rig.of("a", wire.Phase)]
    assert times == sorted(times)
    assert [(one.step, one.done, one.total) for one in rig.of("a", wire.Progress)] == [(1, 1, 3), (2, 2, 3), (3, 3, 3)]
    (image,) = rig.of("a", wire.ImageDone)
    assert (image.width, image.height, image.seed) == (16, 16, 7)
    (ended,) = rig.of("a", wire.Ended)
    assert (ended.outcome, ended.usage.steps_run) == ("succeeded", 3)
    assert ended.usage.device_s > 0


def test_what_ends_together_leaves_together_for_as_long_as_a_call_takes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taking(seconds: float, work: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
        def run(given: Any) -> Tensor:
            rig.now += seconds
            return work(given)

        return run

    monkeypatch.setattr(rig.toy, "predict", taking(1.0, rig.toy.predict))
    monkeypatch.setattr(rig.toy, "decode", taking(0.4, rig.toy.decode))
    for name in "abcd":
        rig.submit(name, request(num_inference_steps=3, guidance_scale=1.0))
    while not all(rig.of(name, wire.Progress) and rig.of(name, wire.Progress)[-1].step == 3 for name in "abcd"):
        rig.step()
    left = []
    while not rig.engine.idle:
        rig.step()
        left.append(sum(len(rig.of(name, wire.Ended)) for name in "abcd"))
    assert left == [4], "one, and three more within the second of a call"


def test_every_step_is_told_and_what_was_measured_a_bit_later(rig: Rig) -> None:
    def measured() -> int:
        return sum(one.work.what == "step" for one in rig.measured)

    rig.submit("a", request(num_inference_steps=9))
    while not rig.of("a", wire.Progress):
        rig.step()
    rig.step(3)
    assert [one.step for one in rig.of("a", wire.Progress)] == [1, 2, 3, 4]
    assert measured() == 1, "told with what else happened before the first step"
    rig.now += 0.25
    rig.step()
    assert measured() == 5
    rig.run()
    assert measured() == len(rig.toy.calls) == 9


def test_an_image_is_shown_at_the_steps_asked_for_and_after_its_last_by_itself(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=6, preview=PreviewUse(every_steps=0, at_steps=(2, 3, 6), max_px=8)))
    rig.submit("b", request(num_inference_steps=6))
    rig.run()
    shown = rig.of("a", wire.Preview)
    assert [(one.image_index, one.step, one.steps, one.width, one.height) for one in shown] == [
        (0, 2, 6, 8, 8),
        (0, 3, 6, 8, 8),
    ]
    assert rig.of("b", wire.Preview) == []
    (first, *_) = [blob for one, blob in rig.told if isinstance(one, wire.Preview)]
    assert first.startswith(b"\x89PNG")


def test_an_image_is_shown_after_the_last_step_of_its_first_pass_too(rig: Rig) -> None:
    second = Hires(width=16, height=16, upscaler="latent", strength=1.0, steps=3)
    shows = PreviewUse(every_steps=0, at_steps=(3,), max_px=8)
    rig.submit("a", request(num_inference_steps=3, hires=second, preview=shows))
    rig.run()
    assert [(one.step, one.steps) for one in rig.of("a", wire.Preview)] == [(3, 6)]


def test_sessions_that_share_the_time_for_showing_take_turns(rig: Rig) -> None:
    for name in "abcd":
        rig.submit(name, request(num_inference_steps=100, preview=PreviewUse(every_steps=10, at_steps=(), max_px=8)))
    rig.run()
    counts = [len(rig.of(name, wire.Preview)) for name in "abcd"]
    assert max(counts) - min(counts) <= 2
    assert 4 <= sum(counts) < 4 * 10, "else there was time for all"


def test_each_piece_of_work_is_measured_and_its_memory_once(rig: Rig) -> None:
    for name in ("a", "b"):
        rig.submit(name, request(num_inference_steps=2, guidance_scale=1.0))
        rig.run()
    told = rig.measured
    kinds = [(one.work.what, one.seconds is not None, one.extra_bytes) for one in told]
    step = wire.Work(what="step", model="tiny", height=8, width=8, windows=1, rows=1)
    assert kinds == [
        ("load", True, 10),
        ("encode", True, 600),
        ("step", False, 600),  # the first of a shape sets things up
        ("step", True, None),
        ("decode", True, 600),
        ("file", True, 600),
        *(("step", True, None),) * 2,
        ("decode", True, None),
        ("file", True, None),
    ]
    assert {one.work for one in told if one.work.what == "step"} == {step}


def test_a_worker_takes_up_what_earlier_ones_found_out(rig: Rig) -> None:
    step = wire.Work(what="step", model="tiny", height=8, width=8, windows=1, rows=2)
    full = msgspec.structs.replace(step, rows=8)
    things = (
        wire.Thing(work=step, seconds=0.1, calls=9, held=True, has_memory=True),
        wire.Thing(work=full, seconds=None, calls=0, held=False, has_memory=False),
    )
    rig.engine.know(wire.Known(things=things))
    for name in "abcd":
        rig.submit(name, request(num_inference_steps=2))
    rig.run()
    assert max(rig.toy.calls) == 4, "half of what memory did not hold"
    told = [one for one in rig.measured if one.work == step]
    assert all(one.extra_bytes is None for one in told)


def test_the_cap_that_is_told_is_not_that_of_the_call_which_looks_for_a_larger_one(rig: Rig) -> None:
    step = wire.Work(what="step", model="tiny", height=8, width=8, windows=1, rows=2)
    things = tuple(
        wire.Thing(work=msgspec.structs.replace(step, rows=rows), seconds=seconds, calls=3, held=True, has_memory=True)
        for rows, seconds in ((2, 0.002), (8, 0.008))  # alike for each row: more of them gain nothing
    )
    rig.engine.know(wire.Known(things=things))
    rig.submit("a", request(num_inference_steps=120))
    rig.run()
    assert {one.cap for one in rig.measured if one.work.what == "step"} == {2}


def test_what_memory_does_not_hold_is_told(rig: Rig) -> None:
    rig.toy.room = 1
    rig.submit("a")
    rig.run()
    (told,) = [one for one in rig.measured if not one.held]
    assert (told.work.what, told.work.rows, told.seconds) == ("step", 2, None)


def test_a_late_arrival_joins_the_running_batch_and_leaves_it_earlier(rig: Rig) -> None:
    rig.submit("long", request(num_inference_steps=10))
    rig.step(4)
    rig.submit("short", request(num_inference_steps=2, guidance_scale=1.0))
    rig.run()
    assert 3 in rig.toy.calls, "two rows of the guided one, one of the other"
    ends = [one.session_id for one, _ in rig.told if isinstance(one, wire.Ended)]
    assert ends == ["short", "long"]
    assert len(rig.toy.calls) == 10


def test_a_call_that_memory_does_not_hold_is_tried_with_half_the_rows(rig: Rig) -> None:
    rig.toy.room = 5
    for name in "abcd":
        rig.submit(name, request(num_inference_steps=3))
    rig.run()
    assert {rig.outcome(name) for name in "abcd"} == {"succeeded"}
    assert max(rig.toy.calls) == 4


def test_what_memory_does_not_hold_beside_idle_weights_runs_without_them(rig: Rig) -> None:
    rig.submit("first", request(num_inference_steps=1), model="m0")
    rig.run()
    rig.toy.room = 1
    rig.submit("second", request(num_inference_steps=2), model="m1")
    rig.step(2)
    assert rig.engine.resident == ("m1",), "the idle one was let go of"
    rig.toy.room = 2
    rig.run()
    assert rig.outcome("second") == "succeeded"


def test_what_memory_does_not_hold_beside_a_neighbour_waits_for_its_end(rig: Rig) -> None:
    rig.toy.room = 1
    rig.submit("guided", request(num_inference_steps=3))
    rig.submit("plain", request(num_inference_steps=9, guidance_scale=1.0))
    rig.step(6)
    assert not rig.of("guided", wire.Ended)
    rig.toy.room = 2
    rig.run()
    assert [rig.outcome(name) for name in ("guided", "plain")] == ["succeeded"] * 2


def test_one_image_that_memory_does_not_hold_fails_alone(rig: Rig) -> None:
    rig.toy.room = 1
    rig.submit("guided", request(num_inference_steps=3))
    rig.submit("plain", request(num_inference_steps=3, guidance_scale=1.0))
    rig.run()
    assert (rig.outcome("guided"), rig.outcome("plain")) == ("out_of_memory", "succeeded")


def test_a_session_tells_the_rows_it_shared_calls_with(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=4))
    rig.step(3)  # load, encode and one step, and one more
    rig.submit("b", request(num_inference_steps=2, guidance_scale=1.0))
    rig.run()
    (ended,) = rig.of("a", wire.Ended)
    assert ended.usage.batch_rows == {"2": 2, "3": 2}
    assert ended.usage.peak_memory_bytes == 1000


def test_equal_prompts_are_encoded_once(rig: Rig) -> None:
    for name in ("a", "b", "c"):
        rig.submit(name, request(prompt="same", negative_prompt=""))
    rig.run()
    assert rig.toy.encoded == ["same", ""]


def test_texts_of_different_length_do_not_share_a_call(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=2))
    rig.submit("b", request(num_inference_steps=2, prompt="x" * 150))
    rig.run()
    assert rig.toy.calls == [2, 2, 2, 2]


def test_a_deterministic_session_shares_with_nobody(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=2))
    rig.submit("b", request(num_inference_steps=2, deterministic=True, num_images=2))
    rig.run()
    assert rig.toy.calls == [2] * 6


def test_cancel_of_one_member_leaves_the_others_running(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=8))
    rig.submit("b", request(num_inference_steps=8))
    rig.step(5)
    rig.engine.cancel("a", attempt=9)  # another attempt: not this one
    rig.step()
    assert not rig.of("a", wire.Ended)
    rig.engine.cancel("a", attempt=1)
    rig.engine.cancel("nobody", attempt=1)
    calls = len(rig.toy.calls)
    rig.step()
    assert rig.outcome("a") == "cancelled"
    assert rig.toy.calls[calls:] == [2]
    rig.run()
    assert rig.outcome("b") == "succeeded"
    assert not rig.of("a", wire.ImageDone)


def test_progress_is_that_of_the_lowest_unfinished_image(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=2, num_images=6, guidance_scale=5.0))  # twelve rows, eight a call
    rig.run()
    seen = [(one.image_index, one.step) for one in rig.of("a", wire.Progress)]
    assert seen[0] == (0, 1)
    done = [one.done for one in rig.of("a", wire.Progress)]
    assert done == sorted(done)
    assert done[-1] == 12
    assert len(rig.of("a", wire.ImageDone)) == 6


def test_a_text_that_cannot_be_encoded_is_not_blamed_on_the_model_just_loaded(rig: Rig) -> None:
    rig.toy.encode_error = RuntimeError("a bug")
    rig.submit("a", loras=("ink",))
    rig.run()
    assert rig.outcome("a") == "internal"
    assert "encoding" in rig.of("a", wire.Ended)[0].error.message


def test_a_picture_that_cannot_be_encoded_fails_its_session_only(rig: Rig) -> None:
    rig.encode_error = TypeError("not JSON")
    rig.submit("a", request(num_inference_steps=1))
    rig.run()
    assert rig.outcome("a") == "internal"
    rig.encode_error = None
    rig.submit("b", request(num_inference_steps=1))
    rig.run()
    assert rig.outcome("b") == "succeeded"


def test_no_memory_for_decoding_is_told_as_that(rig: Rig) -> None:
    rig.toy.decode_error = MemoryError()
    rig.submit("a", request(num_inference_steps=1))
    rig.run()
    assert rig.outcome("a") == "out_of_memory"


def test_a_deterministic_session_runs_in_the_plain_twin_and_others_do_not(rig: Rig) -> None:
    fast = Toy()
    fast.executor = Executor(name="openvino", dtype="bfloat16", twin=rig.toy)
    rig.served = fast
    rig.submit("any", request(num_inference_steps=2))
    rig.submit("exact", request(num_inference_steps=2, deterministic=True))
    rig.run()
    assert (rig.toy.calls, fast.calls) == ([2, 2], [2, 2])
    ran = {name: rig.of(name, wire.Ended)[0].usage for name in ("any", "exact")}
    assert (ran["any"].executor, ran["any"].dtype) == ("openvino", "bfloat16")
    assert (ran["exact"].executor, ran["exact"].dtype) == ("torch", "float32")
    assert rig.encoded_with == {"any": ("openvino", "bfloat16"), "exact": ("torch", "float32")}


def test_two_models_take_turns(rig: Rig) -> None:
    for name in ("m0", "m1"):
        rig.submit(name, request(num_inference_steps=20), model=name)
    rig.run()
    order = [one.session_id for one, _ in rig.told if isinstance(one, wire.Progress)]
    both = order[order.index("m1") :]
    runs = [len(part) for part in "".join(name[1] for name in both).replace("01", "0 1").replace("10", "1 0").split()]
    assert max(runs[:20]) <= 2


def test_what_a_call_is_in_can_be_asked_of_while_it_is_in_it() -> None:
    rig = Rig()
    seen: list[tuple[wire.Work, float] | None] = []
    predict = rig.toy.predict

    def watched(rows: Rows) -> Tensor:
        seen.append(rig.engine.doing)
        return predict(rows)

    rig.toy.predict = watched  # type: ignore[method-assign]
    rig.submit("a")
    rig.run()
    works = {one[0].what for one in seen if one is not None}
    assert (len(seen) > 0, None in seen, works) == (True, False, {"step"})
    assert rig.engine.doing is None


def test_a_call_that_fails_for_one_session_fails_it_alone(rig: Rig) -> None:
    rig.toy.wrong = {"wrong": ValueError("no kernel takes this row")}
    rig.submit("a", request(prompt="a boat"))
    rig.submit("b", request(prompt="wrong"))
    rig.submit("c", request(prompt="a cat", num_images=2))
    rig.run()
    assert [rig.outcome(one) for one in "abc"] == ["succeeded", "internal", "succeeded"]
    assert len(rig.of("c", wire.ImageDone)) == 2
    assert max(rig.toy.calls) == 6, "the others share calls again"


def test_an_error_of_the_device_ends_the_worker_and_is_blamed_on_nobody(rig: Rig) -> None:
    rig.toy.wrong = {"wrong": RuntimeError("CUDA error: an illegal memory access was encountered")}
    rig.submit("a", request(prompt="a boat"))
    rig.submit("b", request(prompt="wrong"))
    with pytest.raises(RuntimeError, match="CUDA error"):
        rig.run()
    assert rig.of("a", wire.Ended) == rig.of("b", wire.Ended) == []


def test_a_sampler_that_fails_takes_no_neighbour_with_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IndexError("index 51 is out of bounds")

    monkeypatch.setattr(diffusers.EulerDiscreteScheduler, "step", fail)
    rig.submit("a", request(scheduler="euler", num_images=2))
    rig.submit("b", request(scheduler="ddim"))
    rig.run()
    assert (rig.outcome("a"), rig.outcome("b")) == ("internal", "succeeded")


@pytest.mark.parametrize("images", [1, 2])
def test_values_that_are_not_finite_are_no_black_picture(rig: Rig, images: int) -> None:
    rig.toy.endless = "endless"
    shown = PreviewUse(every_steps=1, at_steps=(2,), max_px=8)
    rig.submit("a", request(prompt="endless", preview=shown, num_images=images))
    rig.submit("b", request(prompt="a cat", preview=shown))
    rig.run()
    assert (rig.outcome("a"), rig.outcome("b")) == ("internal", "succeeded")
    assert "not finite" in rig.of("a", wire.Ended)[0].error.message
    assert rig.of("a", wire.ImageDone) == rig.of("a", wire.Preview) == []


def test_a_second_pass_that_cannot_begin_and_a_picture_that_cannot_be_decoded_fail_alone(rig: Rig) -> None:
    rig.submit("a", request(hires=Hires(width=16, height=16, upscaler="lanczos", strength=1.0, steps=3)))
    rig.submit("b", request(num_inference_steps=9))
    rig.run()  # the toy encodes no pixels
    assert (rig.outcome("a"), rig.outcome("b")) == ("internal", "succeeded")
    rig.toy.decode_error = ValueError("no such shape")
    rig.submit("c")
    rig.run()
    assert rig.outcome("c") == "internal"


def test_a_preview_that_fails_costs_the_previews_only(rig: Rig) -> None:
    rig.toy.decode_error = ValueError("no such shape")
    rig.submit("a", request(num_inference_steps=4, preview=PreviewUse(every_steps=1, at_steps=(), max_px=8)))
    while not rig.of("a", wire.Warned):
        rig.step()
    rig.toy.decode_error = None
    rig.run()
    assert rig.outcome("a") == "succeeded"
    assert [one.code for one in rig.of("a", wire.Warned)] == ["preview_failed"]
    assert rig.of("a", wire.Preview) == []
