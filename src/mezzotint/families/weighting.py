"""The `weighted` prompt syntax: texts with weights, and where a new window starts. Pure text; must not tokenise."""

import re
from collections import Counter
from collections.abc import Iterator

BREAK = None  # in place of a text: the next one starts in a new window

Part = tuple[str | None, float]
_Span = tuple[int, int, float]  # of parts: the first, the one behind the last, and what they are weighed with

_UP = 1.1
_WEIGHT = re.compile(r":\s*+([+-]?(?:\d++(?:\.\d*+)?|\.\d++))\s*+\)")
_BREAK = re.compile(r"\bBREAK\b")
MAX_WEIGHT = 100.0  # beyond, a number is a slip; the words are drawn as far up as this


def parse(text: str) -> list[Part]:
    r"""Split a prompt into (text, weight) parts, as AUTOMATIC1111 reads it.

    `(x)` is 1.1, `(x:1.5)` is 1.5, `[x]` is 1/1.1; nesting multiplies; `\(`, `\)`, `\[`, `\]`, `\\` are the characters
    themselves; a bracket left open closes at the end; `BREAK` gives (BREAK, 1.0). Never fails.
    """
    parts: list[list[str]] = [[]]  # characters; a bracket begins one where it opens and where it closes
    opened: dict[str, list[int]] = {"(": [], "[": []}
    spans: dict[str, list[_Span]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        spans[kind].append((opened[kind].pop(), len(parts), factor))

    at = 0
    while at < len(text):
        mark = text[at]
        step = 1
        if mark == "\\" and text[at + 1 : at + 2] in ("(", ")", "[", "]", "\\") and at + 1 < len(text):
            parts[-1].append(text[at + 1])
            step = 2
        elif mark in opened:
            opened[mark].append(len(parts))
            parts.append([])
        elif mark == ":" and opened["("] and (found := _WEIGHT.match(text, at)):
            close("(", float(found[1]))
            parts.append([])
            step = found.end() - at
        elif mark == ")" and opened["("]:
            close("(", _UP)
            parts.append([])
        elif mark == "]" and opened["["]:
            close("[", 1 / _UP)
            parts.append([])
        else:
            parts[-1].append(mark)
        at += step
    for kind, factor in (("(", _UP), ("[", 1 / _UP)):
        while opened[kind]:
            close(kind, factor)
    weights = [
        _bounded(round_ * square)
        for round_, square in zip(_factors(spans["("], len(parts)), _factors(spans["["], len(parts)), strict=True)
    ]
    return _joined([("".join(part), weight) for part, weight in zip(parts, weights, strict=True)])


def plain(text: str) -> list[Part]:
    """The `plain` syntax: every character means itself."""
    return [(text, 1.0)]


def _factors(spans: list[_Span], count: int) -> Iterator[float]:
    """Of each of so many parts: the product of the spans around it, which lie within one another or apart."""
    starts, ends = {start: factor for start, _, factor in spans}, Counter(end for _, end, _ in spans)
    around = [1.0]
    for part in range(count):
        del around[len(around) - ends[part] :]
        if part in starts:
            around.append(_bounded(around[-1] * starts[part]))
        yield around[-1]


def _bounded(weight: float) -> float:
    return max(-MAX_WEIGHT, min(MAX_WEIGHT, weight))


def _joined(parts: list[Part]) -> list[Part]:
    """Without empty parts, equal neighbours as one, BREAK on its own."""
    joined: list[Part] = []
    for text, weight in parts:
        for number, piece in enumerate(_BREAK.split(text or "")):
            if number:
                joined.append((BREAK, 1.0))
            if not piece:
                continue
            if joined and joined[-1][0] is not BREAK and joined[-1][1] == weight:
                joined[-1] = (f"{joined[-1][0]}{piece}", weight)
            else:
                joined.append((piece, weight))
    return joined
