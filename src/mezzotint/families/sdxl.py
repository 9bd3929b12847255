"""Stable Diffusion XL's base model from a diffusers folder. Must not keep anything of a session between calls."""

import json
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from mezzotint.families.base import MAX_WINDOWS, Conditioning, Prompt, Rows
from mezzotint.families.clip import ClipTextEncoder, ClipTokenizer
from mezzotint.families.lora import Adapted
from mezzotint.families.sd import Framed, StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """As StableDiffusion, with two text encoders, a pooled text and the picture's size. Podell et al. 2023,
    arXiv:2307.01952."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(path, device, dtype)
        self._second = ClipTextEncoder.load(path / "text_encoder_2", device, dtype)
        self._second_tokenizer = ClipTokenizer(path / "tokenizer_2")
        self.text_encoders["text_encoder_2"] = self._second
        self._adapted_texts["text_encoder_2"] = Adapted(self._second, "text_encoder_2")
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        self._empty_is_nothing = bool(index.get("force_zeros_for_empty_prompt", True))

    def _encode(self, prompt: Prompt) -> Conditioning:
        """Both encoders read the same chunks; of each the last layer but one, of the second also the pooled text."""
        chunks = self._chunks(prompt.text, prompt.syntax)
        count = max(prompt.windows, min(MAX_WINDOWS, len(chunks)))
        hidden: list[Tensor] = []
        with torch.inference_mode(), ExitStack() as stack:
            for adapted in self._adapted_texts.values():
                stack.enter_context(adapted.using([prompt.loras] * count))
            for frame, encoder in (
                (self.tokenizer, self.text_encoder),
                (self._second_tokenizer, self._second),
            ):
                framed = Framed(frame, chunks[:count], count, self.device)
                states = encoder.states(framed.ids)
                hidden.append(framed.weigh(states[-2 - (prompt.clip_skip or 0)]))
                pooled = encoder.pool(states[-1][0], framed.end)
            both = torch.cat(hidden, dim=-1).flatten(0, 1)
        if prompt.negative and not prompt.text and self._empty_is_nothing:
            both, pooled = torch.zeros_like(both), torch.zeros_like(pooled)
        return Conditioning(hidden=both, windows=count, cut=len(chunks) > MAX_WINDOWS, pooled=pooled)

    def _added(self, rows: Rows, chosen: Tensor | slice) -> dict[str, Tensor] | None:
        """The pooled text, and the sizes that diffusers sends by default: original, crop corner, target."""
        assert rows.pooled is not None  # noqa: S101  invariant: this family's conditionings carry it
        pooled = rows.pooled[chosen]
        height, width = (side * self.vae_factor for side in rows.latents.shape[2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=self.dtype)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}
