"""How a session leaves the engine halfway and goes on elsewhere, over a toy family."""

import pytest

from mezzotint.workers import wire
from tests.requests import request
from tests.unit.toys import Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_paused_session_tells_its_state_and_is_gone_and_goes_on_from_it(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=6, num_images=2))
    rig.submit("b", request(num_inference_steps=6))
    while not any(one.step == 3 for one in rig.of("a", wire.Progress)):
        rig.step()
    rig.engine.pause("a", 2)  # another attempt's
    rig.engine.pause("nobody", 1)
    rig.engine.pause("a", 1)
    rig.step()
    (paused,) = rig.of("a", wire.Paused)
    assert paused.usage.steps_run == 6
    states = rig.states("a")
    assert states.keys() == {0, 1}
    rig.run()
    assert (rig.outcome("b"), rig.of("a", wire.Ended)) == ("succeeded", [])
    again = Rig()
    again.submit("a", request(num_inference_steps=6, num_images=2), states=states)
    again.run()
    assert again.of("a", wire.Progress)[0].step == 4
    assert again.of("a", wire.Ended)[0].usage.steps_run == 6


def test_a_paused_session_tells_how_far_its_lowest_unfinished_image_is(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=6, num_images=6, guidance_scale=5.0))  # twelve rows, eight a call
    rig.step(9)
    told = rig.of("a", wire.Progress)[-1]
    rig.engine.pause("a", 1)
    rig.step()
    (paused,) = rig.of("a", wire.Paused)
    assert paused.usage.reached == (told.image_index, told.step)
    assert paused.usage.steps_run % 6, "they are not equally far"


def test_checkpoints_are_told_now_and_then_and_only_of_what_moved(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=20, num_images=6, guidance_scale=5.0))  # twelve rows, eight a call
    rig.step(3)
    assert rig.states("a") == {}, "so early there is little to lose"
    rig.now += 0.25
    rig.step()
    assert sorted(rig.states("a")) == [0, 1, 2, 3], "those that were in a call"
    rig.told.clear()
    rig.step()
    assert rig.states("a") == {}
    rig.now += 0.25
    rig.step()
    found = rig.of("a", wire.Checkpoint)
    assert {one.index for one in found} <= set(range(6))
    assert all(one.step > 0 for one in found)


def test_a_second_attempt_shows_with_its_first_step_that_it_moves(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=20), attempt=2)
    rig.step(3)
    assert [one.step for one in rig.of("a", wire.Checkpoint)] == [1]
    assert rig.states("a").keys() == {0}


def test_a_session_goes_on_from_its_checkpoint_and_says_how_much_that_saved(rig: Rig) -> None:
    asked = request(num_inference_steps=10, scheduler="euler_ancestral", num_images=2)
    rig.submit("a", asked)
    rig.step(6)
    rig.now += 1
    rig.step()
    step = rig.of("a", wire.Checkpoint)[-1].step
    kept = {0: rig.states("a")[0]}
    rig.run()
    told = rig.of("a", wire.Ended)[0].usage
    assert (told.steps_run, told.steps_resumed) == (20, 0)

    again = Rig()
    again.submit("a", asked, states=kept)
    again.run()
    assert again.outcome("a") == "succeeded"
    usage = again.of("a", wire.Ended)[0].usage
    assert 0 < usage.steps_resumed == step < 10
    assert usage.steps_run == 20 - step
    assert [one.index for one in again.of("a", wire.ImageDone)] == [0, 1]


def test_images_that_are_stored_are_not_drawn_again(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=4, num_images=3), done=(0, 2))
    rig.run()
    assert [one.index for one in rig.of("a", wire.ImageDone)] == [1]
    usage = rig.of("a", wire.Ended)[0].usage
    assert (usage.steps_run, usage.steps_resumed) == (4, 8)
    assert [(one.done, one.total) for one in rig.of("a", wire.Progress)][-1] == (12, 12)


def test_a_session_whose_images_are_all_stored_only_ends(rig: Rig) -> None:
    rig.submit("a", request(num_images=2), done=(0, 1))
    rig.run()
    assert (rig.outcome("a"), rig.loads, rig.toy.calls) == ("succeeded", [], [])


def test_an_image_that_is_denoised_is_only_decoded(rig: Rig) -> None:
    asked = request(num_inference_steps=3)
    rig.submit("a", asked)
    rig.now -= 1
    for _ in range(5):
        rig.now += 1
        rig.step()
    states = rig.states("a")
    again = Rig()
    again.submit("a", asked, states=states)
    again.run()
    assert (again.outcome("a"), again.toy.calls) == ("succeeded", [])
    assert "decoding" in [one.phase for one in again.of("a", wire.Phase)]


def test_a_checkpoint_that_cannot_be_read_costs_steps_and_a_warning(rig: Rig) -> None:
    rig.submit("a", request(num_inference_steps=4), states={0: b"torn"})
    rig.run()
    assert rig.outcome("a") == "succeeded"
    assert [one.code for one in rig.of("a", wire.Warned)] == ["checkpoint_unreadable"]
    assert rig.of("a", wire.Ended)[0].usage.steps_run == 4


def test_what_is_paused_before_it_is_prepared_ran_no_step(rig: Rig) -> None:
    rig.submit("a", request(num_images=2, num_inference_steps=5), done=(0,))
    rig.engine.pause("a", 1)
    rig.step()
    (paused,) = rig.of("a", wire.Paused)
    assert (paused.usage.steps_run, paused.usage.steps_resumed) == (0, 5)
