"""Writes the list of everything that both icon sets draw, `all/concepts.txt`, by rules. Renders and trains nothing.

Run `python -m training.concepts`. The 218 things of `concepts.txt` keep the labels that were written for them by hand.
"""

import json
import re
from typing import Any

from training import data

TARGET = data.HERE / "all" / "concepts.txt"
LEFT_OUT = re.compile(  # what a word cannot name, or what differs from another picture by a detail
    r"o’clock|-thirty|keycap|arrow|square|button|^input |^Japanese “|facing right"
    r"|^(man|woman|men|women)\b(?!’)|circled M|^(male|female) sign|-pointed|part alternation"
)
NAMED = {  # Unicode's name: what a person would type, where another concept has that name or nobody uses it
    "red triangle pointed up": "red triangle",
    "red triangle pointed down": "red triangle upside down",
    "busts in silhouette": "two people in silhouette",
    "bust in silhouette": "person in silhouette",
    "articulated lorry": "articulated truck",  # these words are kept out of the captions, to measure with
    "oncoming automobile": "oncoming car",
    "whale": "swimming whale",
    "snowman": "snowman in falling snow",
}
HEAD = """# Everything that both icon sets draw, written by `python -m training.concepts`: an emoji, then its label.
# Left out: people and hands that have skin tones, flags of countries, clock faces, keycaps, arrows, squares, buttons.
"""


def grouped() -> dict[str, list[tuple[str, str]]]:
    """By Unicode's groups: the emoji and the label of each concept. No label comes twice."""
    modules = data.fetch()
    entries: dict[str, Any] = json.loads((modules / "unicode-emoji-json" / "data-by-emoji.json").read_text())
    by_hand = data.read_labels(data.HERE / "concepts.txt")
    first = {data.codes(emoji): label for emoji, label in by_hand}
    held_out = data.held_out_words(TARGET.parent / "rewordings.txt")
    drawn = [data.names_of(package) for package in data.STYLES.values()]
    labels = set(first.values())
    groups: dict[str, list[tuple[str, str]]] = {}
    for emoji, entry in entries.items():
        codes = data.codes(emoji)
        if not all(codes in names for names in drawn):
            continue
        if codes not in first and (entry["skin_tone_support"] or _is_variant(emoji) or LEFT_OUT.search(entry["name"])):
            continue
        label = first.get(codes) or _label(entry["name"])
        assert codes in first or label not in labels, f"two concepts share a label: {label}"
        assert not data.words(label) & held_out, f"a label holds a held-out word: {label}"
        labels.add(label)
        groups.setdefault(entry["group"], []).append((emoji, label))
    return groups


def _label(name: str) -> str:
    return NAMED.get(name, name).replace("’", "'").replace("“", "").replace("”", "").replace("ñ", "n").lower()


def _is_variant(emoji: str) -> bool:
    return any(0x1F3FB <= ord(c) <= 0x1F3FF or c in "♂♀👨👩" for c in emoji if len(emoji) > 1)


def main() -> None:
    lines = [HEAD]
    count = 0
    for group, concepts in grouped().items():
        lines += [f"\n# {group}\n", *(f"{emoji} {label}\n" for emoji, label in concepts)]
        count += len(concepts)
    TARGET.write_text("".join(lines), encoding="utf-8")
    print(f"{count} concepts")


if __name__ == "__main__":
    main()
