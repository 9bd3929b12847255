"""The `weighted` prompt syntax: texts with weights, and where a new window starts. Pure text; must not tokenise."""

import re

BREAK = None  # in place of a text: the next one starts in a new window

Part = tuple[str | None, float]

_UP = 1.1
_WEIGHT = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)")
_BREAK = re.compile(r"\bBREAK\b")
MAX_WEIGHT = 100.0  # beyond, a number is a slip; the words are drawn as far up as this


def parse(text: str) -> list[Part]:
    r"""Split a prompt into (text, weight) parts, as AUTOMATIC1111 reads it.

    `(x)` is 1.1, `(x:1.5)` is 1.5, `[x]` is 1/1.1; nesting multiplies; `\(`, `\)`, `\[`, `\]`, `\\` are the characters
    themselves; a bracket left open closes at the end; `BREAK` gives (BREAK, 1.0). Never fails.
    """
    parts: list[Part] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    at = 0
    while at < len(text):
        mark = text[at]
        step = 1
        if mark == "\\" and text[at + 1 : at + 2] in ("(", ")", "[", "]", "\\") and at + 1 < len(text):
            _add(parts, text[at + 1])
            step = 2
        elif mark in opened:
            opened[mark].append(len(parts))
            parts.append(("", 1.0))  # so that the bracket's content is not joined with what is before
        elif mark == ":" and opened["("] and (found := _WEIGHT.match(text, at)):
            _scale(parts, opened["("].pop(), float(found[1]))
            step = found.end() - at
        elif mark == ")" and opened["("]:
            _scale(parts, opened["("].pop(), _UP)
        elif mark == "]" and opened["["]:
            _scale(parts, opened["["].pop(), 1 / _UP)
        else:
            _add(parts, mark)
        at += step
    for kind, factor in (("(", _UP), ("[", 1 / _UP)):
        for start in opened[kind]:
            _scale(parts, start, factor)
    return _joined(parts)


def plain(text: str) -> list[Part]:
    """The `plain` syntax: every character means itself."""
    return [(text, 1.0)]


def _add(parts: list[Part], character: str) -> None:
    if parts and parts[-1][1] == 1.0:
        parts[-1] = (f"{parts[-1][0]}{character}", 1.0)
    else:
        parts.append((character, 1.0))


def _scale(parts: list[Part], start: int, factor: float) -> None:
    for number in range(start, len(parts)):
        text, weight = parts[number]
        parts[number] = (text, max(-MAX_WEIGHT, min(MAX_WEIGHT, weight * factor)))
    parts.append(("", 1.0))  # what follows is outside


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
