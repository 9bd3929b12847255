"""Reads WordNet: texts for the tokenizer and the text encoder, and which thing a word names. Knows no pictures."""

import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

FOLDER = Path("/usr/share/wordnet")  # Debian's wordnet-base
SENSES = 4  # of a word, the commonest first
FURTHEST = 2  # steps up, from a word to what it is a kind of


def texts() -> Iterator[str]:
    """Words and first glosses of WordNet, for the tokenizer and the text encoder."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (FOLDER / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):
                continue
            fields, gloss = line.split(" | ", 1)
            parts = fields.split(" ")
            words = [parts[4 + 2 * i].replace("_", " ").split("(")[0] for i in range(int(parts[3], 16))]
            yield ", ".join(words[:3])
            yield f"{words[0]}: {gloss.split(';')[0].strip()}"


def things() -> list[str]:
    """Single words for things that can be drawn: animals, artifacts, food, natural objects and phenomena, plants."""
    things: set[str] = set()
    for line in (FOLDER / "data.noun").read_text(encoding="utf-8").splitlines():
        parts = line.split(" ")
        if not line.startswith(" ") and parts[1] in ("05", "06", "13", "17", "19", "20"):
            words = [parts[4 + 2 * i] for i in range(int(parts[3], 16))]
            things |= {word for word in words if re.fullmatch(r"[a-z]{2,12}", word)}
    return sorted(things)


def adjectives() -> list[str]:
    """Single words for how a thing can be."""
    lines = (FOLDER / "data.adj").read_text(encoding="utf-8").splitlines()
    words = {line.split(" ")[4] for line in lines if not line.startswith(" ")}
    return sorted(word for word in words if re.fullmatch(r"[a-z]{2,12}", word))


def kinds(word: str, known: Collection[str]) -> tuple[int, list[str]] | None:
    """What a noun is, of the words known: how many steps up its kinds, and the known ones met there; None if none is.

    A synonym is no step up. Of two senses that are as near, the commoner is taken.
    """
    words_of, kinds_of, senses_of = _nouns()
    reached = [[sense] for sense in senses_of.get(word, [])[:SENSES]]
    for steps in range(FURTHEST + 1):
        for synsets in reached:
            met = sorted({w for synset in synsets for w in words_of[synset] if w in known and w != word})
            if met:
                return steps, met
        reached = [[kind for synset in synsets for kind in kinds_of[synset]] for synsets in reached]
    return None


@cache
def _nouns() -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, list[str]]]:
    """The words of each synset, the synsets it is a kind of, and the synsets of each word."""
    words_of: dict[str, list[str]] = {}
    kinds_of: dict[str, list[str]] = {}
    for line in (FOLDER / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue
        parts = line.split(" | ", 1)[0].split(" ")
        words = int(parts[3], 16)
        words_of[parts[0]] = [parts[4 + 2 * i].replace("_", " ").lower() for i in range(words)]
        pointers = parts[5 + 2 * words :]
        kinds_of[parts[0]] = [
            target for sort, target in zip(pointers[::4], pointers[1::4], strict=False) if sort in ("@", "@i")
        ]
    senses_of: dict[str, list[str]] = {}
    for line in (FOLDER / "index.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            parts = line.split()
            senses_of[parts[0].replace("_", " ")] = parts[-int(parts[2]) :]
    return words_of, kinds_of, senses_of
