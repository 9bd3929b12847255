"""Trains the autoencoder on every usable picture of both sets, the concepts' most. Knows no words.

Run `python -m training.vae --minutes 6.5`. The latents it makes have mean 0 and deviation 1: both are folded into the
convolutions beside them, so that the model's `scaling_factor` is 1.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from training import data, machine, variants
from training.pipeline import save_sheet

BATCH = machine.choose(cpu=16, gpu=96)
ENCODED_AT_ONCE = machine.choose(cpu=64, gpu=512)
CROP = 64  # of a batch on a CPU
RATE = 8e-4
KL = 1e-3  # of one latent number
WHOLE_FROM = 0.75  # the part of the time after which whole pictures are seen on a CPU


def make_vae() -> AutoencoderKL:
    """Eight times smaller on a side, 4 latent channels, 3.3 M parameters, random weights."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        latent_channels=4,
        sample_size=data.SIZE,
        scaling_factor=1.0,
    )


def to_tensor(pictures: data.Pixels) -> Tensor:
    """(..., height, width, 3) bytes to (..., 3, height, width) in -1 to 1."""
    return torch.from_numpy(pictures).movedim(-1, -3).float() / 127.5 - 1


def reconstruction_loss(drawn: Tensor, wanted: Tensor) -> Tensor:
    """L1 of the picture, of its gradients (edges), and of its low frequencies (flat colours)."""
    loss = functional.l1_loss(drawn, wanted)
    loss = loss + 0.5 * functional.l1_loss(functional.avg_pool2d(drawn, 4), functional.avg_pool2d(wanted, 4))
    for side in (-1, -2):
        loss = loss + functional.l1_loss(drawn.diff(dim=side), wanted.diff(dim=side))
    return loss


def train(
    vae: AutoencoderKL, pictures: Tensor, minutes: float, generator: torch.Generator, decoder_only: bool = False
) -> None:
    """Mutates the model. The learning rate follows the time worked, so that it ends on time.

    `pictures` (n, 3, h, w) as bytes, where the model is; no batch shows them as they are, each is moved and resized.

    With `decoder_only` the latents stay what they are, so that a UNet trained on them still fits.
    """
    vae.encoder.requires_grad_(not decoder_only)
    vae.quant_conv.requires_grad_(not decoder_only)
    learning = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    watch = machine.Stopwatch()
    device = machine.device()
    step = 0
    said = time.monotonic()
    while (done := watch.look() / (60 * minutes)) < 1:
        whole = decoder_only or done > WHOLE_FROM or device.type != "cpu"
        count = BATCH // machine.choose(cpu=2 if whole else 1, gpu=1)
        rows = torch.randint(len(pictures), (count,), generator=generator, device=device)
        batch = pictures[rows].float() / 127.5 - 1
        batch = variants.vary(batch, torch.ones(count, dtype=torch.bool, device=device), variants.SHAPES, generator)
        if not whole:
            x, y = torch.randint(0, data.SIZE - CROP + 1, (2,), generator=generator).tolist()
            batch = batch[..., y : y + CROP, x : x + CROP]
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        with machine.autocast():
            posterior = vae.encode(batch).latent_dist
            drawn = vae.decode(posterior.mean if decoder_only else posterior.sample()).sample.float()
        loss = reconstruction_loss(drawn, batch) + KL * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        step += 1
        if time.monotonic() - said > 20:
            said = time.monotonic()
            error = functional.mse_loss(drawn.detach(), batch).item() / 4
            print(
                f"vae {step}: loss {loss:.4f}, {-10 * math.log10(error):.1f} dB, "
                f"{60 * minutes * (1 - done):.0f} s left",
                flush=True,
            )


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Mutates the quant convolutions: latents of these pictures then have mean 0 and deviation 1 in each channel."""
    latents = encode(vae, pictures)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    n = len(mean)
    assert vae.quant_conv is not None
    assert vae.post_quant_conv is not None
    vae.quant_conv.weight[:n] /= deviation[:, None, None, None]
    assert vae.quant_conv.bias is not None
    assert vae.post_quant_conv.bias is not None
    vae.quant_conv.bias[:n] = (vae.quant_conv.bias[:n] - mean) / deviation
    vae.quant_conv.bias[n:] -= 2 * deviation.log()  # the log-variances that go with the means
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight *= deviation[None, :, None, None]


@torch.inference_mode()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """The mean latents of pictures (n, 3, h, w), where the model is."""
    return torch.cat(
        [vae.encode(some.to(vae.device)).latent_dist.mean for some in torch.split(pictures, ENCODED_AT_ONCE)]
    )


@torch.inference_mode()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) in the main memory."""
    return torch.cat([vae.decode(some).sample.cpu() for some in torch.split(latents, ENCODED_AT_ONCE)])


def decibels(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Peak signal to noise of encoding and decoding, over pictures in -1 to 1."""
    return -10 * math.log10(functional.mse_loss(decode(vae, encode(vae, pictures)).clamp(-1, 1), pictures).item() / 4)


def folder() -> Path:
    return data.work_folder() / "vae"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.5)
    parser.add_argument("--refine", action="store_true", help="train on the decoder alone; a UNet keeps fitting")
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()
    machine.prepare()
    torch.manual_seed(arguments.seed)
    shown = data.pictures(data.read_concepts()).reshape(-1, data.SIZE, data.SIZE, 3)
    concepts = to_tensor(shown)
    vae = AutoencoderKL.from_pretrained(folder()) if arguments.refine else make_vae()
    vae.to(machine.device())
    seen = torch.from_numpy(np.concatenate([data.all_pictures()[1], *[shown] * 3])).permute(0, 3, 1, 2)
    generator = machine.generator(arguments.seed)
    train(vae, seen.to(machine.device()), arguments.minutes, generator, decoder_only=arguments.refine)
    vae.eval()
    if not arguments.refine:
        fold_normalisation(vae, concepts)
    vae.save_pretrained(folder())
    print(f"{decibels(vae, concepts):.1f} dB on the concepts' pictures")
    some = concepts[: 24 * 16 : 16]
    save_sheet(torch.cat([some, decode(vae, encode(vae, some))]), 24, folder() / "reconstructions.png")


if __name__ == "__main__":
    main()
