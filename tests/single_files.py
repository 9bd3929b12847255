"""Random models in a diffusers folder and, with the same weights, in one file of the original layout."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mezzotint.single_file import VOCABULARY

State = dict[str, Tensor]
WIDTHS = (32, 64)
TEXT = 64  # one attention head: in these layouts a head has 64 channels


def build_folder(
    path: Path, style: str, *, inpaints: bool = False, prediction_type: str = "epsilon", factor: int = 2
) -> Path:
    """`style`: sd1, sd2 or sdxl. As small as the real layout allows: its vocabulary is the real one."""
    torch.manual_seed(0)
    xl, second = style == "sdxl", style == "sd2"
    parts: dict[str, Any] = {
        "vae": build_vae(seed=1, factor=factor, scaling_factor=0.13025 if xl else 0.18215),
        "tokenizer": _tokenizer("!" if second else "<|endoftext|>"),
        "text_encoder": _text_encoder(CLIPTextModel, "gelu" if second else "quick_gelu"),
        "unet": _unet(style, inpaints),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
    }
    if xl:
        encoder = _text_encoder(CLIPTextModelWithProjection, "gelu", projection_dim=24)
        with torch.no_grad():
            encoder.text_projection.weight.mul_(10.0)
        parts |= {"text_encoder_2": encoder, "tokenizer_2": _tokenizer("!")}
        StableDiffusionXLPipeline(**parts, add_watermarker=False).save_pretrained(path)
        return path
    StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(path)
    return path


def build_vae(*, seed: int, factor: int = 2, **config: Any) -> AutoencoderKL:
    torch.manual_seed(seed)
    levels = factor.bit_length()
    vae = AutoencoderKL(
        block_out_channels=(32,) * (levels - 1) + (64,),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        **config,
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(6.0)
    return vae


def write_single(
    file: Path, folder: Path, style: str, *, metadata: dict[str, str] | None = None, **more: Tensor
) -> Path:
    """The weights of a folder as Stability's code names them."""
    state: State = {}
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    state |= _prefixed("model.diffusion_model.", unet_names(unet.state_dict(), unet.config["layers_per_block"]))
    state |= _prefixed("first_stage_model.", vae_names(AutoencoderKL.from_pretrained(folder / "vae").state_dict()))
    first = _flat(CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict())
    if style == "sd2":
        state |= _prefixed("cond_stage_model.model.", _open_clip(first, unread=1))
    elif style == "sd1":
        state |= _prefixed("cond_stage_model.transformer.text_model.", first)
    else:
        second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").state_dict()
        state |= _prefixed("conditioner.embedders.0.transformer.text_model.", first)
        state |= _prefixed("conditioner.embedders.1.model.", _open_clip(_flat(second)))
    save_file({name: tensor.contiguous() for name, tensor in (state | more).items()}, file, metadata)
    return file


def write_single_controlnet(file: Path, folder: Path) -> Path:
    net = ControlNetModel.from_pretrained(folder)
    state = unet_names(net.state_dict(), net.config["layers_per_block"])
    save_file({name: tensor.contiguous() for name, tensor in _prefixed("control_model.", state).items()}, file)
    return file


def build_controlnet(path: Path, model: Path) -> Path:
    """With the reader of control images that the original layout knows."""
    torch.manual_seed(5)
    net = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(model / "unet"))
    with torch.no_grad():
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            block.weight.normal_(0, 0.3)
        net.controlnet_cond_embedding.conv_out.weight.normal_(0, 0.3)
    net.save_pretrained(path)
    return path


def unet_names(state: State, layers: int) -> State:
    per = layers + 1
    inner = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    outer = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "controlnet_mid_block": "middle_block_out.0", "controlnet_cond_embedding.conv_in": "input_hint_block.0",
        "controlnet_cond_embedding.conv_out": "input_hint_block.14",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }  # fmt: skip
    found: State = {}
    for name, tensor in state.items():
        new = name
        if at := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", name):
            way, block, kind, number = at[1], int(at[2]), at[3], int(at[4])
            rest = name[at.end() :]
            place = per * block + number + (1 if way == "down" else 0)
            attends = f"up_blocks.{block}.attentions.0.norm.weight" in state
            new = {
                "resnets": f"{place}.0.{rest}",
                "attentions": f"{place}.1.{rest}",
                "downsamplers": f"{per * (block + 1)}.0.op.{rest.removeprefix('conv.')}",
                "upsamplers": f"{per * block + layers}.{2 if attends else 1}.{rest}",
            }[kind]
            new = f"{'input' if way == 'down' else 'output'}_blocks.{new}"
        elif at := re.match(r"controlnet_down_blocks\.(\d+)\.", name):
            new = f"zero_convs.{at[1]}.0.{name[at.end() :]}"
        elif at := re.match(r"controlnet_cond_embedding\.blocks\.(\d+)\.", name):
            new = f"input_hint_block.{2 * (int(at[1]) + 1)}.{name[at.end() :]}"
        else:
            new = next((old + name[len(new) :] for new, old in outer.items() if name.startswith(f"{new}.")), name)
        if "resnets" in name:
            new = next(new.replace(f".{a}.", f".{b}.") for a, b in inner.items() if f".{a}." in name)
        found[new] = tensor
    return found


def vae_names(state: State) -> State:
    renamed = {
        "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
        "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
        "to_out.0": "proj_out", "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
        "downsamplers.0": "downsample", "upsamplers.0": "upsample", ".resnets.": ".block.",
    }  # fmt: skip
    levels = len({name.split(".")[2] for name in state if name.startswith("decoder.up_blocks.")})
    found: State = {}
    for name, tensor in state.items():
        new = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
        new = re.sub(r"up_blocks\.(\d+)", lambda at: f"up.{levels - 1 - int(at[1])}", new)
        for diffusers_name, original in renamed.items():
            new = new.replace(diffusers_name, original)
        is_projection = "mid.attn_1" in new and tensor.ndim == 2
        found[new] = tensor[:, :, None, None] if is_projection else tensor
    return found


def _open_clip(state: State, unread: int = 0) -> State:
    found = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
        "text_projection": state.get("text_projection.weight", torch.zeros(TEXT, TEXT)).T,
    }
    renamed = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj", "self_attn": "attn"}
    layers = 0
    for name, tensor in state.items():
        at = re.match(r"encoder\.layers\.(\d+)\.", name)
        if at is None:
            continue
        layers = max(layers, int(at[1]) + 1)
        rest = name[at.end() :]
        for transformers_name, original in renamed.items():
            rest = rest.replace(transformers_name, original)
        if "q_proj" in rest:
            three = [state[name.replace("q_proj", kind)] for kind in ("q_proj", "k_proj", "v_proj")]
            rest, tensor = rest.replace("q_proj.", "in_proj_"), torch.cat(three)
        if "k_proj" not in rest and "v_proj" not in rest:
            found[f"transformer.resblocks.{at[1]}.{rest}"] = tensor
    for extra in range(layers, layers + unread):  # whatever stands there is never read
        last = f"transformer.resblocks.{layers - 1}."
        more = {
            n.replace(last, f"transformer.resblocks.{extra}."): t * 7 for n, t in found.items() if n.startswith(last)
        }
        found |= more
    return found


def _unet(style: str, inpaints: bool) -> UNet2DConditionModel:
    linear = style != "sd1"
    config: dict[str, Any] = {"cross_attention_dim": 2 * TEXT if style == "sdxl" else TEXT}
    if style == "sdxl":
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 6 * 8,
            "transformer_layers_per_block": [1, 2],
        }
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=9 if inpaints else 4,
        block_out_channels=(64, 64) if linear else WIDTHS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=[1, 1] if linear else 8,
        use_linear_projection=linear,
        **config,
    )


def _tokenizer(pad: str) -> CLIPTokenizer:
    vocabulary = json.loads((VOCABULARY / "vocab.json").read_text(encoding="utf-8"))
    lines = (VOCABULARY / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)


def _text_encoder(kind: Any, activation: str, **config: Any) -> Any:
    encoder = kind(
        CLIPTextConfig(
            vocab_size=49_408,
            hidden_size=TEXT,
            intermediate_size=2 * TEXT,
            num_hidden_layers=3,
            num_attention_heads=1,
            max_position_embeddings=77,
            hidden_act=activation,
            bos_token_id=49_406,
            eos_token_id=49_407,
            pad_token_id=49_407,
            **config,
        )
    )
    with torch.no_grad():
        encoder.get_input_embeddings().weight.mul_(20.0)
        for name, parameter in encoder.named_parameters():
            if name.endswith("final_layer_norm.bias"):
                parameter.normal_(0, 0.3)
    return encoder


def _flat(state: State) -> State:
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items() if "position_ids" not in name}


def _prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}
