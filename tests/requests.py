"""Requests for tests: complete ones, with what a test says changed."""

from dataclasses import replace
from typing import Any

from mezzotint.request import Output, Request


def request(**changes: Any) -> Request:
    base = Request(
        model="tiny",
        type="text2img",
        prompt="a red boat",
        negative_prompt="",
        prompt_syntax="plain",
        width=16,
        height=16,
        num_inference_steps=6,
        guidance_scale=5.0,
        scheduler="ddim",
        scheduler_options={},
        eta=0.0,
        seed=7,
        num_images=1,
        clip_skip=None,
        image=None,
        mask=None,
        strength=None,
        mask_blur=0,
        mask_fill="original",
        padding_mask_crop=None,
        resize_mode="stretch",
        controlnets=(),
        loras=(),
        output=Output(format="png", quality=95, embed_metadata=True),
        priority=5,
        timeout_s=None,
        expires_s=None,
        device=None,
        deterministic=False,
        metadata={},
    )
    return replace(base, **changes)
