"""What can be done follows the models and devices that there are."""

from dataclasses import replace
from typing import Any

import pytest

from mezzotint import capabilities
from mezzotint.capabilities import Facts
from mezzotint.catalog import TYPES, Model
from mezzotint.measurements import Point
from mezzotint.workers.wire import Work
from tests.unit.test_request import ADAPTERS, BROKEN, OTHER, PAINTER, TINY, adapter

LIMITS = {"max_pixels": 1 << 20, "queue_size": 10, "queue_free": 10, "max_upload_bytes": 1 << 20}


def device(**changes: Any) -> dict[str, Any]:
    memory = {"total_bytes": 1600, "available_bytes": 850, "used_by_mezzotint_bytes": 10}
    return {"id": "cpu:0", "memory": memory, "utilization": 0.5, "temperature_c": 40.0, "queue_depth": 3} | changes


def facts(*models: Model, **changes: Any) -> Facts:
    plain = Facts(
        models={model.id: model for model in models},
        default_model="tiny",
        resident={"cpu:0": ()},
        room={"cpu:0": None},
        devices=[device()],
        limits=LIMITS,
        batching={},
    )
    return replace(plain, **changes)


def types(*models: Model, **changes: Any) -> dict[str, list[str]]:
    """Type to the models that run it."""
    return {one["type"]: one["models"] for one in capabilities.types(facts(*models, **changes))["types"]}


def needs(*models: Model, **changes: Any) -> dict[str, list[str]]:
    """Type to what is missing."""
    return {one["type"]: one["needs"] for one in capabilities.types(facts(*models, **changes))["unsupported"]}


def test_without_a_model_nothing_can_be_done_and_each_type_says_what_it_needs() -> None:
    assert types() == types(BROKEN) == {}
    assert needs().keys() == set(TYPES)
    assert needs()["inpainting"] == ["a checkpoint in a model folder that can run inpainting"]


def test_the_default_model_is_named_only_if_it_is_there_and_draws() -> None:
    assert capabilities.body(facts(TINY, OTHER))["default_model"] == "tiny"
    assert capabilities.body(facts(OTHER))["default_model"] is None
    assert capabilities.body(facts(OTHER, *ADAPTERS, default_model=ADAPTERS[0].id))["default_model"] is None


def test_an_adapter_counts_only_for_the_models_that_it_fits() -> None:
    assert types(TINY) == {"text2img": ["tiny"], "img2img": ["tiny"], "inpainting": ["tiny"]}
    assert needs(TINY)["controlnet"] == ["a ControlNet in a model folder that fits one of: tiny"]
    assert types(TINY, OTHER, *ADAPTERS)["controlnet"] == ["tiny", "other"]
    edges = ADAPTERS[0]
    assert types(TINY, OTHER, edges)["controlnet"] == ["tiny"]
    assert "controlnet" not in types(OTHER, edges)
    assert "controlnet" not in types(TINY, replace(edges, state="invalid"))
    assert types(PAINTER, *ADAPTERS) == {"inpainting": ["painter"]}


def test_a_model_whose_weights_fit_no_device_runs_nothing() -> None:
    large = replace(TINY, bytes=5000)
    assert types(large, room={"cpu:0": 4000}) == {}
    assert needs(large, room={"cpu:0": 4000})["text2img"] == [
        "5000 bytes of memory for the weights of tiny; a worker may take 4000 here"
    ]
    assert types(large, room={"cpu:0": 4000, "cuda:0": 6000})["text2img"] == ["tiny"]


def test_embeddings_are_told_with_the_models_that_they_go_with() -> None:
    told = capabilities.body(facts(TINY, OTHER, adapter("embedding", "neg", text_width=32, tokens=2)))
    assert told["embeddings"] == [{"id": "neg", "fits": ["tiny"], "tokens": 2}]
    assert [one["supports"]["embeddings"] for one in told["models"]] == [["neg"], []]


def test_the_native_size_is_not_the_default_that_was_set() -> None:
    (told,) = capabilities.body(facts(replace(TINY, width=512), own={"tiny": TINY}))["models"]
    assert (told["native_size"]["width"], told["defaults"]["width"]) == (64, 512)


def test_the_answer_names_what_each_model_can() -> None:
    told = capabilities.body(facts(TINY, OTHER, *ADAPTERS, BROKEN, resident={"cpu:0": ("tiny",)}))
    tiny, other = told["models"]
    assert (tiny["resident_on"], other["resident_on"]) == (["cpu:0"], [])
    assert tiny["supports"]["controlnets"] == ["edges"]
    assert tiny["supports"]["loras"] == ["ink", "fog"]
    assert {one["family"]: [lora["id"] for lora in one["loras"]] for one in told["loras"]} == {
        "sd": ["ink", "fog", "broad"]
    }
    alone = capabilities.body(facts(TINY, *ADAPTERS))["loras"]
    assert {one["family"]: [lora["id"] for lora in one["loras"]] for one in alone} == {
        "sd": ["ink", "fog"],
        None: ["broad"],
    }
    assert next(one for one in told["schedulers"] if one["name"] == "lcm")["max_steps"] == 50
    assert told["limits"]["max_steps"] == 1000


@pytest.mark.parametrize(
    "changes",
    [
        {"devices": [device(utilization=0.9, temperature_c=None, queue_depth=0)]},
        {"devices": [device(memory={"total_bytes": 1600, "available_bytes": 801, "used_by_mezzotint_bytes": 99})]},
        {"limits": LIMITS | {"queue_free": 0}},
    ],
)
def test_the_etag_stays_while_only_the_moment_changes(changes: dict[str, Any]) -> None:
    before, after = (capabilities.body(facts(TINY, *ADAPTERS, **more)) for more in ({}, changes))
    assert before != after
    assert capabilities.etag(before) == capabilities.etag(after)


@pytest.mark.parametrize(
    "after",
    [
        facts(TINY, *ADAPTERS[1:]),
        facts(replace(TINY, num_inference_steps=17), *ADAPTERS),
        facts(TINY, *ADAPTERS, resident={"cpu:0": ("tiny",)}),
        facts(TINY, *ADAPTERS, devices=[device(memory={"total_bytes": 1600, "available_bytes": 650})]),
        facts(TINY, *ADAPTERS, limits=LIMITS | {"max_pixels": 5}),
    ],
)
def test_the_etag_changes_with_the_answer(after: Facts) -> None:
    before = facts(TINY, *ADAPTERS)
    assert capabilities.etag(capabilities.body(before)) != capabilities.etag(capabilities.body(after))


def test_batch_sizes_are_those_that_were_learned_last_by_shape() -> None:
    def step(rows: int, cap: int, seen_at: float, **other: Any) -> Point:
        work = Work(what="step", model="digest", height=8, width=16, windows=1, rows=rows, **other)
        return Point(work=work, recent_s=[0.1], cap=cap, seen_at=seen_at)

    points = [step(2, 16, 1.0), step(8, 6, 2.0), step(4, 9, 3.0, loras=True), step(2, 4, 1.0, executor="openvino")]
    model = replace(TINY, size_multiple=8)
    told = capabilities.batching({TINY.id: model}, {"digest": TINY.id}, {"cpu:0": {one.work: one for one in points}})
    assert [(one["executor"], one["width"], one["height"], one["rows"]) for one in told["max_batch"]] == [
        ("openvino", 128, 64, 4),
        ("torch", 128, 64, 6),
    ]
    assert told["max_batch"][1]["rows_timed"] == [2, 8]
    assert told["unknown"] == {}
    assert capabilities.batching({TINY.id: model}, {}, {"cpu:0": {}})["max_batch"] is None
