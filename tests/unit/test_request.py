from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint import advice, images, metadata
from mezzotint.catalog import TYPES, LoraDefaults, Model
from mezzotint.errors import STATUS, InvalidRequest
from mezzotint.request import Resolved
from mezzotint.resolving import Picture, World, resolve
from mezzotint.schema import MAX_SEED, RequestInput, parse, sources

TINY = Model(
    id="tiny",
    kind="checkpoint",
    path="/nowhere",
    state="ready",
    family="sd",
    types=TYPES,
    width=64,
    height=64,
    size_multiple=8,
    min_size=32,
    num_inference_steps=16,
    guidance_scale=3.0,
    scheduler="ddim",
    text_layers=3,
    text_width=32,
    shape="16-32/32/none",
)
PAINTER = replace(TINY, id="painter", types=("inpainting",))
OTHER = replace(TINY, id="other", text_width=64, shape="16-32/64/none")


def adapter(kind: str, name: str, **facts: Any) -> Model:
    return Model(id=name, kind=kind, path="/nowhere", state="ready", **facts)


ADAPTERS = [
    adapter("controlnet", "edges", shape=TINY.shape, control_type="canny"),
    adapter("controlnet", "wide", shape=OTHER.shape, control_type="depth"),
    adapter("lora", "ink", text_width=32),
    adapter("lora", "fog", text_width=0),
    adapter("lora", "broad", text_width=64),
]
BROKEN = Model(id="broken", kind="checkpoint", path="/nowhere", state="invalid", reason="its unet is truncated")
WORLD = World(
    models={model.id: model for model in (TINY, BROKEN, PAINTER, OTHER, *ADAPTERS)},
    default_model="tiny",
    devices=frozenset({"cpu:0"}),
    max_pixels=1 << 20,
)
SIZES = {
    "asset:small": (64, 64),
    "asset:odd": (101, 40),
    "asset:big": (2048, 2048),
    "asset:long": (404, 40),
    "asset:wide": (16_400, 64),
}


def resolved(body: object, world: World = WORLD) -> Resolved:
    sent, found = parse(body)
    pictures = {
        source.field: Picture(
            id=source.text.removeprefix("asset:"), width=SIZES[source.text][0], height=SIZES[source.text][1]
        )
        for source in sources(sent)
        if source.text in SIZES
    }
    return resolve(sent, found, pictures, world, lambda: 11)


def faults(body: object, world: World = WORLD) -> dict[str | None, str]:
    """Field to code."""
    with pytest.raises(InvalidRequest) as caught:
        resolved(body, world)
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
        "webhook": {},
        "loras": [{"name": "ikn"}, {"weight": 9, "name": "ink"}],
        "mask": "asset:small",
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
        "webhook.url": "missing_field",
        "loras[0].name": "lora_not_found",
        "loras[1].scale": "invalid_value",
        "image": "missing_field",
    }


def test_whole_numbers_that_no_worker_can_be_told_are_refused_in_metadata_with_the_way_out() -> None:
    edges = {"a": [2**64 - 1, {"b": -(2**63)}]}
    assert resolved({"metadata": edges}).request.metadata == edges
    for beyond in (2**64, -(2**63) - 1, 10**5000):
        with pytest.raises(InvalidRequest) as told:
            resolved({"metadata": {"a": [{"b": beyond}]}})
        assert [fault.field for fault in told.value.faults] == ["metadata"]
        assert "from -2^63 to 2^64-1; send a number beyond them as text" in told.value.faults[0].message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"steps": -3}, "num_inference_steps must be a whole number from 1 to 1000; got -3"),
        ({"guidance_scale": 51}, "guidance_scale must be a number from 0 to 50; got 51"),
        ({"timeout_s": 0}, "timeout_s must be a number above 0 and at most 604800; got 0"),
        ({"seed": -1}, "seed must be a whole number from 0 to 2^63-1; got -1"),
        ({"width": 65, "height": 70}, "try 64x72"),
        ({"width": 8}, "try 32x64"),
        ({"width": 2048, "height": 2048}, "at most 1048576; try 1024x1024"),
        ({"width": 1024, "height": 1032}, "at most 1048576; try 1024x1024"),
        ({"width": 65_530, "height": 65_530}, "32 or more; try 1024x1024"),
        ({"width": 65_530, "height": 65_530}, "draws at most 1048576; try 1024x1024"),
        ({"width": 65_536, "height": 32}, "at most 1048576; try 32768x32"),
        ({"hires": {"width": 4096}}, "at most 1048576; try 1024x1024"),
        ({"model": "tny"}, "the nearest is 'tiny'"),
        ({"model": "broken"}, "its unet is truncated"),
        ({"negativeprompt_": "", "negative_promt": ""}, "did you mean negative_prompt?"),
        ({"type": "img2img"}, "type 'img2img' needs image"),
        ({"model": "painter"}, "it can run: inpainting"),
        ({"scheduler": "lcm", "steps": 51}, "at most 50 steps"),
        ({"loras": [{"name": "imk"}]}, "lora 'imk' is not here; the nearest is 'ink'"),
        ({"loras": [{"name": "broad"}]}, "made for another architecture than 'tiny'; those that fit: ink, fog"),
        ({"loras": [{"scale": 1}]}, "loras[0].name is missing"),
        ({"loras": [5]}, "loras[0] must be an object; got 5"),
        (
            {"webhook": {"url": "https://a.example/", "events": []}},
            "webhook.events must be a list of 1 to 6, or left out; got []",
        ),
        ({"prompt": "\udcff"}, "prompt must be a text of whole Unicode characters"),
        ({"preview": {"at_steps": [0]}}, "preview.at_steps[0] must be a whole number from 1 to 1000; got 0"),
        ({"preview": {"at_steps": ["x"]}}, "preview.at_steps[0] must be a whole number from 1 to 1000"),
        ({"preview": {"at_steps": [1] * 65}}, "preview.at_steps must be a list of at most 64"),
        ({"loras": "ink"}, "loras must be a list"),
        ({"loras": [{"name": "ink", "strength": 1}]}, "loras[0].strength is not a field"),
        ({"controlnets": [{"model": "edges"}]}, "controlnets[0].image is missing"),
        ({"controlnets": [{"image": "asset:small"}]}, "ControlNets for 'tiny': edges"),
        ({"controlnets": [{"type": "depth", "image": "asset:small"}]}, "types: canny"),
        ({"controlnets": [{"model": "wide", "image": "asset:small"}]}, "another architecture"),
        (
            {"controlnets": [{"model": "edges", "type": "depth", "image": "asset:small"}]},
            "controlnets[0].type 'depth' is not that of 'edges', which is 'canny'; leave one out",
        ),
        ({"controlnets": [{"model": "edges", "image": "asset:small", "start": 0.9, "end": 0.1}]}, "never be at work"),
        ({"controlnets": [{"model": "edges", "image": "asset:small", "preprocessor": "cany"}]}, "does not exist"),
        ({"mask": "asset:small"}, "mask needs image"),
        ({"image": "asset:odd", "mask": "asset:small"}, "send them in one size"),
        ({"image": "asset:big"}, "at most 1048576"),
        ({"strength": 0.5}, "send image or leave it out"),
        ({"image": "asset:small", "mask_blur": 3}, "mask_blur needs mask"),
        ({"image": "asset:small", "type": "text2img"}, "takes no image"),
        ({"image": "asset:small", "mask": "asset:small", "type": "img2img"}, "takes no mask"),
        ({"prompt_syntax": "heavy"}, "'plain' or 'weighted'"),
        ({"prompt": "a\0b"}, "prompt must be a text without the character NUL (\\u0000), which can be left out"),
        ({"negativePrompt": "two\nlines\0"}, "negative_prompt must be a text without the character NUL"),
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


@pytest.mark.parametrize(
    ("hires", "size"),
    [
        ({}, (128, 96)),
        ({"scale": 1.5}, (96, 72)),
        ({"scale": 1.3}, (80, 64)),
        ({"width": 256}, (256, 192)),
        ({"height": 192}, (256, 192)),
        ({"width": 256, "height": 256}, (256, 256)),
    ],
)
def test_a_second_pass_has_the_size_that_is_told_of_it(hires: dict[str, Any], size: tuple[int, int]) -> None:
    found = resolved({"width": 64, "height": 48, "hires": hires}).request
    assert found.hires is not None
    assert (found.hires.width, found.hires.height) == size
    assert [(one.width, one.height) for one in found.passes] == [(64, 48), size]
    assert found.steps == 16 + int(16 * 0.7) == sum(one.steps for one in found.passes)
    assert (found.largest.width, found.largest.hires) == (size[0], None)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"hires": {"scale": 2, "width": 128}}, {"hires.scale": "invalid_value"}),
        ({"hires": {"width": 129}}, {"hires.width": "unsupported_size"}),
        ({"width": 1024, "height": 1024, "hires": {}}, {"hires.width": "unsupported_size"}),
        ({"hires": {"upscaler": "esrgan"}}, {"hires.upscaler": "invalid_value"}),
        ({"hires": {"size": 2}}, {"hires.size": "unknown_field"}),
        ({"image": "asset:small", "hires": {}}, {"hires": "invalid_value"}),
        ({"hires": {"strength": 2}}, {"hires.strength": "invalid_value"}),
    ],
)
def test_a_second_pass_that_cannot_be_is_refused_by_name(sent: dict[str, Any], expected: dict[str, str]) -> None:
    assert faults(sent) == expected


def test_a_second_pass_whose_strength_leaves_no_step_is_warned_of() -> None:
    (warning,) = resolved({"steps": 5, "hires": {"strength": 0.01}}).warnings
    assert (warning["code"], warning["field"]) == ("strength_too_small", "hires.strength")
    assert resolved({"steps": 5, "hires": {"strength": 0.2}}).warnings == ()


def test_a_control_map_that_would_be_made_too_large_is_refused_before_the_session() -> None:
    def sent(image: str, resolution: int) -> dict[str, Any]:
        net = {"model": "edges", "image": image, "preprocessor": "canny", "options": {"resolution": resolution}}
        return {"controlnets": [net]}

    assert resolved(sent("asset:odd", 2048)).request.controlnets[0].options["resolution"] == 2048
    assert resolved(sent("asset:long", 0)).request.controlnets
    assert faults(sent("asset:long", 2048)) == {"controlnets[0].options.resolution": "invalid_value"}
    assert "makes 20685x2048 of the picture's 404x40" in message(sent("asset:long", 2048))


def test_what_is_not_an_object_is_refused() -> None:
    assert faults([1]) == {None: "invalid_request"}


def test_a_picture_larger_than_its_format_can_hold_is_refused_before_it_is_drawn() -> None:
    def sent(name: str, **changes: Any) -> dict[str, Any]:
        return {"width": 16_384, "height": 64, "output": {"format": name}} | changes

    world = replace(WORLD, max_pixels=1 << 26)
    wide = {"image": "asset:wide", "mask": "asset:wide", "padding_mask_crop": 8, "resize_mode": "original"}
    for name, changes in (
        ("webp", {}),
        ("jpeg", {"width": 65_504}),
        ("webp", {"width": 8192, "height": 32, "hires": {"scale": 2}}),
        ("webp", {"width": 64, **wide}),
    ):
        assert faults(sent(name, **changes), world) == {"output.format": "invalid_value"}
    for name, changes in (("png", {}), ("jpeg", {}), ("webp", {"width": 16_376})):
        assert resolved(sent(name, **changes), world).request


@pytest.mark.parametrize(
    ("form", "prompt", "field"),
    [
        ("jpeg", "🏠" * 17_000, "output.format"),
        ("jpeg", "é" * 15_000, "prompt"),  # the text alone
        ("jpeg", "a" * 18_000, None),
        ("webp", "🏠" * 4_000, "prompt"),
        ("webp", "猫" * 6_000, None),
        ("png", "猫" * 11_000, "prompt"),  # of six letters each in JSON
        ("png", "a" * 20_000, None),
    ],
)
def test_prompts_that_leave_the_metadata_no_room_are_warned_of(form: str, prompt: str, field: str | None) -> None:
    texts = {"prompt": prompt[:10_000], "negative_prompt": prompt[10_000:]}
    sent = {"width": 64, "height": 64, "guidance_scale": 2.0, "output": {"format": form}} | texts
    warned = [(warning["code"], warning["field"]) for warning in resolved(sent).warnings]
    assert warned == ([] if field is None else [("metadata_too_long", field)])
    made_with = {"model": {"id": "icons", "sha256": "ab" * 32}, "versions": {"mezzotint": "0"}}
    file = images.encode(np.zeros((8, 8, 3), np.uint8), resolved(sent).request, 7, made_with, {})
    assert ("mezzotint" in metadata.texts(file), "parameters" in metadata.texts(file)) == (
        field is None,
        field != "output.format",
    )


def test_a_size_far_from_the_models_own_is_a_warning() -> None:
    assert [warning["code"] for warning in resolved({"width": 512, "height": 512}).warnings] == ["size_far_from_native"]
    assert resolved({"width": 64, "height": 96}).warnings == ()


def test_a_size_that_was_set_as_default_is_not_the_one_that_the_model_was_trained_at() -> None:
    set_one = replace(TINY, width=512, height=512)
    world = replace(WORLD, models={**WORLD.models, "tiny": set_one}, own=WORLD.models)
    found = resolved({}, world)
    assert found.request.width == 512
    assert ["the 64x64 that 'tiny' was trained at" in one["message"] for one in found.warnings] == [True]
    assert resolved({"width": 64, "height": 64}, world).warnings == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*RequestInput.model_fields, "steps", "Seed", "guidanceScale", "nope", "loras"]) | st.text()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"controlnets": [{"start": 0.5, "end": 0.5}]}, "controlnets[0].start"),
        ({"controlnets": [{"end": 0.2}], "steps": 4}, "controlnets[0].start"),
        ({"controlnets": [{"end": 0.25}], "steps": 4}, None),
        ({"controlnets": [{"end": 0.2}], "steps": 4, "scheduler": "heun"}, None),
        ({"controlnets": [{"end": 0.2}], "steps": 4, "hires": {"steps": 20}}, None),
        ({"preview": {"at_steps": [1, 7]}, "steps": 8}, None),
        ({"preview": {"at_steps": [1, 8]}, "steps": 8}, "preview.at_steps[1]"),
        ({"preview": {"at_steps": [8]}, "steps": 8, "hires": {}}, None),
        ({"preview": {"every_steps": 7}, "steps": 8}, None),
        ({"preview": {"every_steps": 8}, "steps": 8}, "preview.every_steps"),
        ({"preview": {"every_steps": 8}, "steps": 8, "hires": {}}, None),
        ({"preview": {"every_steps": 1}, "steps": 1}, None),
        ({"resize_mode": "crop"}, "resize_mode"),
        ({"output": {"quality": 90}}, "output.quality"),
        ({"resize_mode": "stretch", "output": {"quality": 95}}, None),
    ],
    ids=str,
)
def test_what_changes_nothing_is_warned_of(body: dict[str, Any], field: str | None) -> None:
    nets = [{"model": "edges", "image": "asset:small"} | one for one in body.get("controlnets", [])]
    told = resolved(body | {"controlnets": nets}).warnings
    assert [(one["code"], one["field"]) for one in told] == ([] if field is None else [("no_effect", field)])


def test_what_a_session_was_asked_may_be_sent_again_without_a_warning() -> None:
    request = msgspec.json.decode(msgspec.json.encode(resolved({"prompt": "x"}).request))
    assert resolved(request).warnings == ()


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


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"image": "asset:small"}, "img2img"),
        ({"image": "asset:small", "mask": "asset:small"}, "inpainting"),
        ({"controlnets": [{"model": "edges", "image": "asset:small"}]}, "controlnet"),
        ({"loras": [{"name": "ink"}]}, "lora"),
        ({"loras": [{"name": "ink"}], "image": "asset:small"}, "img2img"),
        ({"LoRAs": [{"Name": "ink"}], "ControlNets": [{"Type": "canny", "Image": "asset:small"}]}, "controlnet"),
        ({"type": "lora", "loras": [{"name": "ink"}], "image": "asset:small"}, "lora"),
        ({"model": "painter", "image": "asset:small", "mask": "asset:small"}, "inpainting"),
    ],
    ids=str,
)
def test_the_type_follows_from_the_fields(fields: dict[str, Any], kind: str) -> None:
    assert resolved(fields).request.type == kind


def test_size_and_strength_follow_the_image() -> None:
    request = resolved({"image": "asset:odd", "steps": 10}).request
    assert (request.width, request.height, request.strength, request.steps) == (104, 40, 0.8, 8)
    assert (request.image, request.mask) == ("asset:odd", None)
    wide = resolved({"image": "asset:odd", "width": 64}).request
    assert (wide.width, wide.height) == (64, 40)


def test_a_strength_that_leaves_no_step_is_warned_of_and_one_is_run() -> None:
    found = resolved({"image": "asset:small", "steps": 4, "strength": 0.1})
    assert found.request.steps == 1
    assert [warning["code"] for warning in found.warnings] == ["strength_too_small"]


def test_a_controlnet_is_found_by_its_type_and_takes_its_preprocessors_defaults() -> None:
    body = {"controlnets": [{"type": "canny", "image": "asset:odd", "preprocessor": "canny", "weight": 1}]}
    assert faults(body) == {"controlnets[0].weight": "unknown_field"}
    body = {"controlnets": [{"type": "canny", "image": "asset:odd", "preprocessor": "canny", "conditioningScale": 0.5}]}
    (use,) = resolved(body).request.controlnets
    assert (use.model, use.image, use.scale) == ("edges", "asset:odd", 0.5)
    assert use.options == {"low_threshold": 100, "high_threshold": 200}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({}, (16, 3.0, "ddim")),
        ({"loras": [{"name": "ink"}]}, (16, 3.0, "ddim")),
        ({"loras": [{"name": "swift"}]}, (4, 1.0, "ddim")),
        ({"loras": [{"name": "ink"}, {"name": "swift"}, {"name": "other-sampler"}]}, (4, 1.0, "ddim")),
        ({"loras": [{"name": "swift", "scale": 0}]}, (16, 3.0, "ddim")),
        ({"loras": [{"name": "swift"}], "num_inference_steps": 6, "guidance_scale": 2.0}, (6, 2.0, "ddim")),
        ({"loras": [{"name": "other-sampler"}]}, (16, 3.0, "lcm")),
        ({"loras": [{"name": "other-sampler"}], "scheduler": "euler"}, (16, 3.0, "euler")),
    ],
)
def test_what_a_lora_is_made_for_comes_before_what_its_model_says_and_after_the_request(
    sent: dict[str, Any], expected: tuple[int, float, str]
) -> None:
    made = {
        "swift": LoraDefaults(num_inference_steps=4, guidance_scale=1.0),
        "other-sampler": LoraDefaults(scheduler="lcm"),
    }
    more = {name: adapter("lora", name, text_width=32, lora_defaults=defaults) for name, defaults in made.items()}
    world = replace(WORLD, models={**WORLD.models, **more})
    request = resolved({"prompt": "x"} | sent, world).request
    assert (request.num_inference_steps, request.guidance_scale, request.scheduler) == expected
    notes = [one["code"] for one in advice.recommendations(request, TINY, world.models, frozenset({"tiny"}))]
    contradicted = len(sent) > 1 or {"name": "other-sampler"} in sent.get("loras", [])[1:]
    assert ("use_lora_defaults" in notes) == contradicted


NAMED = replace(
    WORLD,
    models={
        **WORLD.models,
        "neg": adapter("embedding", "neg", text_width=32, tokens=2, trained_as="emb_params"),
        "toy": adapter("embedding", "toy", text_width=32, tokens=1, trained_as="<cat>"),
        "large": adapter("embedding", "large", text_width=64, tokens=1),
        "torn": Model(id="torn", kind="embedding", path="/nowhere", state="invalid", reason="it is truncated"),
    },
)


@pytest.mark.parametrize(
    ("sent", "used"),
    [
        ({"prompt": "a dog"}, ()),
        ({"prompt": "a <cat>", "negative_prompt": "NEG, toy"}, ("toy", "neg")),
        ({"prompt": "a toy", "negative_prompt": "neg", "embeddings": ["neg"]}, ("neg",)),
        ({"prompt": "a toy, neg", "embeddings": []}, ()),
        ({"prompt": "a toy, large", "model": "other"}, ("large",)),
    ],
    ids=str,
)
def test_embeddings_are_those_that_the_prompts_name_and_the_request_allows(
    sent: dict[str, Any], used: tuple[str, ...]
) -> None:
    assert resolved(sent, NAMED).request.embeddings == used


def test_an_embedding_that_cannot_be_used_is_refused_where_it_is_asked_for_and_warned_of_where_it_is_named() -> None:
    body = {"embeddings": ["large", "torn", "ne", "ink"]}
    assert faults(body, NAMED) == {
        "embeddings[0]": "model_mismatch",
        "embeddings[1]": "model_invalid",
        "embeddings[2]": "embedding_not_found",
        "embeddings[3]": "embedding_not_found",
    }
    found = resolved({"prompt": "large neg", "negative_prompt": "torn"}, NAMED)
    assert [(one["code"], one["field"]) for one in found.warnings] == [
        ("embedding_not_used", "prompt"),
        ("embedding_not_used", "negative_prompt"),
    ]
    assert "'torn' is read as words: it is truncated" in found.warnings[1]["message"]
    found = resolved({"prompt": "a toy", "embeddings": ["toy", "neg"]}, NAMED)
    assert [(one["code"], one["field"]) for one in found.warnings] == [("no_effect", "embeddings[1]")]


def test_more_embeddings_than_a_request_may_use_are_refused() -> None:
    many = {f"e{i}": adapter("embedding", f"e{i}", text_width=32, tokens=1) for i in range(17)}
    world = replace(WORLD, models={**WORLD.models, **many})
    assert faults({"prompt": " ".join(many)}, world) == {"embeddings": "invalid_value"}
    assert len(resolved({"prompt": " ".join(list(many)[:16])}, world).request.embeddings) == 16
    assert faults({"embeddings": ["x"] * 17}) == {"embeddings": "invalid_value"}
