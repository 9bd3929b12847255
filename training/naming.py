"""Finds which label says what a word of WordNet means. Reads no rewording, knows no picture.

Four witnesses are heard, each about one sense of the word: the teacher on the word itself, the teacher on what WordNet
says it means, WordNet's tree, and the labels that the meaning mentions. A word that is a keyword of captions already
goes to one of the concepts that it tells of.
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from training import wordnet
from training.data import Concept

Vectors = Callable[[Sequence[str]], Tensor]

MEANING, KEYWORDS, TREE, MENTIONED = 0.7, 0.5, 0.25, 0.2  # what each witness counts beside the word itself, which is 1
RARER, THING = 0.05, 0.1  # off for each commoner sense of the word; on for a sense that can be drawn
SENSES = 4  # of a word, the commonest first
NEAR_ENOUGH, SAME = 1.2, 2.0  # sums of the witnesses: the least to believe, and what counts as the same word
NO_THING = 1.4  # the least to believe of a word none of whose senses can be drawn
OF_A_KEYWORD = 1.6  # the least to believe of a keyword that tells of other concepts
SHALLOW = 3  # of kinds less deep than this ("object") no likeness is told
_BEFORE = frozenset({"of", "with", "in", "on", "behind", "and"})  # the word before these is the head of a label


class Names:
    """`Names(concepts, teacher)(words)` tells the label of each word that has one."""

    def __init__(self, concepts: Sequence[Concept], vectors: Vectors) -> None:
        self._vectors = vectors
        self._labels = [concept.label for concept in concepts]
        self._told: dict[str, set[int]] = {}
        for index, concept in enumerate(concepts):
            for keyword in concept.keywords:
                self._told.setdefault(keyword, set()).add(index)
        self._of_labels = vectors(self._labels)
        self._of_keywords = vectors([f"{c.label}, {', '.join(c.keywords[:8])}" for c in concepts])
        self._meanings = self._of_keywords.clone()
        self._below: dict[str, Tensor] = {}  # a kind: the steps down from it to what each label means, or infinity
        self._read_labels()
        self._mentions: dict[str, list[tuple[int, float]]] = {}
        for index, label in enumerate(self._labels):
            self._mentions.setdefault(label, []).append((index, 1.0))
            if (one := wordnet.singular(label)) and one != label:
                self._mentions.setdefault(one, []).append((index, 1.0))
            if (head := _head(label.split())) != label:
                self._mentions.setdefault(head, []).append((index, 0.4))

    def __call__(self, words: Sequence[str]) -> list[tuple[str, str, float]]:
        """Words that are nouns, or plurals of them, with their labels and how near those are, up to 1."""
        nouns = {word: noun for word in words if (noun := wordnet.singular(word))}
        keys = sorted({(noun, key) for noun in nouns.values() for key in wordnet.nouns()[noun][:SENSES]})
        texts = [f"{noun}: {wordnet.senses()[key].gloss}" for noun, key in keys]
        of_senses = dict(zip(keys, self._vectors(texts), strict=True))
        found = []
        for (word, noun), vector in zip(nouns.items(), self._vectors(list(nouns)), strict=True):
            heard = [
                self._hear(key, of_senses[noun, key]) - RARER * rank
                for rank, key in enumerate(wordnet.nouns()[noun][:SENSES])
            ]
            score, label = (self._of_labels @ vector + torch.stack(heard).amax(0)).max(0)
            if score >= self._enough(word, noun, int(label)):
                found.append((word, self._labels[int(label)], round(min(1.0, float(score) / SAME), 4)))
        return found

    def _enough(self, word: str, noun: str, label: int) -> float:
        if label not in self._told.get(word, {label}):
            return OF_A_KEYWORD
        drawn = any(wordnet.senses()[key].is_thing for key in wordnet.nouns()[noun][:SENSES])
        return NEAR_ENOUGH if drawn else NO_THING

    def _hear(self, key: str, vector: Tensor) -> Tensor:
        """What the witnesses say of one sense, for every label."""
        sense = wordnet.senses()[key]
        said = MEANING * (self._meanings @ vector) + KEYWORDS * (self._of_keywords @ vector)
        return said + TREE * self._likeness(key) + MENTIONED * self._mentioned(sense.gloss) + THING * sense.is_thing

    def _likeness(self, key: str) -> Tensor:
        """Wu and Palmer's: twice the depth of the nearest common kind, over that and the steps down from it to both."""
        best = torch.zeros(len(self._labels))
        for kind, steps in wordnet.above(key).items():
            if kind in self._below and (deep := wordnet.depth(kind)) >= SHALLOW:
                best = torch.maximum(best, 2 * deep / (2 * deep + steps + self._below[kind]))
        return best

    def _mentioned(self, gloss: str) -> Tensor:
        out = torch.zeros(len(self._labels))
        words = re.findall(r"[a-z-]+", gloss.lower())
        for length in (1, 2, 3):
            for start in range(len(words) - length + 1):
                for index, weight in self._mentions.get(" ".join(words[start : start + length]), ()):
                    out[index] = max(float(out[index]), weight)
        return out

    def _read_labels(self) -> None:
        """What each label means: the sense, of all nouns in it, that fits its keywords best. The head fits better."""
        nouns = [_nouns_in(label) for label in self._labels]
        keys = sorted({(noun, key) for some in nouns for noun, _ in some for key in wordnet.nouns()[noun]})
        texts = [f"{noun}: {wordnet.senses()[key].gloss}" for noun, key in keys]
        of_senses = dict(zip(keys, self._vectors(texts), strict=True))
        for index, some in enumerate(nouns):
            fits = [
                (
                    float(of_senses[noun, key] @ self._of_keywords[index])
                    + favour
                    + (0.05 if wordnet.senses()[key].is_thing else 0.0)
                    - 0.02 * rank,
                    noun,
                    key,
                )
                for noun, favour in some
                for rank, key in enumerate(wordnet.nouns()[noun])
            ]
            if not fits:
                continue
            _, noun, key = max(fits)
            self._meanings[index] = of_senses[noun, key]
            for kind, steps in wordnet.above(key).items():
                self._below.setdefault(kind, torch.full((len(self._labels),), torch.inf))[index] = steps


def _head(words: Sequence[str]) -> str:
    end = next((i for i, word in enumerate(words) if i and word in _BEFORE), len(words))
    return words[end - 1]


def _nouns_in(label: str) -> list[tuple[str, float]]:
    """Nouns in a label and the favour of each: for being much of it, and for ending where its head does."""
    words = label.split()
    found = []
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            if noun := wordnet.singular(" ".join(words[start:end])):
                heads = end == len(words) or words[end] in _BEFORE
                found.append((noun, 0.25 * (end - start) / len(words) + 0.15 * heads))
    return found
