"""Stable Diffusion 1.x and 2.x from a diffusers folder. Must not keep anything of a session between calls."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from mezzotint.families import autoencoder, weighting
from mezzotint.families.base import MAX_WINDOWS, Conditioning, ControlNet, Executor, Prompt, Rows
from mezzotint.families.clip import ClipTextEncoder, ClipTokenizer
from mezzotint.families.control import DiffusersControlNet, add_up
from mezzotint.families.embedding import Embedding, Named, read_embedding
from mezzotint.families.layouts import layout_of
from mezzotint.families.lora import Adapted, Lora, LoraSet, read_lora
from mezzotint.families.packing import pack
from mezzotint.families.products import BY_MKL
from mezzotint.families.weights import load_module, module_bytes

Chunk = list[tuple[int, float]]  # tokens of one window with their weights
# (a family's `unet_inputs`, what ControlNets add to each skip, the middle's last: none, or one tensor
# (n, channels, h, w) for each, the adapters by row: none, or n) -> output (n, c, h, w)
RunUnet = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[LoraSet]], Tensor]


class StableDiffusion:
    """A UNet on latents, a CLIP text encoder, a KL autoencoder. Rombach et al. 2022, arXiv:2112.10752."""

    upcasts_vae = False  # whether float16 is too small for the autoencoder's values, unless its config says otherwise
    added_names: tuple[str, ...] = ()  # diffusers' names of what the UNet takes beside latents, time and text

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype, vae: Path | None = None) -> None:
        """Loads from disk; never from a network. `vae`: another autoencoder than its own, of equal latents. `dtype` is
        that of UNet, autoencoder and ControlNets; texts are read once a prompt, in float32.

        Raises OSError, TypeError, ValueError or RuntimeError when files do not fit together.
        """
        self.device, self.dtype = device, dtype
        self.layout = layout_of(path)
        self.unet = load_module(UNet2DConditionModel, self.layout, "unet", device, dtype)
        if device.type == "cpu" and not BY_MKL:
            self.unet.set_attn_processor(_SizedAttention())
        if dtype != torch.float32:
            self.unet.to(memory_format=torch.channels_last)
        self._scaling = float(self.layout.config("vae").get("scaling_factor", 0.18215))
        self.vae = self._load_vae(vae)
        self.text_encoder = ClipTextEncoder.load(self.layout, "text_encoder", device, torch.float32)
        self.tokenizer = ClipTokenizer(*self.layout.vocabulary("tokenizer"))
        self.scheduler_config = self.layout.config("scheduler")
        self.latent_channels = int(self.vae.config.latent_channels)
        self.vae_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.inpaints = int(self.unet.config.in_channels) == 2 * self.latent_channels + 1
        self.text_encoders = {"text_encoder": self.text_encoder}
        self._adapted = Adapted(self.unet, "unet")
        self._adapted_texts = {part: Adapted(module, part) for part, module in self.text_encoders.items()}
        self.copied_bytes = 0  # beside the modules' own: packed, or another executor's
        self.decodes_quickly = False  # in torch, in float32
        # engine/executors.py puts others in their place, in a copy of this family
        self.executor = Executor(name="torch", dtype=str(dtype).removeprefix("torch."))
        self.run_unet, self.run_decoder = unet_in_torch(self.unet, self.added_names), decoder_in_torch(self.vae)

    @property
    def bytes(self) -> int:
        return module_bytes(self.unet, self.vae, *self.text_encoders.values()) + self.copied_bytes

    def pack(self) -> None:
        if self.device.type != "cpu":
            return
        packed = [*self.text_encoders.values()]
        if self.dtype == torch.float32:
            self.decodes_quickly = autoencoder.quicken(self.vae)
            packed += [self.unet] if self.decodes_quickly else [self.unet, self.vae]
        self.copied_bytes += sum(map(pack, packed))

    def windows(self, prompt: Prompt) -> int:
        return min(MAX_WINDOWS, len(chunks_of(prompt, self.tokenizer, Named(prompt.embeddings, "text_encoder"))))

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        return [self._encode(prompt) for prompt in prompts]

    def predict(self, rows: Rows) -> Tensor:
        with torch.inference_mode(), self._adapted.using(rows.loras):
            residuals = add_up(rows) if any(rows.controls) else ()
            return self.run_unet(self.unet_inputs(rows), residuals, rows.loras).to("cpu", torch.float32)

    def unet_inputs(self, rows: Rows) -> tuple[Tensor, ...]:
        """Latents (n, c, h, w), timesteps (n,), hidden (n, tokens, channels), then what `added_names` says. Graphs are
        called with these in this order."""
        latents = rows.latents if rows.extra is None else torch.cat([rows.latents, rows.extra], dim=1)
        added = self._added(rows, slice(None)).values()
        return latents.to(self.device), rows.timesteps.to(self.device), rows.hidden, *added

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype), return_dict=False)[0]
            mean, deviation = posterior.mean, posterior.std
        # what goes on from a checkpoint is contiguous, and kernels differ in the last bits by how their inputs lie
        mean, deviation = (one.to("cpu", torch.float32).contiguous() for one in (mean, deviation))
        return mean * self._scaling, deviation * self._scaling

    def decode(self, latents: Tensor) -> Tensor:
        with torch.inference_mode():
            scaled = latents.to(self.device, self.vae.dtype) / self._scaling
            pixels = self.run_decoder(scaled).to("cpu", torch.float32)
            if not pixels.isfinite().all():
                raise FloatingPointError(f"the autoencoder's values are not finite in {self.executor.dtype}; {_WIDER}")
            pixels = (pixels * 0.5 + 0.5).clamp(0, 1)  # as diffusers' VaeImageProcessor does it
            return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    def load_lora(self, path: Path) -> Lora:
        return read_lora(path, {"unet": self.unet, **self.text_encoders}, self.device)

    def load_embedding(self, path: Path) -> Embedding:
        widths = {part: encoder.width for part, encoder in self.text_encoders.items()}
        return read_embedding(path, widths, self.tokenizer.window - 2, self.device)

    def load_controlnet(self, path: Path) -> ControlNet:
        return DiffusersControlNet(path, self.unet, self.device, self.dtype, self._added)

    def _load_vae(self, other: Path | None) -> Any:
        layout, part = (self.layout, "vae") if other is None else (layout_of(other), "")
        upcast = self.upcasts_vae and self.dtype == torch.float16 and layout.config(part).get("force_upcast", True)
        vae = load_module(AutoencoderKL, layout, part, self.device, torch.float32 if upcast else self.dtype)
        return vae if self.dtype == torch.float32 else vae.to(memory_format=torch.channels_last)

    def _added(self, rows: Rows, chosen: Tensor | slice) -> dict[str, Tensor]:
        """What `added_names` says, in its order, of the chosen rows."""
        return {}

    def _encode(self, prompt: Prompt) -> Conditioning:
        named = Named(prompt.embeddings, "text_encoder")
        chunks = chunks_of(prompt, self.tokenizer, named)
        count = max(prompt.windows, min(MAX_WINDOWS, len(chunks)))
        framed = Framed(self.tokenizer, chunks[:count], count, self.device)
        with torch.inference_mode(), self._adapted_texts["text_encoder"].using([prompt.loras] * count):
            hidden = framed.weigh(self.text_encoder(framed.ids, prompt.clip_skip or 0, named.table))
        return Conditioning(hidden=hidden.flatten(0, 1), windows=count, cut=len(chunks) > MAX_WINDOWS)


def unet_in_torch(unet: Any, added: Sequence[str]) -> RunUnet:
    """Adapters are hooks on its layers."""
    dtype = unet.dtype  # diffusers walks all modules for it

    def run(inputs: Sequence[Tensor], residuals: Sequence[Tensor], _loras: Sequence[LoraSet]) -> Tensor:
        latents, timesteps, hidden, *others = inputs  # times and sizes are exact; diffusers casts what it makes of them
        output: Tensor = unet(
            latents.to(dtype),
            timesteps,
            encoder_hidden_states=hidden.to(dtype),
            added_cond_kwargs=dict(zip(added, others, strict=True)),
            down_block_additional_residuals=tuple(residuals[:-1]) or None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
            return_dict=False,
        )[0]
        return output

    return run


def decoder_in_torch(vae: Any) -> Callable[[Tensor], Tensor]:
    """Unscaled latents (n, c, h, w) -> pixels (n, 3, H, W) around -1 to 1."""

    def run(latents: Tensor) -> Tensor:
        pixels: Tensor = vae.decode(latents, return_dict=False)[0]
        return pixels

    return run


def chunks_of(prompt: Prompt, tokenizer: ClipTokenizer, named: Named) -> list[Chunk]:
    """Token ids with their weights, by windows. At least one window, the last ones maybe beyond what is encoded.

    An embedding is never split: one that does not fit into a window any more begins the next, as in AUTOMATIC1111.
    """
    inside = tokenizer.window - 2
    chunks: list[Chunk] = [[]]
    for part, weight in weighting.parse(prompt.text) if prompt.syntax == "weighted" else weighting.plain(prompt.text):
        if part is weighting.BREAK:
            chunks.append([])
            continue
        for text, tokens in named.pieces(part):
            for together in [tokens] if tokens else [[token] for token in tokenizer.ids(text)]:
                if len(chunks[-1]) + len(together) > inside:
                    chunks.append([])
                chunks[-1] += [(token, weight) for token in together]
    return chunks


class Framed:
    """Chunks as diffusers pads a single one: start, text, end, padding; those missing at the end are empty ones."""

    def __init__(self, frame: ClipTokenizer, chunks: list[Chunk], count: int, device: torch.device) -> None:
        inside = frame.window - 2
        kept = [*chunks, *([[]] * (count - len(chunks)))]
        rows = [
            [frame.start, *(token for token, _ in chunk), frame.end, *[frame.pad] * (inside - len(chunk))]
            for chunk in kept
        ]
        self.ids = torch.tensor(rows, device=device)  # (windows, tokens)
        self.end = rows[0].index(frame.end)  # of the first window
        weights = [[1.0, *(weight for _, weight in chunk), *[1.0] * (inside + 1 - len(chunk))] for chunk in kept]
        self._weights = torch.tensor(weights, device=device)

    def weigh(self, hidden: Tensor) -> Tensor:
        """Scale each token's states, (windows, tokens, channels); each window keeps its mean, as in AUTOMATIC1111."""
        if bool((self._weights == 1).all()):
            return hidden
        weighed = hidden * self._weights.unsqueeze(-1).to(hidden.dtype)
        before, after = hidden.mean(dim=(1, 2), keepdim=True), weighed.mean(dim=(1, 2), keepdim=True)
        return weighed * torch.where(after.abs() > 1e-6, before / after, 1.0)


class _SizedAttention:
    """Beside oneDNN's products plain attention is a sixth faster than the fused kernel for short sequences (measured on
    the bundled model: a step of two rows in 33 ms for 40 ms), and needs memory by the square of long ones."""

    def __init__(self) -> None:
        self._plain, self._fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        small = hidden_states.shape[1] <= _PLAIN_TOKENS
        attended: Tensor = (self._plain if small else self._fused)(attn, hidden_states, *args, **kwargs)
        return attended


_PLAIN_TOKENS = 256
_WIDER = "set another dtype or vae for the model"
