"""Puts the parts together as a plain StableDiffusionPipeline and draws with it. Trains and measures nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from training import machine

TARGET = Path(__file__).resolve().parent.parent / "src" / "mezzotint" / "bundled" / "icons"  # what ships

STEPS = 12  # 8 draw 97.2 % of the prompts of which 10, 12 and 16 draw 98.0
GUIDANCE = 3.0
FIXED_PROMPTS = (  # of the contact sheet, in its order; 16 in one style, then the same in the other
    "a slice of pizza",
    "a red apple",
    "a sailboat",
    "a cat face",
    "a guitar",
    "a rocket",
    "a rainbow",
    "a cactus",
    "a penguin",
    "a cup of coffee",
    "a bicycle",
    "a castle",
    "a butterfly",
    "a birthday cake",
    "a soccer ball",
    "an umbrella",
)


def make_scheduler() -> DDIMScheduler:
    """Zero signal at the last timestep, because the pictures stand on pure white."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # of no effect with trailing timesteps; the pipeline warns about any other
    )


def assemble(
    *, vae: AutoencoderKL, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The parts as they are, without a safety checker: the model knows a list of harmless things only."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = machine.choose(cpu=32, gpu=256),
) -> Tensor:
    """One picture a prompt, (n, 3, height, width) in -1 to 1. Picture i depends on prompt i and seed i only."""
    drawn: list[Tensor] = []
    for start in range(0, len(prompts), batch):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
        images = pipeline(
            list(prompts[start : start + batch]),
            generator=generators,
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="pt",
        ).images
        drawn.append(images.float().cpu() * 2 - 1)
    return torch.cat(drawn)


def save_sheet(pictures: Tensor, across: int, path: Path, zoom: int = 1) -> None:
    """Pictures (n, 3, h, w) in -1 to 1 as one PNG, row by row, without labels."""
    n, _, height, width = pictures.shape
    down = n // across
    rows = (
        pictures.reshape(down, across, 3, height, width)
        .permute(0, 3, 1, 4, 2)
        .reshape(down * height, across * width, 3)
    )
    image = Image.fromarray(((rows.clamp(-1, 1) + 1) * 127.5).round().numpy().astype(np.uint8))
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path, optimize=True)
