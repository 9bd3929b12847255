"""Every field of the contract, in every spelling, there and back."""

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mezzotint
from mezzotint.fieldnames import CASES, Case, fold, spell, spelt
from mezzotint.schema import (
    ControlNetInput,
    HiresInput,
    LoraInput,
    OutputInput,
    PreviewInput,
    RequestInput,
    ResizeMode,
    Scheduler,
    SchedulerOptionsInput,
    Upscaler,
    VariationInput,
    WebhookEvent,
    WebhookInput,
    parse,
)
from tests.unit.test_request import resolved

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SWITCH = st.booleans()
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | SWITCH | st.integers(-(2**60), 2**60) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of these fields, or none."""
    return st.fixed_dictionaries({}, optional=fields)


OPTIONS = {
    **dict.fromkeys(("karras_sigmas", "exponential_sigmas", "beta_sigmas"), SWITCH),
    "timestep_spacing": st.sampled_from(["linspace", "leading", "trailing"]),
    "algorithm_type": st.sampled_from(["dpmsolver++", "sde-dpmsolver++"]),
    "solver_order": st.integers(1, 3),
}
OUTPUT = {"format": st.sampled_from(["png", "jpeg", "webp"]), "quality": st.integers(1, 100), "embed_metadata": SWITCH}
CONTROLNET = {
    **dict.fromkeys(("model", "type", "image", "preprocessor"), TEXT),
    "options": st.dictionaries(TEXT, JSON, max_size=2),
    "scale": st.floats(0, 4),
    "start": st.floats(0, 1),
    "end": st.floats(0, 1),
    "resize_mode": st.sampled_from(get_args(ResizeMode)),
    "control_mode": st.sampled_from(["balanced", "prompt", "control"]),
}
LORA = {"name": TEXT, "scale": st.floats(-4, 4)}
WEBHOOK = {"url": TEXT, "events": st.lists(st.sampled_from(get_args(WebhookEvent)), min_size=1, max_size=6)}
VARIATION = {"seed": st.integers(0, 2**63 - 1), "strength": st.floats(0, 1)}
HIRES = {
    "scale": st.floats(1, 8),
    **dict.fromkeys(("width", "height"), st.integers(1, 65_536)),
    "upscaler": st.sampled_from(get_args(Upscaler)),
    "strength": st.floats(0, 1),
    "steps": st.integers(1, 1000),
}
PREVIEW = {
    "every_steps": st.integers(0, 1000),
    "at_steps": st.lists(st.integers(1, 1000), max_size=8),
    "max_px": st.integers(16, 8192),
}
FIELDS = {
    **dict.fromkeys(("model", "image", "mask", "device"), TEXT),
    **dict.fromkeys(("prompt", "negative_prompt"), TEXT.filter(lambda text: "\0" not in text)),
    "type": st.sampled_from(["text2img", "img2img", "inpainting", "controlnet", "lora"]),
    "prompt_syntax": st.sampled_from(["plain", "weighted"]),
    **dict.fromkeys(("width", "height"), st.integers(1, 65_536)),
    "num_inference_steps": st.integers(1, 1000),
    "guidance_scale": st.floats(0, 50),
    "scheduler": st.sampled_from(get_args(Scheduler)),
    "scheduler_options": some(**OPTIONS),
    "eta": st.floats(0, 1),
    "seed": st.integers(0, 2**63 - 1),
    "variation": st.fixed_dictionaries(VARIATION),
    "hires": some(**HIRES),
    "webhook": st.fixed_dictionaries(WEBHOOK),
    "preview": st.fixed_dictionaries(PREVIEW),
    "num_images": st.integers(1, 64),
    "clip_skip": st.integers(1, 64),
    "strength": st.floats(0, 1),
    "mask_blur": st.integers(0, 256),
    "mask_fill": st.sampled_from(["original", "fill"]),
    "padding_mask_crop": st.integers(0, 4096),
    "resize_mode": st.sampled_from(get_args(ResizeMode)),
    "controlnets": st.lists(some(**CONTROLNET), max_size=2),
    "loras": st.lists(st.fixed_dictionaries(LORA), max_size=2),
    "embeddings": st.lists(TEXT, max_size=4),
    "output": some(**OUTPUT),
    "priority": st.integers(0, 9),
    **dict.fromkeys(("timeout_s", "expires_s"), st.floats(0.5, 1000)),
    "deterministic": SWITCH,
    "cancel_on_disconnect": SWITCH,
    "metadata": st.dictionaries(TEXT, JSON, max_size=3),
}
NAMES = sorted(
    set().union(*(m.model_fields for m in (RequestInput, OutputInput, ControlNetInput, LoraInput)))
    | SchedulerOptionsInput.model_fields.keys()
    # every name that an answer is written with
    | set(re.findall(r'"([a-z][a-z0-9_]*)":', (Path(mezzotint.__file__).parent / "bodies.py").read_text()))
)


def test_the_strategies_know_every_field() -> None:
    for told, schema in (
        (FIELDS, RequestInput),
        (CONTROLNET, ControlNetInput),
        (LORA, LoraInput),
        (OUTPUT, OutputInput),
        (OPTIONS, SchedulerOptionsInput),
        (VARIATION, VariationInput),
        (HIRES, HiresInput),
        (WEBHOOK, WebhookInput),
        (PREVIEW, PreviewInput),
    ):
        assert told.keys() == schema.model_fields.keys()


@settings(max_examples=300, deadline=None)
@given(some(**FIELDS), st.sampled_from(CASES))
def test_every_request_reads_the_same_in_every_case(body: dict[str, Any], case: Case) -> None:
    sent, faults = parse(msgspec.json.decode(msgspec.json.encode(spelt(body, case))))
    assert faults == []
    assert sent == RequestInput.model_validate(body)
    assert sent.metadata == body.get("metadata", {})


@pytest.mark.parametrize("case", CASES)
def test_what_an_answer_says_of_a_request_can_be_sent_again(case: Case) -> None:
    body = {
        "prompt": "x",
        "image": "asset:small",
        "mask": "asset:small",
        "padding_mask_crop": 3,
        "controlnets": [{"model": "edges", "image": "asset:odd", "preprocessor": "canny"}],
        "loras": [{"name": "ink"}],
        "scheduler": "dpm_multistep",
        "scheduler_options": {"karras_sigmas": True},
        "metadata": {"UserId": {"some_key": 1}},
    }
    first = resolved(body).request
    told = msgspec.json.encode(spelt(msgspec.to_builtins(first), case))
    assert resolved(msgspec.json.decode(told)).request == first


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_no_spelling_of_a_name_is_lost(name: str, case: Case) -> None:
    assert fold(spell(name, case)) == fold(name)
    assert [other for other in NAMES if fold(other) == fold(name)] == [name]


@pytest.mark.parametrize(
    ("name", "camel", "pascal"),
    [
        ("guidance_scale", "guidanceScale", "GuidanceScale"),
        ("id", "id", "Id"),
        ("eta_s", "etaS", "EtaS"),
        ("loras", "loras", "LoRAs"),
        ("lora_weight", "loraWeight", "LoRAWeight"),
        ("controlnets", "controlNets", "ControlNets"),
        ("controlnet_conditioning_scale", "controlNetConditioningScale", "ControlNetConditioningScale"),
        ("ms_per_step_at_4", "msPerStepAt4", "MsPerStepAt4"),
    ],
)
def test_names_are_written_as_people_write_them(name: str, camel: str, pascal: str) -> None:
    assert (spell(name, "snake"), spell(name, "camel"), spell(name, "pascal")) == (name, camel, pascal)


def test_keys_that_are_not_ours_stay_as_they_are() -> None:
    body = {
        "metadata": {"user_id": {"guidance_scale": [{"a_b": 1}]}},
        "options": {"low_threshold": 3},
        "executors": {"cpu:0": {"ms_per_step": 1}, "my_gpu": None},
        "states": {"succeeded": 2},
        "errors": {"out_of_memory": 1},
        "state": "partially_succeeded",
    }
    assert spelt(body, "pascal") == {
        "Metadata": body["metadata"],
        "Options": body["options"],
        "Executors": {"cpu:0": {"MsPerStep": 1}, "my_gpu": None},
        "States": {"succeeded": 2},
        "Errors": {"out_of_memory": 1},
        "State": "partially_succeeded",
    }
    assert spelt({"errors": [{"code": "out_of_memory"}]}, "pascal") == {"Errors": [{"Code": "out_of_memory"}]}


def test_the_names_that_clients_of_other_servers_send_are_known() -> None:
    body = {
        "LoRAs": [{"Name": "ink", "LoRAWeight": 0.5}],
        "ControlNets": [{"Model": "edges", "Image": "asset:odd", "ControlNetConditioningScale": 0.25}],
    }
    request = resolved(body).request
    assert (request.loras[0].scale, request.controlnets[0].scale) == (0.5, 0.25)
