"""What the dialects' calls take, for the OpenAPI document. Describes only: each dialect reads its own fields."""

from typing import Any

from mezzotint.api.document import takes


def _of(required: str = "", **names: str) -> dict[str, Any]:
    """An object with fields by JSON type. Further ones are taken: clients send what other servers know."""
    found = {name: {"type": kind} for kind, listed in names.items() for name in listed.split()}
    return {"type": "object", "properties": found, "required": required.split()}


_DRAWN = _of(
    string="prompt negative_prompt sampler_name sampler_index scheduler force_task_id script_name",
    integer="width height steps seed subseed batch_size n_iter seed_resize_from_w seed_resize_from_h",
    number="cfg_scale subseed_strength denoising_strength eta s_churn s_tmin s_tmax s_noise",
    boolean="restore_faces tiling send_images save_images do_not_save_samples do_not_save_grid "
    "override_settings_restore_afterwards disable_extra_networks",
    object="override_settings alwayson_scripts",
    array="styles script_args",
)
_HIRES = _of(
    string="hr_upscaler hr_checkpoint_name hr_sampler_name hr_scheduler hr_prompt hr_negative_prompt",
    integer="hr_second_pass_steps hr_resize_x hr_resize_y firstphase_width firstphase_height",
    number="hr_scale",
    boolean="enable_hr",
)
_BEGUN = _of(
    "init_images",
    string="mask",
    integer="resize_mode mask_blur mask_blur_x mask_blur_y inpainting_fill inpaint_full_res_padding "
    "inpainting_mask_invert",
    boolean="inpaint_full_res mask_round include_init_images",
    array="init_images",
)


def _with(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return second | {"properties": first["properties"] | second["properties"]}


_UPSCALED = _of(
    string="image upscaler_1 upscaler_2",
    integer="resize_mode upscaling_resize_w upscaling_resize_h",
    number="upscaling_resize extras_upscaler_2_visibility gfpgan_visibility codeformer_visibility codeformer_weight",
    boolean="upscaling_crop upscale_first show_extras_results",
    array="imageList",
)

TXT2IMG = takes(_with(_DRAWN, _HIRES))
IMG2IMG = takes(_with(_DRAWN, _BEGUN))
OPTIONS = takes(
    _of(
        string="sd_model_checkpoint sd_vae samples_format",
        integer="CLIP_stop_at_last_layers eta_noise_seed_delta",
        boolean="enable_pnginfo",
    )
)
INTERRUPT = takes(_of(string="id_task"), required=False)
PROGRESS = takes(_of("id_task", string="id_task", integer="id_live_preview", boolean="live_preview"))
PNG_INFO = takes(_of("image", string="image"))
UPSCALE = takes(_UPSCALED)
DETECT = takes(
    _of(
        string="controlnet_module",
        integer="controlnet_processor_res",
        number="controlnet_threshold_a controlnet_threshold_b",
        boolean="low_vram",
        array="controlnet_input_images controlnet_images controlnet_masks",
    )
)

_OPENAI = _of(
    "prompt",
    string="prompt model size quality response_format output_format background moderation style user input_fidelity",
    integer="n output_compression partial_images seed num_inference_steps",
    number="guidance_scale strength",
    boolean="stream",
)
GENERATIONS = takes(_OPENAI)
_FILE = {"type": "string", "format": "binary"}
_FILES = {"image": {"anyOf": [_FILE, {"type": "array", "items": _FILE}]}, "mask": _FILE}
EDITS = takes(
    {"type": "object", "properties": _OPENAI["properties"] | _FILES, "required": ["prompt", "image"]},
    "multipart/form-data",
)
