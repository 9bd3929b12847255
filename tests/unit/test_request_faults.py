"""Faults of a request beside one another: none hides another, and none is told that only follows from one."""

import pytest

from mezzotint.schema import MAX_SEED
from tests.unit.test_request import faults


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (
            {
                "model": "nope",
                "scheduler": "lcm",
                "steps": 60,
                "scheduler_options": {"karras_sigmas": True, "exponential_sigmas": True},
                "controlnets": [{"start": 0.9, "end": 0.1, "preprocessor": "cany"}],
                "loras": [{"name": "ikn"}, {"name": "broad"}],
                "hires": {"scale": 2, "width": 512},
            },
            {
                "model",
                "num_inference_steps",
                "scheduler_options.karras_sigmas",
                "scheduler_options.exponential_sigmas",
                "scheduler_options",
                "controlnets[0].model",
                "controlnets[0].image",
                "controlnets[0].start",
                "controlnets[0].preprocessor",
                "loras[0].name",
                "hires.scale",
            },
        ),
        ({"model": "nope", "width": 2048, "height": 2048}, {"model", "width"}),
        ({"loras": [{"name": "a", "scale": 9}, {"name": "b"}]}, {"loras[0].scale", "loras[0].name", "loras[1].name"}),
        ({"loras": [5, {"name": "b"}]}, {"loras[0]", "loras[1].name"}),
        ({"loras": [{"scale": 1}, {"name": "b"}]}, {"loras[0].name", "loras[1].name"}),
        (
            {"controlnets": [{"model": "edges", "scale": 9, "start": 0.9, "end": 0.1}]},
            {"controlnets[0].scale", "controlnets[0].start", "controlnets[0].image"},
        ),
        ({"hires": {"strength": 2, "width": 129}}, {"hires.strength", "hires.width"}),
        (
            {"scheduler_options": {"solver_order": 9, "karras_sigmas": True}},
            {"scheduler_options.solver_order", "scheduler_options.karras_sigmas"},
        ),
        (
            {"variation": {"seed": MAX_SEED, "strength": 9}, "num_images": 2},
            {"variation.strength", "variation.seed"},
        ),
        ({"type": "inpainting"}, {"mask", "image"}),
    ],
)
def test_a_fault_hides_no_other(body: dict[str, object], fields: set[str]) -> None:
    assert faults(body).keys() == fields


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"type": "lora", "loras": [{"name": "ink", "scale": 9}]}, "loras[0].scale"),
        ({"type": "lora", "loras": 5}, "loras"),
        ({"image": 5, "strength": 0.5}, "image"),
        ({"type": "img2img", "image": 5, "strength": 0.5}, "image"),
        ({"type": "img2img", "strength": 0.5}, "image"),
        ({"mask": "asset:small", "image": 7}, "image"),
        ({"image": "asset:small", "mask": 7, "mask_blur": 3}, "mask"),
        (
            {"image": "asset:small", "mask": "asset:small", "resize_mode": "original", "padding_mask_crop": -1},
            "padding_mask_crop",
        ),
        ({"model": 5, "clip_skip": 3, "loras": [{"name": "broad"}]}, "model"),
        ({"model": "painter", "type": "draw"}, "type"),
        ({"scheduler": "foo", "scheduler_options": {"karras_sigmas": True}}, "scheduler"),
        ({"width": "x", "height": 60_000}, "width"),
        ({"hires": {"height": "x", "width": 1024}}, "hires.height"),
        ({"width": "x", "height": 256, "hires": {"scale": 8}}, "width"),
        ({"controlnets": [5]}, "controlnets[0]"),
        ({"controlnets": [{"type": 5, "image": "asset:small"}]}, "controlnets[0].type"),
        ({"controlnets": [{"model": "edges", "image": 5}]}, "controlnets[0].image"),
        (
            {
                "controlnets": [
                    {"model": "edges", "image": "asset:small", "preprocessor": 5, "options": {"low_threshold": 1}}
                ]
            },
            "controlnets[0].preprocessor",
        ),
        ({"webhook": {"events": ["session.failed"]}}, "webhook.url"),
    ],
    ids=str,
)
def test_a_fault_invents_no_other(body: dict[str, object], field: str) -> None:
    assert faults(body).keys() == {field}
