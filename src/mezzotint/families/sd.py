"""Stable Diffusion 1.x and 2.x from a diffusers folder. Must not keep anything of a session between calls."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from mezzotint.families import weighting
from mezzotint.families.base import MAX_WINDOWS, PLAIN, Conditioning, Prompt, Rows
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
        # engine/executors.py puts others in their place, in a copy of this family
        self.executor = PLAIN
        self.run_unet, self.run_decoder = unet_in_torch(self.unet), decoder_in_torch(self.vae)

    def windows(self, text: str, syntax: str) -> int:
        return min(MAX_WINDOWS, len(self._chunks(text, syntax)))

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        return [self._encode(prompt) for prompt in prompts]

    def predict(self, rows: Rows) -> Tensor:
        with torch.inference_mode():
            latents, timesteps = rows.latents.to(self.device, self.dtype), rows.timesteps.to(self.device)
            output = self.run_unet(latents, timesteps, rows.hidden)
        return output.to("cpu", torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        with torch.inference_mode():
            scaled = latents.to(self.device, self.dtype) / self.vae.config.scaling_factor
            pixels = self.run_decoder(scaled).to("cpu", torch.float32)
            pixels = (pixels * 0.5 + 0.5).clamp(0, 1)  # as diffusers' VaeImageProcessor does it
            return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    def _encode(self, prompt: Prompt) -> Conditioning:
        """Chunks as diffusers pads a single one: start, text, end, padding; then one after another along the tokens."""
        frame, inside = self.tokenizer, self.tokenizer.window - 2
        chunks = self._chunks(prompt.text, prompt.syntax)
        count = max(prompt.windows, min(MAX_WINDOWS, len(chunks)))
        kept = [*chunks[:count], *([[]] * (count - len(chunks)))]
        rows = [
            [frame.start, *(token for token, _ in chunk), frame.end, *[frame.pad] * (inside - len(chunk))]
            for chunk in kept
        ]
        weights = [[1.0, *(weight for _, weight in chunk), *[1.0] * (inside + 1 - len(chunk))] for chunk in kept]
        with torch.inference_mode():
            hidden = self.text_encoder(torch.tensor(rows, device=self.device), skip=prompt.clip_skip or 0)
            hidden = _weigh(hidden, torch.tensor(weights, device=self.device, dtype=hidden.dtype))
        return Conditioning(hidden=hidden.flatten(0, 1), windows=count, cut=len(chunks) > MAX_WINDOWS)

    def _chunks(self, text: str, syntax: str) -> list[list[tuple[int, float]]]:
        """Token ids with their weights, by windows. At least one window, the last ones maybe beyond what is encoded."""
        inside = self.tokenizer.window - 2
        chunks: list[list[tuple[int, float]]] = [[]]
        for part, weight in weighting.parse(text) if syntax == "weighted" else weighting.plain(text):
            if part is weighting.BREAK:
                chunks.append([])
                continue
            for token in self.tokenizer.ids(part):
                if len(chunks[-1]) == inside:
                    chunks.append([])
                chunks[-1].append((token, weight))
        return chunks


def unet_in_torch(unet: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(latents (n, c, h, w), timesteps (n,), hidden (n, tokens, channels)) -> output (n, c, h, w)."""

    def run(latents: Tensor, timesteps: Tensor, hidden: Tensor) -> Tensor:
        output: Tensor = unet(latents, timesteps, encoder_hidden_states=hidden, return_dict=False)[0]
        return output

    return run


def decoder_in_torch(vae: Any) -> Callable[[Tensor], Tensor]:
    """Unscaled latents (n, c, h, w) -> pixels (n, 3, H, W) around -1 to 1."""

    def run(latents: Tensor) -> Tensor:
        pixels: Tensor = vae.decode(latents, return_dict=False)[0]
        return pixels

    return run


def _weigh(hidden: Tensor, weights: Tensor) -> Tensor:
    """Scale each token's states and keep each window's mean as it was, as AUTOMATIC1111 does.

    `hidden` (windows, tokens, channels), `weights` (windows, tokens).
    """
    if bool((weights == 1).all()):
        return hidden
    weighed = hidden * weights.unsqueeze(-1)
    before, after = hidden.mean(dim=(1, 2), keepdim=True), weighed.mean(dim=(1, 2), keepdim=True)
    return weighed * (before / after)


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
