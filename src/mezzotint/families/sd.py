"""Stable Diffusion 1.x and 2.x from a diffusers folder. Must not keep anything of a session between calls."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from mezzotint.families.base import MAX_WINDOWS, Conditioning, Prompt, Rows
from mezzotint.families.clip import ClipTextEncoder, ClipTokenizer
from mezzotint.families.weights import load_module


class StableDiffusion:
    """A UNet on latents, a CLIP text encoder, a KL autoencoder. Rombach et al. 2022, arXiv:2112.10752."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Loads from disk; never from a network. Raises OSError or ValueError when files do not fit together."""
        self.unet = load_module(UNet2DConditionModel, path / "unet", device, dtype)
        if device.type == "cpu":
            self.unet.set_attn_processor(_SizedAttention())
        self.vae = load_module(AutoencoderKL, path / "vae", device, dtype)
        self.text_encoder = ClipTextEncoder.load(path / "text_encoder", device, dtype)
        self.tokenizer = ClipTokenizer(path / "tokenizer")
        self.scheduler_config = _scheduler_config(path)
        self.device, self.dtype = device, dtype
        self.latent_channels = int(self.vae.config.latent_channels)
        self.vae_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)

    def windows(self, text: str) -> int:
        return max(1, min(MAX_WINDOWS, -(-len(self.tokenizer.ids(text)) // (self.tokenizer.window - 2))))

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        return [self._encode(prompt) for prompt in prompts]

    def predict(self, rows: Rows) -> Tensor:
        with torch.inference_mode():
            output = self.unet(
                rows.latents.to(self.device, self.dtype),
                rows.timesteps.to(self.device),
                encoder_hidden_states=rows.hidden,
                return_dict=False,
            )[0]
        return output.to("cpu", torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        with torch.inference_mode():
            scaled = latents.to(self.device, self.dtype) / self.vae.config.scaling_factor
            pixels = self.vae.decode(scaled, return_dict=False)[0].to("cpu", torch.float32)
            pixels = (pixels * 0.5 + 0.5).clamp(0, 1)  # as diffusers' VaeImageProcessor does it
            return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    def _encode(self, prompt: Prompt) -> Conditioning:
        """Chunks as diffusers pads a single one: start, text, end, padding; then one after another along the tokens."""
        frame, inside = self.tokenizer, self.tokenizer.window - 2
        ids = frame.ids(prompt.text)
        count = max(prompt.windows, self.windows(prompt.text))
        chunks = [ids[i * inside : (i + 1) * inside] for i in range(count)]
        rows = [[frame.start, *chunk, frame.end, *[frame.pad] * (inside - len(chunk))] for chunk in chunks]
        with torch.inference_mode():
            hidden = self.text_encoder(torch.tensor(rows, device=self.device), skip=prompt.clip_skip or 0)
        return Conditioning(hidden=hidden.flatten(0, 1), windows=count, cut=len(ids) > inside * MAX_WINDOWS)


class _SizedAttention:
    """On a CPU plain attention is a sixth faster than the fused kernel for short sequences (measured on the bundled
    model: a step of two rows in 33 ms for 40 ms), and needs memory by the square of long ones."""

    def __init__(self) -> None:
        self._plain, self._fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        small = hidden_states.shape[1] <= _PLAIN_TOKENS
        attended: Tensor = (self._plain if small else self._fused)(attn, hidden_states, *args, **kwargs)
        return attended


_PLAIN_TOKENS = 256


def _scheduler_config(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((path / "scheduler" / "scheduler_config.json").read_text())
    return read
