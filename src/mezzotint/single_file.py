"""What a model in one safetensors file is, told by the names and shapes of its tensors.

The layout of Stability's and ControlNet's own code: the configs that a diffusers folder keeps in files follow from the
shapes here. Must not open a tensor or import torch; families/layouts.py reads the weights by these configs.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mezzotint.headers import Header, Unusable

Shapes = Mapping[str, tuple[int, ...]]

UNET, CONTROL = "model.diffusion_model.", "control_model."
VAE = "first_stage_model."
CLIP_1, CLIP_XL = "cond_stage_model.transformer.", "conditioner.embedders.0.transformer."
OPEN_CLIP_2, OPEN_CLIP_XL = "cond_stage_model.model.", "conditioner.embedders.1.model."

VOCABULARY = Path(__file__).parent / "bundled" / "clip"
VOCABULARY_SIZE = 49_408

# Tensors of an embedding -> the text encoder that reads them; a single one of any other name is for the first.
EMBEDDED = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}

_HINT_CHANNELS = [16, 32, 96, 256]
_NOISE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def kind_of(shapes: Shapes) -> str:
    """checkpoint, controlnet, vae, embedding or lora."""
    if (set(shapes) == set(EMBEDDED) or len(shapes) == 1) and all(len(shape) in (1, 2) for shape in shapes.values()):
        return "embedding"
    if any(name.startswith(UNET) for name in shapes):
        return "checkpoint"
    if f"{CONTROL}time_embed.0.weight" in shapes or "input_hint_block.0.weight" in shapes:
        return "controlnet"
    if "controlnet_cond_embedding.conv_in.weight" in shapes:
        return "controlnet"
    if any(name.removeprefix(VAE) == "decoder.conv_in.weight" for name in shapes):
        return "vae"
    return "lora" if any("lora" in name for name in shapes) else "checkpoint"


def family_of(shapes: Shapes) -> str:
    """The row of families/table.py. Raises Unusable."""
    if "edm_mean" in shapes:
        raise Unusable("it is made for another noise schedule (EDM) than this version runs")
    if f"{CLIP_XL}text_model.embeddings.token_embedding.weight" in shapes:
        return "sdxl"
    if not any(name.startswith(UNET) for name in shapes):
        raise Unusable("its tensors are of no kind of model that this version runs")
    if any(name.startswith((CLIP_1, OPEN_CLIP_2)) for name in shapes):
        return "sd"
    raise Unusable("it holds a UNet and no text encoder of SD or SDXL; get the file that holds the whole model")


def checkpoint_configs(header: Header, told: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By part, as a diffusers folder of this model would say it. Raises Unusable.

    `told`: what its owner says; wins over the file's own metadata, which wins over what is usual.
    """
    shapes, xl = header.shapes, family_of(header.shapes) == "sdxl"
    if not any(name.startswith(VAE) for name in shapes):
        raise Unusable("it has no autoencoder in it; get the file that holds the whole model")
    found: dict[str, dict[str, Any]] = {}
    if xl:
        found["text_encoder"] = _clip(shapes, CLIP_XL)
        found["text_encoder_2"] = _open_clip(shapes, OPEN_CLIP_XL, cut=0)
        pooled = int(found["text_encoder_2"]["projection_dim"])
    else:
        second = any(name.startswith(OPEN_CLIP_2) for name in shapes)
        found["text_encoder"] = _open_clip(shapes, OPEN_CLIP_2, cut=1) if second else _clip(shapes, CLIP_1)
        pooled = 0
    unet = found["unet"] = unet_config(shapes, UNET, pooled=pooled)
    found["vae"] = vae_config(shapes, 0.13025 if xl else 0.18215)
    prediction = _prediction(header, told, unet)
    unet["sample_size"] = _sample_size(header, xl, prediction)
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in shapes else {}
    found["scheduler"] = {**_NOISE, "prediction_type": prediction, **zero_snr}
    return found


def scheduler_of(shapes: Shapes) -> str:
    """What the published folders of these models name."""
    if family_of(shapes) == "sdxl":
        return "euler"
    return "ddim" if any(name.startswith(OPEN_CLIP_2) for name in shapes) else "pndm"


def controlnet_config(shapes: Shapes) -> dict[str, Any]:
    """Raises Unusable."""
    if "controlnet_cond_embedding.conv_in.weight" in shapes:
        raise Unusable("it is in diffusers' layout, which needs its config.json; put both into a folder")
    prefix = CONTROL if any(name.startswith(CONTROL) for name in shapes) else ""
    hints = [f"{prefix}input_hint_block.{place}.weight" for place in (0, 4, 8, 12)]
    if [_shape(shapes, name)[0] for name in hints] != _HINT_CHANNELS:
        raise Unusable("what reads its control image is of another shape than this version runs")
    if f"{prefix}label_emb.0.0.weight" in shapes:
        raise Unusable("it is a ControlNet of SDXL in the original layout; get it as a diffusers folder")
    config = unet_config(shapes, prefix, pooled=0)
    del config["up_block_types"], config["out_channels"]
    return config | {"conditioning_embedding_out_channels": _HINT_CHANNELS, "_class_name": "ControlNetModel"}


def unet_config(shapes: Shapes, prefix: str, *, pooled: int) -> dict[str, Any]:
    """Of a UNet's way down and middle, which tell the way up. `pooled`: channels of the pooled text, 0 without."""
    channels, in_channels = _shape(shapes, f"{prefix}input_blocks.0.0.weight")[:2]
    levels: list[list[tuple[int, int]]] = [[]]  # (channels, transformer blocks) of every residual block
    for number in range(1, _count(shapes, f"{prefix}input_blocks.")):
        at = f"{prefix}input_blocks.{number}."
        if f"{at}0.op.weight" in shapes:
            levels.append([])
            continue
        width = _shape(shapes, f"{at}0.out_layers.3.weight")[0]
        levels[-1].append((width, _count(shapes, f"{at}1.transformer_blocks.")))
    if len({len(level) for level in levels}) != 1 or any(len(set(level)) != 1 for level in levels):
        raise Unusable("its UNet has levels of unequal blocks, which this version does not run")
    widths, depths = zip(*(level[0] for level in levels), strict=True)
    middle = _count(shapes, f"{prefix}middle_block.1.transformer_blocks.")
    if middle != max(depths[-1], 1):
        raise Unusable("its UNet has a middle of another depth than its last level, which this version does not run")
    attention = next(name for name in shapes if name.startswith(prefix) and name.endswith("attn2.to_k.weight"))
    linear = len(shapes[f"{attention.split('transformer_blocks')[0]}proj_in.weight"]) == 2
    added = shapes.get(f"{prefix}label_emb.0.0.weight")
    config = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": in_channels,
        "out_channels": shapes.get(f"{prefix}out.2.weight", (in_channels,))[0],
        "block_out_channels": list(widths),
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "cross_attention_dim": shapes[attention][1],
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        "use_linear_projection": linear,
        # diffusers' word for the number of heads: eight in SD 1.x, else heads of 64 channels
        "attention_head_dim": [width // 64 for width in widths] if linear else 8,
    }
    guidance = next((name for name in shapes if name.startswith(prefix) and name.endswith(".cond_proj.weight")), None)
    if guidance is not None:
        config["time_cond_proj_dim"] = shapes[guidance][1]
    if channels != widths[0]:
        raise Unusable("its UNet begins with another width than its first level, which this version does not run")
    if added is None:
        return config
    text = pooled or 1280
    return config | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (added[1] - text) // 6,
        "projection_class_embeddings_input_dim": added[1],
    }


def vae_config(shapes: Shapes, scaling: float) -> dict[str, Any]:
    """Of an autoencoder in a checkpoint or in a file of its own. Raises Unusable."""
    prefix = VAE if any(name.startswith(VAE) for name in shapes) else ""
    if f"{prefix}encoder.down_blocks.0.resnets.0.conv1.weight" in shapes:
        raise Unusable("it is in diffusers' layout, which needs its config.json; put both into a folder")
    levels = _count(shapes, f"{prefix}encoder.down.")
    widths = [_shape(shapes, f"{prefix}encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": _shape(shapes, f"{prefix}encoder.conv_in.weight")[1],
        "out_channels": _shape(shapes, f"{prefix}decoder.conv_out.weight")[0],
        "latent_channels": _shape(shapes, f"{prefix}decoder.conv_in.weight")[1],
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, f"{prefix}encoder.down.0.block."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": scaling,
    }


def _clip(shapes: Shapes, prefix: str) -> dict[str, Any]:
    if not any(name.startswith(f"{prefix}text_model.") for name in shapes):
        raise Unusable("its text encoder is in a layout that this version does not read")
    at = f"{prefix}text_model."
    width = _vocabulary(shapes, f"{at}embeddings.token_embedding.weight")
    return {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": width,
        "intermediate_size": _shape(shapes, f"{at}encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(shapes, f"{at}encoder.layers."),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": _shape(shapes, f"{at}embeddings.position_embedding.weight")[0],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _open_clip(shapes: Shapes, prefix: str, *, cut: int) -> dict[str, Any]:
    """`cut`: layers at the end that the model never reads, and diffusers leaves out."""
    width = _vocabulary(shapes, f"{prefix}token_embedding.weight")
    at = f"{prefix}transformer.resblocks."
    return {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": width,
        "intermediate_size": _shape(shapes, f"{at}0.mlp.c_fc.weight")[0],
        "num_hidden_layers": _count(shapes, at) - cut,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": _shape(shapes, f"{prefix}positional_embedding")[0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": shapes.get(f"{prefix}text_projection", (width, width))[1],
        "pad_token": "!",
    }


def _vocabulary(shapes: Shapes, name: str) -> int:
    """The width of a text encoder. Raises Unusable for another vocabulary than the one that ships here."""
    count, width = _shape(shapes, name)
    if count != VOCABULARY_SIZE:
        raise Unusable(f"its text encoder knows {count} tokens; a single file needs CLIP's {VOCABULARY_SIZE}")
    return width


def _prediction(header: Header, told: Mapping[str, Any], unet: Mapping[str, Any]) -> str:
    """SD 2.x of 768 px predicts velocity and its smaller base the noise; their files look the same."""
    if (given := told.get("prediction_type")) is not None:
        return str(given)
    if (given := header.metadata.get("modelspec.prediction_type")) is not None:
        return {"v": "v_prediction", "epsilon": "epsilon"}.get(str(given), str(given))
    if "v_pred" in header.shapes:
        return "v_prediction"
    is_2 = any(name.startswith(OPEN_CLIP_2) for name in header.shapes)
    return "v_prediction" if is_2 and unet["in_channels"] == 4 else "epsilon"


def _sample_size(header: Header, xl: bool, prediction: str) -> int:
    """Latents a side, by the file's own word or as the model was published."""
    if found := re.fullmatch(r"(\d{2,5})x\d{2,5}", str(header.metadata.get("modelspec.resolution", ""))):
        return max(8, int(found[1]) // 8)
    return 128 if xl else 96 if prediction == "v_prediction" else 64


def _count(shapes: Shapes, prefix: str) -> int:
    """How many of a numbered kind there are."""
    numbers = _numbers(shapes, prefix)
    return max(numbers, default=-1) + 1


def _numbers(shapes: Shapes, prefix: str) -> Iterable[int]:
    for name in shapes:
        if name.startswith(prefix) and (head := name[len(prefix) :].partition(".")[0]).isdecimal() and len(head) < 4:
            yield int(head)


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise Unusable(f"it lacks {name!r}, which a model of its kind has")
    return shapes[name]
