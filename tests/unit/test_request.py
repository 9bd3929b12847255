import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.catalog import Model
from mezzotint.errors import STATUS, InvalidRequest
from mezzotint.request import MAX_SEED, NOT_YET, RequestInput, Resolved, World, resolve

TINY = Model(
    id="tiny",
    kind="checkpoint",
    path="/nowhere",
    state="ready",
    family="sd",
    types=("text2img",),
    width=64,
    height=64,
    size_multiple=8,
    min_size=32,
    num_inference_steps=16,
    guidance_scale=3.0,
    scheduler="ddim",
    text_layers=3,
)
BROKEN = Model(id="broken", kind="checkpoint", path="/nowhere", state="invalid", reason="its unet is truncated")
WORLD = World(
    models={"tiny": TINY, "broken": BROKEN}, default_model="tiny", devices=frozenset({"cpu:0"}), max_pixels=1 << 20
)


def resolved(body: object) -> Resolved:
    return resolve(body, WORLD, lambda: 11)


def faults(body: object) -> dict[str | None, str]:
    """Field to code."""
    with pytest.raises(InvalidRequest) as caught:
        resolved(body)
    assert {fault.code for fault in caught.value.faults} <= STATUS.keys()
    return {fault.field: fault.code for fault in caught.value.faults}


def message(body: object) -> str:
    with pytest.raises(InvalidRequest) as caught:
        resolved(body)
    return caught.value.message


def test_an_empty_request_takes_every_default_from_the_model() -> None:
    request = resolved({}).request
    assert (request.model, request.width, request.num_inference_steps, request.guidance_scale) == ("tiny", 64, 16, 3.0)
    assert (request.scheduler, request.type, request.seed) == ("ddim", "text2img", 11)


@pytest.mark.parametrize(
    "body",
    [
        {"num_inference_steps": 5, "guidance_scale": 2.5, "output": {"embed_metadata": False}},
        {"numInferenceSteps": 5, "guidanceScale": 2.5, "output": {"embedMetadata": False}},
        {"NumInferenceSteps": 5, "GuidanceScale": 2.5, "Output": {"EmbedMetadata": False}},
        {"steps": 5, "cfg_scale": 2.5, "output": {"EMBED_METADATA": False}},
        {"Steps": 5, "CfgScale": 2.5, "OUTPUT": {"embedMetadata": False}},
    ],
)
def test_a_field_is_known_by_every_spelling(body: dict[str, object]) -> None:
    request = resolved(body).request
    assert (request.num_inference_steps, request.guidance_scale, request.output.embed_metadata) == (5, 2.5, False)


def test_a_users_own_dictionary_is_returned_as_sent() -> None:
    metadata = {"UserId": 1, "user_id": {"guidanceScale": [None, "x"]}}
    assert resolved({"Metadata": metadata}).request.metadata == metadata


def test_all_faults_are_told_at_once() -> None:
    body = {
        "prompt": 3,
        "Steps": -3,
        "guidanceScale": 99.5,
        "widht": 3,
        "output": {"format": "gif", "qual": 1},
        "width": 65,
        "height": 8,
        "scheduler": "foo",
        "device": "cuda:9",
        "clip_skip": 3,
        "metadata": {"x": "y" * 20_000},
        "image": "asset:1",
    }
    assert faults(body) == {
        "prompt": "invalid_value",
        "num_inference_steps": "invalid_value",
        "guidance_scale": "invalid_value",
        "widht": "unknown_field",
        "output.format": "invalid_value",
        "output.qual": "unknown_field",
        "width": "unsupported_size",
        "height": "unsupported_size",
        "scheduler": "invalid_value",
        "device": "device_not_found",
        "clip_skip": "invalid_value",
        "metadata": "invalid_value",
        "image": "unsupported_field",
    }


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"steps": -3}, "num_inference_steps must be a whole number from 1 to 1000; got -3"),
        ({"guidance_scale": 51}, "guidance_scale must be a number from 0 to 50; got 51"),
        ({"timeout_s": 0}, "timeout_s must be a number above 0 and at most 604800; got 0"),
        ({"seed": -1}, "seed must be a whole number from 0 to 2^63-1; got -1"),
        ({"width": 65, "height": 70}, "try 64x72"),
        ({"width": 8}, "try 32x64"),
        ({"width": 2048, "height": 2048}, "at most 1048576"),
        ({"model": "tny"}, "the nearest is 'tiny'"),
        ({"model": "broken"}, "its unet is truncated"),
        ({"negativeprompt_": "", "negative_promt": ""}, "did you mean negative_prompt?"),
        ({"type": "img2img"}, "it can run: text2img"),
        ({"prompt_syntax": "heavy"}, "'plain' or 'weighted'"),
    ],
)
def test_a_fault_names_the_rule_and_the_way_out(body: dict[str, object], words: str) -> None:
    assert words in message(body)


def test_one_field_in_two_spellings_is_refused() -> None:
    assert faults({"steps": 3, "numInferenceSteps": 4}) == {"num_inference_steps": "duplicate_field"}


def test_seeds_of_all_images_must_fit() -> None:
    assert resolved({"seed": MAX_SEED}).request.seed == MAX_SEED
    assert faults({"seed": MAX_SEED, "num_images": 2}) == {"seed": "seed_overflow"}


def test_options_that_the_scheduler_cannot_do_are_refused_by_name() -> None:
    body = {"scheduler": "euler", "SchedulerOptions": {"KarrasSigmas": True, "timestepSpacing": "trailing"}}
    assert resolved(body).request.scheduler_options == {"karras_sigmas": True, "timestep_spacing": "trailing"}
    assert faults({"scheduler": "ddim", "scheduler_options": {"karras_sigmas": True, "rho": 7}}) == {
        "scheduler_options.karras_sigmas": "unsupported_field",
        "scheduler_options.rho": "unknown_field",
    }
    both = {"karras_sigmas": True, "beta_sigmas": True}
    assert faults({"scheduler": "euler", "scheduler_options": both}) == {"scheduler_options": "invalid_value"}
    assert "it can: timestep_spacing" in message({"scheduler_options": {"solver_order": 2}})


@pytest.mark.parametrize("value", [True, "5", 5.0, None, [5]])
def test_a_whole_number_is_not_made_of_something_else(value: object) -> None:
    if value is None:
        assert resolved({"steps": None}).request.num_inference_steps == 16
    else:
        assert faults({"steps": value}) == {"num_inference_steps": "invalid_value"}


@pytest.mark.parametrize("name", sorted(NOT_YET))
def test_a_field_that_is_not_supported_yet_is_refused_by_name(name: str) -> None:
    assert faults({name: 1}) == {name: "unsupported_field"}


def test_what_is_not_an_object_is_refused() -> None:
    assert faults([1]) == {None: "invalid_request"}


def test_a_size_far_from_the_models_own_is_a_warning() -> None:
    assert [warning["code"] for warning in resolved({"width": 512, "height": 512}).warnings] == ["size_far_from_native"]
    assert resolved({"width": 64, "height": 96}).warnings == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*RequestInput.model_fields, "steps", "Seed", "guidanceScale", "nope", "loras"]) | st.text()


@given(st.dictionaries(KEYS, JSON, max_size=6))
def test_any_json_is_resolved_or_refused_with_faults(body: dict[str, object]) -> None:
    found: InvalidRequest | None = None
    try:
        request = resolved(body).request
    except InvalidRequest as error:
        found = error
    if found is None:
        assert 0 <= request.seed <= MAX_SEED
        assert request.width % 8 == 0
    else:
        assert all(fault.message and fault.code in STATUS for fault in found.faults)
