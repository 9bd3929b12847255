"""Embeddings: vectors that stand where a prompt names them, in the place of tokens. Gal et al. 2022, arXiv:2208.01618.

Reads what AUTOMATIC1111, kohya's scripts and diffusers write. Must not know of sessions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mezzotint.families import mentions
from mezzotint.single_file import EMBEDDED


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Embedding:
    """`vectors`: (tokens, channels) by the text encoder that reads them."""

    vectors: Mapping[str, Tensor]
    token: str  # the name in its file, such as `<cat>`

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.vectors.values())


EmbeddingSet = tuple[tuple[str, Embedding], ...]  # by the ids that prompts name them by


def read_embedding(path: Path, widths: Mapping[str, int], window: int, device: torch.device) -> Embedding:
    """`widths`: channels by text encoder, all of which must have their vectors. `window`: tokens that one holds.

    Raises ValueError with the reason when it does not fit.
    """
    held = load_file(path)
    vectors = {EMBEDDED.get(name, "text_encoder"): tensor.float() for name, tensor in held.items()}
    vectors = {part: tensor.reshape(-1, tensor.shape[-1]).to(device) for part, tensor in vectors.items()}
    told = {part: tensor.shape[1] for part, tensor in vectors.items()}
    if told != dict(widths):
        raise ValueError(f"its vectors have {_shown(told)} channels; this model's text has {_shown(widths)}")
    counts = {len(tensor) for tensor in vectors.values()}
    if len(counts) != 1 or max(counts) > window:
        raise ValueError(f"it stands for {max(counts)} tokens; this model reads {window} at a time")
    return Embedding(vectors=vectors, token=next(iter(held)))


class Named:
    """A set as one text encoder reads it. Tokens of embeddings are numbers below zero."""

    def __init__(self, embeddings: EmbeddingSet, part: str) -> None:
        self._names = mentions.names((model_id, one.token) for model_id, one in embeddings)
        self._ids: dict[str, list[int]] = {}
        rows: list[Tensor] = []
        for model_id, one in embeddings:
            self._ids[model_id] = [-1 - len(rows) - number for number in range(len(one.vectors[part]))]
            rows += one.vectors[part]
        self.table = torch.stack(rows) if rows else None  # row i is token -1 - i

    def pieces(self, text: str) -> list[tuple[str, list[int] | None]]:
        """The text in pieces: words, with None, and mentions, with their tokens."""
        return [
            (piece, None if model_id is None else self._ids[model_id])
            for piece, model_id in mentions.split(text, self._names)
        ]


def _shown(widths: Mapping[str, int]) -> str:
    return " and ".join(str(widths[part]) for part in sorted(widths))
