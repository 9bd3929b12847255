"""What the foreign dialects read: any JSON at all becomes a request or faults that name fields, never another error."""

import contextlib
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint import a1111_names
from mezzotint.api import (
    a1111_answer,
    a1111_fields,
    a1111_models,
    a1111_options,
    a1111_prompt,
    foreign,
    openai_errors,
    openai_fields,
    openai_forms,
)
from mezzotint.catalog import Model
from mezzotint.errors import STATUS, ErrorInfo, Fault, InvalidRequest, MezzotintError
from mezzotint.facts import LoraDefaults
from mezzotint.families.table import SCHEDULER_OPTIONS, SCHEDULERS
from mezzotint.resolving import own_steps
from mezzotint.schema import parse
from mezzotint.session import ImageRecord, State
from tests.requests import request, session

API = Path(a1111_fields.__file__).parent
MODEL = Model(id="tiny", kind="checkpoint", path="/m/tiny", state="ready", types=("text2img",), num_inference_steps=20)
LORA = Model(id="Ink", kind="lora", path="/m/Ink.safetensors", state="ready")
MODELS = {"tiny": MODEL, "Ink": LORA}

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["<lora:Ink:0.5>", "512x512", "Euler a Karras", "auto", "tiny", "[a:b:0.5]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def names(*files: str) -> list[str]:
    """Every word in quotes that could be a field's name."""
    text = "".join((API / file).read_text(encoding="utf-8") for file in files)
    return sorted(set(re.findall(r'"([A-Za-z_]{2,40})"', text)))


A1111 = names("a1111_fields.py", "a1111_options.py")
UNITS = st.dictionaries(st.sampled_from(names("a1111_controlnet.py")), VALUES, max_size=6)
CALLS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(A1111, VALUES)
    | {
        "alwayson_scripts": VALUES
        | st.fixed_dictionaries({"controlnet": st.fixed_dictionaries({"args": st.lists(UNITS)})})
    },
)


@settings(max_examples=120, deadline=None)
@given(CALLS, st.booleans())
def test_any_call_of_automatic1111_is_read(sent: dict[str, Any], has_image: bool) -> None:
    asked = a1111_fields.read(sent, MODELS, has_image=has_image)
    assert all(fault.field and fault.message for fault in asked.faults)
    if not asked.faults:
        assert [fault.code for fault in parse(asked.body)[1] if fault.code == "unknown_field"] == []
    settings_read = a1111_options.read(asked.settings, MODELS, {"tiny": None})
    assert all(fault.field for fault in settings_read.faults)


@settings(max_examples=120, deadline=None)
@given(
    st.dictionaries(st.sampled_from(names("openai_fields.py")) | st.text(max_size=8), VALUES, max_size=8), st.booleans()
)
def test_any_call_of_openai_is_read(sent: dict[str, Any], is_edit: bool) -> None:
    with contextlib.suppress(InvalidRequest):
        parse(openai_fields.translate(foreign.without_nulls(sent), 20, is_edit=is_edit).body)


@given(st.lists(st.tuples(st.text(st.sampled_from("ab[]._"), max_size=12), st.text(max_size=8)), max_size=6))
def test_any_names_of_a_form_are_read(texts: list[tuple[str, str]]) -> None:
    faults: list[Any] = []
    openai_forms.nested(texts, faults)
    assert all(fault.field is not None for fault in faults)


def test_a_form_spells_what_is_nested() -> None:
    texts = [
        ("loras[][name]", "a"), ("loras[][scale]", "0.5"), ("loras[][name]", "b"), ("loras[][scale]", "1"),
        ("xs[]", "1"), ("xs[]", "2"), ("output[format]", "png"), ("seed", "7"), ("model", "7"),
        ("stream", "true"), ("own[k]", "v"), ("user", ""), ("width", ""),
        ("preview[at_steps][]", "1"), ("preview[at_steps][]", "2"), ("controlnets[][options][low]", "0.5"),
        ("metadata", '{"k": "v", "n": null}'), ("c[][options]", '{"low": 1}'),
    ]  # fmt: skip
    faults: list[Any] = []
    assert openai_forms.nested(texts, faults) == {
        "loras": [{"name": "a", "scale": 0.5}, {"name": "b", "scale": 1}],
        "xs": [1, 2],
        "metadata": {"k": "v", "n": None},
        "output": {"format": "png"},
        "seed": 7,
        "model": "7",
        "stream": True,
        "own": {"k": "v"},
        "user": "",
        "width": None,
        "preview": {"at_steps": [1, 2]},
        "controlnets": [{"options": {"low": 0.5}}],
        "c": [{"options": {"low": 1}}],
    }
    assert faults == []


@pytest.mark.parametrize("names", [("xs[]", "xs[][a]"), ("xs[][a][]",), ("xs", "xs[]"), ("xs[][a]", "xs[][a][b]")])
def test_a_form_that_spells_one_thing_in_two_ways_is_refused(names: tuple[str, ...]) -> None:
    faults: list[Any] = []
    openai_forms.nested([(name, "1") for name in names], faults)
    assert [fault.field for fault in faults] == ["xs"]


def test_nulls_are_not_sent_at_any_level_but_in_metadata() -> None:
    sent = {"a": None, "hires": {"scale": None, "width": 64}, "loras": [{"name": "x", "scale": None}]}
    assert foreign.without_nulls(sent | {"Metadata": {"k": None}}) == {
        "hires": {"width": 64},
        "loras": [{"name": "x"}],
        "Metadata": {"k": None},
    }


def test_a_form_takes_any_text_and_any_name_that_nobody_knows() -> None:
    faults: list[Any] = []
    texts = [("prompt", "why [object Object]?"), ("foo[", "1"), ("x" * 99, "2"), ("loras[][negative_prompt]", "a")]
    fields = openai_forms.nested(texts, faults)
    assert (faults, fields["prompt"], fields["foo["], fields["x" * 64]) == ([], "why [object Object]?", "1", "2")
    openai_forms.nested([("loras[", "1"), ("output", "[object Object]")], faults)
    assert [fault.field for fault in faults] == ["loras[", "output"]


@pytest.mark.parametrize(
    ("quality", "own", "steps"),
    [("low", 20, 10), ("xhigh", 20, 40), ("max", 20, 60), ("auto", 20, None), ("hd", 20, 30), ("max", 4, None)],
)
def test_quality_is_a_share_of_the_models_own_steps(quality: str, own: int, steps: int | None) -> None:
    asked = openai_fields.translate({"prompt": "x", "quality": quality}, own)
    assert asked.body.get("num_inference_steps") == steps
    asked = openai_fields.translate({"prompt": "x", "quality": quality, "Steps": 3}, own)
    assert asked.body["Steps"] == 3
    assert "num_inference_steps" not in asked.body


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"n": 2, "num_images": 3}, "n"),
        ({"n": 2, "batchSize": 3}, "n"),
        ({"size": "64x64", "Width": 128}, "size"),
        ({"output_format": "webp", "output": {"format": "jpeg"}}, "output_format"),
        ({"output_format": "webp", "output_compression": 5, "output": {"quality": 6}}, "output_compression"),
        ({"stream": True, "partial_images": 2, "preview": {"every_steps": 1}}, "partial_images"),
    ],
)
def test_what_is_said_in_openais_words_and_in_ours_is_refused(sent: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        openai_fields.translate({"prompt": "x"} | sent, 20)
    assert [(fault.field, fault.code) for fault in caught.value.faults] == [(field, "duplicate_field")]
    openai_fields.translate({"prompt": "x", "size": "auto", "width": 64, "partial_images": 1, "preview": {}}, 20)


# what the clients know: code -> status. A failed session is 422, which they do not repeat.
OPENAI: dict[str, int] = {
    "invalid_value": 400, "invalid_image": 400, "missing_required_parameter": 400, "unsupported_parameter": 400,
    "model_not_found": 404, "lora_not_found": 404, "embedding_not_found": 404, "controlnet_not_found": 404,
    "unknown_url": 404,
    "session_not_found": 404, "image_not_found": 404, "invalid_api_key": 401, "forbidden": 403, "cross_site": 403,
    "malformed_host": 400, "bad_host": 421, "body_too_large": 413, "body_too_slow": 408, "method_not_allowed": 405,
    "unsupported_media_type": 415, "range_not_satisfiable": 416, "out_of_memory": 422, "timeout": 422, "expired": 422,
    "cancelled": 422, "headers_too_large": 431,
    "idempotency_mismatch": 422, "queue_full": 429, "quota_exceeded": 429, "not_ready": 503, "storage_full": 507,
    "worker_lost": 500, "internal": 500,
}  # fmt: skip
NATIVE = {"batch_not_found", "session_ended", "session_active", "batch_ended", "illegal_state", "model_in_use"}


@pytest.mark.parametrize("code", sorted(STATUS.keys() - NATIVE))
def test_every_code_is_one_that_openais_clients_know(code: str) -> None:
    fault = Fault(field="num_images", code=code, message="x")
    for error in (InvalidRequest([fault]), MezzotintError("x", code=code)):
        told, status = openai_errors.translate(error)
        assert (status or STATUS[told.code]) == OPENAI[told.code]
    assert openai_errors.translate(InvalidRequest([fault]))[0].field == "n"


@pytest.mark.parametrize(("own", "shown"), [(4, [1, 3]), (12, [6, 12])])
def test_partial_images_are_spread_over_the_steps_that_run(own: int, shown: list[int]) -> None:
    asked = openai_fields.translate({"prompt": "x", "quality": "high", "stream": True, "partial_images": 2}, own)
    assert asked.body["preview"]["at_steps"] == shown


def test_partial_images_are_spread_over_both_passes_of_hires() -> None:
    sent = {"prompt": "x", "stream": True, "partial_images": 3, "steps": 20, "Hires": {"Steps": 10, "strength": 0.4}}
    assert openai_fields.translate(sent, 12).body["preview"]["at_steps"] == [6, 12, 18]


@pytest.mark.parametrize(("scale", "steps"), [(1.0, 4), (0.0, 20)])
def test_a_lora_at_work_brings_its_own_steps(scale: float, steps: int) -> None:
    models = MODELS | {"Ink": replace(LORA, lora_defaults=LoraDefaults(num_inference_steps=4))}
    sent, _ = parse({"prompt": "x", "quality": "high", "Loras": [{"name": "Ink", "scale": scale}]})
    assert own_steps(sent, MODEL, models) == steps


def test_every_sampler_here_has_a_name_there_and_comes_back() -> None:
    assert {one.scheduler for one in a1111_names.SAMPLERS} == set(SCHEDULERS)
    for sampler in a1111_names.SAMPLERS:
        for schedule in a1111_names.SCHEDULES:
            try:
                found, options = a1111_names.find(sampler.name.upper(), schedule.label)
            except a1111_names.Unfit:
                assert not schedule.options.keys() <= SCHEDULER_OPTIONS[sampler.scheduler]
                continue
            assert a1111_names.find(*a1111_names.of(found.scheduler, options))[1] == options
    assert a1111_names.find("DPM++ 2M Karras", "automatic")[1] == {"karras_sigmas": True}
    with pytest.raises(a1111_names.UnknownName):
        a1111_names.find("DPM fast", None)


@pytest.mark.parametrize("own", ["trailing", "leading", "linspace"])
def test_a_text_that_names_no_schedule_is_read_as_the_models_own_spacing(own: str) -> None:
    for scheduler in sorted(SCHEDULERS):
        sampler, options = a1111_names.find(*a1111_names.of(scheduler, {}, own))
        options.pop("algorithm_type", None)
        assert (sampler.scheduler, options) in ((scheduler, {}), (scheduler, {"timestep_spacing": own}))


@pytest.mark.parametrize(("run", "strength", "asked"), [(29, 0.29, 101), (21, 0.35, 60), (20, 1.0, 20)])
def test_as_many_steps_of_a_second_pass_run_as_were_asked_for(run: int, strength: float, asked: int) -> None:
    assert a1111_names.asked_steps(run, strength) == asked
    assert request(strength=strength, num_inference_steps=asked).steps == run
    assert a1111_names.cut(run, strength) == ""
    assert a1111_names.asked_steps(run, 1e-320) == 1000


def test_steps_of_a_second_pass_that_cannot_all_run_are_warned_of() -> None:
    sent = {"enable_hr": True, "denoising_strength": 0.1, "hr_second_pass_steps": 150}
    asked = a1111_fields.read(sent, MODELS, has_image=False)
    assert asked.body["hires"]["steps"] == 1000
    assert [(one["code"], one["field"]) for one in asked.warnings] == [("steps_cut", "hr_second_pass_steps")]
    assert "150" in asked.warnings[0]["message"]


def test_an_answer_of_automatic1111_with_fewer_pictures_says_why() -> None:
    done = ImageRecord(index=0, seed=7, width=8, height=8, format="png", bytes=3, sha256="")
    late = ErrorInfo(code="timeout", message="ran longer than 6 s")
    failed = session(state=State.FAILED, error=late, images=(done,), request=request(num_images=2))
    asked = a1111_fields.read({"prompt": "x"}, MODELS, has_image=False)
    told = json.loads(a1111_answer.info(failed, asked, MODEL, None, {}, ("", "")))["warnings"]
    why = "session ses_1 failed: ran longer than 6 s; 1 of its 2 pictures are done"
    assert told == [{"code": "timeout", "message": why, "field": None}]


def test_a_clip_skip_of_none_is_more_than_the_one_in_the_options() -> None:
    kept, given = (a1111_options.read({"CLIP_stop_at_last_layers": layers}, MODELS, {}) for layers in (2, 1))
    assert (kept.body | given.body)["clip_skip"] is None


@pytest.mark.parametrize("args", [{"0": {"module": "canny"}}, "canny", 1])
def test_controlnet_units_that_are_no_list_are_refused_by_name(args: Any) -> None:
    asked = a1111_fields.read({"alwayson_scripts": {"ControlNet": {"args": args}}}, MODELS, has_image=False)
    assert [fault.field for fault in asked.faults] == ["alwayson_scripts.ControlNet.args"]


def test_unknown_fields_of_a_controlnet_unit_are_named() -> None:
    units = [{"enabled": False, "x": 1}, {"foo": 1, "bar": None, "model": "m", "image": {"image": "", "y": 1}}]
    sent = {"alwayson_scripts": {"controlnet": {"args": units, "z": 1}}}
    assert a1111_fields.read(sent, MODELS, has_image=False).ignored == (
        "alwayson_scripts.controlnet.z",
        "alwayson_scripts.controlnet.args[1].foo",
        "alwayson_scripts.controlnet.args[1].image.y",
    )


def units(*sent: Any) -> a1111_fields.Asked:
    return a1111_fields.read({"alwayson_scripts": {"controlnet": {"args": list(sent)}}}, MODELS, has_image=False)


@pytest.mark.parametrize(("value", "is_fault"), [("9", True), ([9], True), (1e999, True), (-5, False), (7.5, False)])
def test_a_threshold_that_is_no_number_is_refused(value: Any, is_fault: bool) -> None:
    for module in ("canny", "none"):
        asked = units({"module": module, "model": "m", "threshold_b": value})
        assert [fault.field for fault in asked.faults] == is_fault * ["alwayson_scripts.controlnet.args[0].threshold_b"]


def test_an_empty_image_of_a_unit_is_not_sent_and_zero_is_off() -> None:
    asked = units({"enabled": 0, "x": 1}, {"model": "m", "image": "", "input_image": "aGk="})
    assert ([unit.image for unit in asked.units], asked.faults, asked.ignored) == (["aGk="], (), ())


def test_tags_are_taken_out_and_added_up() -> None:
    read = a1111_prompt.read("a <lora:ink:0.5>b<lyco:Ink:te=0.25:unet=0.25>", "prompt", MODELS, applies=True)
    assert (read.text, read.loras, read.faults) == ("a b", {"Ink": 0.75}, ())
    read = a1111_prompt.read("<lora:Ink:0.5:0.6>[a|b]", "prompt", MODELS, applies=True)
    assert [fault.code for fault in read.faults] == ["invalid_value"]
    assert [warning["code"] for warning in read.warnings] == ["prompt_editing"]
    read = a1111_prompt.read("<lora:Ink:1>", "negative_prompt", MODELS, applies=True)
    assert (read.text, read.loras, [one["code"] for one in read.warnings]) == ("", {}, ["lora_in_negative_prompt"])


@pytest.mark.parametrize("piece", [":", "[", "[:", "[a:b:", "|", "<lora:x:", "<lora:Ink:1>", " AND"])
def test_a_megabyte_of_any_prompt_is_read_at_once(piece: str) -> None:
    text = "[" + piece * ((1 << 20) // len(piece))
    began = time.perf_counter()
    asked = a1111_fields.read({"prompt": text, "negative_prompt": text}, MODELS, has_image=False)
    a1111_prompt.read(text, "prompt", {}, applies=True)
    assert time.perf_counter() - began < 8, "a bound, far under the minutes that a quadratic reading takes"
    assert [fault.field for fault in (*asked.faults, *parse(asked.body)[1])] == ["prompt", "negative_prompt"]


def test_editing_is_found_beside_what_only_looks_like_it() -> None:
    read = a1111_prompt.read("[a] [b:0.5] [c:d:0.5] x AND y [e:f:g] [h|i] [j", "prompt", MODELS, applies=True)
    (warning,) = read.warnings
    assert warning["message"].endswith("stay as they are: [c:d:0.5], AND, [h|i]")


def test_a_lora_goes_by_the_name_it_was_trained_under_where_no_file_and_no_other_has_it() -> None:
    trained = {"Ink": "charcoal", "a": "ink", "b": "Brush", "c": "brush", "d": "brush"}
    models = {name: replace(LORA, id=name, trained_as=alias) for name, alias in trained.items()}
    tags = ("charcoal", "CHARCOAL", "ink", "Brush", "brush")
    read = [a1111_prompt.read(f"<lora:{tag}:1>", "prompt", models, applies=True) for tag in tags]
    assert [list(one.loras) for one in read] == [["Ink"], ["Ink"], ["Ink"], ["b"], []]
    (fault,) = read[-1].faults
    assert a1111_models.named_loras("", MODELS) == []
    assert (fault.code, "c, d" in fault.message) == ("invalid_value", True)
    assert [one["alias"] for one in a1111_models.loras(models)] == ["charcoal", "a", "Brush", "c", "d"]
