"""Stable Diffusion 1.x and 2.x from a diffusers folder. Must not keep anything of a session between calls."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from mezzotint.families.base import MAX_WINDOWS, Conditioning, Prompt, Rows


class StableDiffusion:
    """A UNet on latents, a CLIP text encoder, a KL autoencoder. Rombach et al. 2022, arXiv:2112.10752."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Loads from disk; never from a network. Raises OSError or ValueError when files do not fit together."""
        own: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        self.unet = UNet2DConditionModel.from_pretrained(path / "unet", dtype=dtype, **own).to(device).eval()
        self.vae = AutoencoderKL.from_pretrained(path / "vae", dtype=dtype, **own).to(device).eval()
        text = CLIPTextModel.from_pretrained(path / "text_encoder", dtype=dtype, **own)
        self.text_encoder = text.to(device).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
        self.scheduler_config = _scheduler_config(path)
        self.device, self.dtype = device, dtype
        self.latent_channels = int(self.vae.config.latent_channels)
        self.vae_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        for module in (self.unet, self.vae, self.text_encoder):
            module.requires_grad_(False)

    def windows(self, text: str) -> int:
        inside = self.tokenizer.model_max_length - 2
        return max(1, min(MAX_WINDOWS, -(-len(self._tokens(text)) // inside)))

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
        inside = self.tokenizer.model_max_length - 2
        tokens = self._tokens(prompt.text)
        kept = tokens[: inside * MAX_WINDOWS]
        count = max(prompt.windows, self.windows(prompt.text))
        chunks = [kept[i * inside : (i + 1) * inside] for i in range(count)]
        start, end, pad = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        ids = torch.tensor([[start, *chunk, end, *[pad] * (inside - len(chunk))] for chunk in chunks])
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = torch.tensor([[1] * (len(chunk) + 2) + [0] * (inside - len(chunk)) for chunk in chunks])
        with torch.inference_mode():
            output = self.text_encoder(
                ids.to(self.device), attention_mask=mask, output_hidden_states=prompt.clip_skip is not None
            )
            if prompt.clip_skip is None:
                hidden = output.last_hidden_state
            else:
                hidden = output.hidden_states[-(prompt.clip_skip + 1)]
                hidden = self.text_encoder.final_layer_norm(hidden)
        return Conditioning(
            hidden=hidden.reshape(-1, hidden.shape[-1]), windows=count, cut=len(tokens) > len(kept)
        )

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def _scheduler_config(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((path / "scheduler" / "scheduler_config.json").read_text())
    return read
