"""Models with random weights, built from configs: the real layouts, small enough to run fast."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WINDOW = 16


def build_sd(path: Path, *, seed: int = 0, inpaints: bool = False, **scheduler: Any) -> Path:
    """Write a random SD model of 8x8 latents and 16 px pictures whose pictures differ strongly from seed to seed."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    kind = StableDiffusionInpaintPipeline if inpaints else StableDiffusionPipeline
    pipeline = kind(
        vae=_vae(),
        text_encoder=_text_encoder(CLIPTextModel, tokenizer),
        tokenizer=tokenizer,
        unet=tiny_unet(in_channels=9 if inpaints else 4, cross_attention_dim=32),
        scheduler=_scheduler(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(path, safe_serialization=True)
    return path


def build_sdxl(path: Path, *, seed: int = 0) -> Path:
    """The same in the layout of SDXL's base model."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    second = _text_encoder(CLIPTextModelWithProjection, tokenizer, hidden_act="gelu", projection_dim=24)
    with torch.no_grad():
        second.text_projection.weight.mul_(10.0)
    unet = tiny_unet(
        in_channels=4,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
        use_linear_projection=True,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(CLIPTextModel, tokenizer),
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=_scheduler(),
        add_watermarker=False,
    )
    pipeline.save_pretrained(path, safe_serialization=True)
    return path


def build_controlnet(path: Path, model: Path, *, seed: int = 0, pools: bool = False) -> Path:
    """A random ControlNet for the model in a folder, strong enough to be seen."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    net.register_to_config(global_pool_conditions=pools)
    with torch.no_grad():
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            block.weight.normal_(0, 0.3)
        net.controlnet_cond_embedding.conv_out.weight.normal_(0, 0.3)
    net.save_pretrained(path, safe_serialization=True)
    return path


def build_lora(
    path: Path,
    model: Path,
    *,
    seed: int = 0,
    layout: str = "peft",
    rank: int = 4,
    trained_as: str | None = None,
    layers: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "v_proj", "fc1", "conv1"),
) -> Path:
    """Random factors for every attention projection and some convolutions, or for layers whose names end as `layers`
    say, in the layout of diffusers or of kohya.

    "peft alone": of the UNet only, by the names that PEFT itself gives them.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, Any] = {"unet": UNet2DConditionModel.from_pretrained(model / "unet")}
    for part, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        if (model / part).exists():
            parts[part] = kind.from_pretrained(model / part)
    tensors: dict[str, Tensor] = {}
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
    if "text_encoder_2" in parts:
        prefixes["text_encoder"] = "lora_te1"
    for part, module in parts.items():
        for name, layer in module.named_modules():
            if not name.endswith(layers):
                continue
            down, up = _factors(layer, rank, generator)
            if layout == "kohya":
                whole = name if part == "unet" or name.startswith("text_model.") else f"text_model.{name}"
                stem = f"{prefixes[part]}_{whole.replace('.', '_')}"
                tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
                tensors[f"{stem}.alpha"] = torch.tensor(rank / 2)
            elif layout == "peft alone":
                stem = f"base_model.model.{name}"
                tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up} if part == "unet" else {}
            else:
                tensors |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
    path.parent.mkdir(parents=True, exist_ok=True)
    told = None if trained_as is None else {"ss_output_name": trained_as}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, told)
    return path


def _factors(layer: Any, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    outs, *ins = layer.weight.shape
    down = torch.randn(rank, *ins, generator=generator) * 0.3
    up = torch.randn(outs, rank, *(1,) * (len(ins) - 1), generator=generator) * 0.3
    return down, up


def tiny_unet(**config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        **config,
    )


def _vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.5,
    )
    with torch.no_grad():  # wide enough that pictures of different seeds are far apart, so that a parity test can fail
        vae.decoder.conv_out.weight.mul_(6.0)
    return vae


def _text_encoder(kind: type[nn.Module], tokenizer: CLIPTokenizer, **config: Any) -> Any:
    encoder: Any = kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=WINDOW,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    )
    with torch.no_grad():
        encoder.get_input_embeddings().weight.mul_(20.0)
        for name, parameter in encoder.named_parameters():
            if name.endswith("final_layer_norm.bias"):  # as in trained ones, states do not cancel out to zero
                parameter.normal_(0, 0.3)
    return encoder


def _scheduler(**config: Any) -> DDIMScheduler:
    return DDIMScheduler(
        **{
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            **config,
        }
    )


def _tokenizer() -> CLIPTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(byte + "</w>" for byte in alphabet)]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=WINDOW)
