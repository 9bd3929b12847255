"""Stable Diffusion XL's base model from a diffusers folder. Must not keep anything of a session between calls."""

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from mezzotint.families.base import MAX_WINDOWS, Conditioning, Prompt, Rows
from mezzotint.families.clip import ClipTextEncoder, ClipTokenizer
from mezzotint.families.embedding import Named
from mezzotint.families.lora import Adapted
from mezzotint.families.sd import Framed, StableDiffusion, chunks_of


class StableDiffusionXL(StableDiffusion):
    """As StableDiffusion, with two text encoders, a pooled text and the picture's size. Podell et al. 2023,
    arXiv:2307.01952."""

    upcasts_vae = True
    added_names = ("text_embeds", "time_ids")

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype, vae: Path | None = None) -> None:
        super().__init__(path, device, dtype, vae)
        self._second = ClipTextEncoder.load(self.layout, "text_encoder_2", device, torch.float32)
        self._second_tokenizer = ClipTokenizer(*self.layout.vocabulary("tokenizer_2"))
        self.text_encoders["text_encoder_2"] = self._second
        self._adapted_texts["text_encoder_2"] = Adapted(self._second, "text_encoder_2")
        self._empty_is_nothing = bool(self.layout.config("model_index").get("force_zeros_for_empty_prompt", True))

    def windows(self, prompt: Prompt) -> int:
        """The second encoder pads with a sign that prompts use, and so may count their tokens otherwise."""
        second = chunks_of(prompt, self._second_tokenizer, Named(prompt.embeddings, "text_encoder_2"))
        return max(super().windows(prompt), min(MAX_WINDOWS, len(second)))

    def _encode(self, prompt: Prompt) -> Conditioning:
        """Of each encoder the last layer but one, of the second also the pooled text."""
        tokenizers = self.tokenizer, self._second_tokenizer
        named = [Named(prompt.embeddings, part) for part in self.text_encoders]
        read = [chunks_of(prompt, *both) for both in zip(tokenizers, named, strict=True)]
        longest = max(map(len, read))
        count = max(prompt.windows, min(MAX_WINDOWS, longest))
        hidden: list[Tensor] = []
        with torch.inference_mode(), ExitStack() as stack:
            for adapted in self._adapted_texts.values():
                stack.enter_context(adapted.using([prompt.loras] * count))
            encoders = self.text_encoders.values()
            for tokenizer, encoder, own, chunks in zip(tokenizers, encoders, named, read, strict=True):
                framed = Framed(tokenizer, chunks[:count], count, self.device)
                states = encoder.states(framed.ids, own.table)
                hidden.append(framed.weigh(states[-2 - (prompt.clip_skip or 0)]))
                # of all windows, since adapters count rows; the first one's is read
                pooled = encoder.pool(states[-1], framed.end)[0]
            both = torch.cat(hidden, dim=-1).flatten(0, 1)
        if prompt.negative and not prompt.text and self._empty_is_nothing:
            both, pooled = torch.zeros_like(both), torch.zeros_like(pooled)
        return Conditioning(hidden=both, windows=count, cut=longest > MAX_WINDOWS, pooled=pooled)

    def _added(self, rows: Rows, chosen: Tensor | slice) -> dict[str, Tensor]:
        """The pooled text, and the sizes that diffusers sends by default: original, crop corner, target."""
        assert rows.pooled is not None  # noqa: S101  invariant: this family's conditionings carry it
        pooled = rows.pooled[chosen]
        height, width = (side * self.vae_factor for side in rows.latents.shape[2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=torch.float32)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}
