"""Reads WordNet: texts for the tokenizer and the text encoder, and what its nouns mean. Knows no pictures."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path("/usr/share/wordnet")  # Debian's wordnet-base
THINGS = ("05", "06", "13", "17", "19", "20")  # animals, artifacts, food, natural objects and phenomena, plants
_PLURALS = (("ies", "y"), ("ves", "f"), ("es", ""), ("s", ""))


@dataclass(frozen=True, kw_only=True)
class Sense:
    """One meaning of nouns, and the meanings that it is a kind of."""

    sort: str  # the number of WordNet's file of such things
    gloss: str
    kinds: tuple[str, ...]  # keys of senses

    @property
    def is_thing(self) -> bool:
        """Can be drawn."""
        return self.sort in THINGS


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
        if not line.startswith(" ") and parts[1] in THINGS:
            words = [parts[4 + 2 * i] for i in range(int(parts[3], 16))]
            things |= {word for word in words if re.fullmatch(r"[a-z]{2,12}", word)}
    return sorted(things)


def adjectives() -> list[str]:
    """Single words for how a thing can be."""
    lines = (FOLDER / "data.adj").read_text(encoding="utf-8").splitlines()
    words = {line.split(" ")[4] for line in lines if not line.startswith(" ")}
    return sorted(word for word in words if re.fullmatch(r"[a-z]{2,12}", word))


@cache
def senses() -> dict[str, Sense]:
    """Every meaning of a noun, by WordNet's key."""
    found: dict[str, Sense] = {}
    for line in (FOLDER / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue
        fields, gloss = line.split(" | ", 1)
        parts = fields.split(" ")
        pointers = parts[5 + 2 * int(parts[3], 16) :]
        kinds = tuple(
            target for sort, target in zip(pointers[::4], pointers[1::4], strict=False) if sort in ("@", "@i")
        )
        found[parts[0]] = Sense(sort=parts[1], gloss=gloss.split(";")[0].strip(), kinds=kinds)
    return found


@cache
def nouns() -> dict[str, list[str]]:
    """The keys of each noun's senses, the commonest first."""
    lines = (FOLDER / "index.noun").read_text(encoding="utf-8").splitlines()
    entries = [line.split() for line in lines if not line.startswith(" ")]
    return {parts[0].replace("_", " "): parts[-int(parts[2]) :] for parts in entries}


def singular(word: str) -> str | None:
    """The noun itself, or what it is the plural of; None if WordNet has neither."""
    known: Collection[str] = nouns()
    forms = [word, *(word.removesuffix(end) + start for end, start in _PLURALS if word.endswith(end))]
    return next((form for form in forms if form in known), None)


@cache
def above(key: str) -> dict[str, int]:
    """A sense and all that it is a kind of, with the steps up to each."""
    steps, reached = {key: 0}, [key]
    for one in reached:
        for kind in senses()[one].kinds:
            if kind not in steps:
                steps[kind] = steps[one] + 1
                reached.append(kind)
    return steps


@cache
def depth(key: str) -> int:
    """Steps down to a sense from the top, by the shortest way."""
    return min((1 + depth(kind) for kind in senses()[key].kinds), default=0)
