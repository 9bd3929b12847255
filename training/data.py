"""Fetches the icon sets, renders and captions them. Knows no model, and keeps no picture in the repository.

Run it alone, `python -m training.data`, to fetch and render and to see how many pictures and captions there are.
"""

import io
import json
import os
import random
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import resvg_py
from PIL import Image

SIZE = 128
STYLES: dict[str, str] = {"noto": "noto", "fluent": "fluent-emoji-flat"}  # style word in a caption: npm package
LORA_STYLES: dict[str, str] = {"blob": "noto-v1", "monochrome": "fluent-emoji-high-contrast"}  # LoRA: npm package
MEASURING = "twemoji"  # npm package of pictures that measure and are in no weight
PACKAGES = (
    "@iconify-json/noto@1.2.9",  # Apache-2.0
    "@iconify-json/fluent-emoji-flat@1.2.6",  # MIT
    "@iconify-json/noto-v1@1.2.5",  # Apache-2.0
    "@iconify-json/fluent-emoji-high-contrast@1.2.6",  # MIT
    "@iconify-json/twemoji@1.2.5",  # CC-BY-4.0
    "emojibase-data@17.0.0",  # MIT
    "emojilib@4.0.3",  # MIT
    "unicode-emoji-json@0.9.0",  # MIT
)
SHARED_KEYWORD = 6  # a keyword that names more concepts than this ("food") tells the model nothing
HERE = Path(__file__).resolve().parent
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One thing the model can draw. The emoji names its picture in every style."""

    emoji: str
    label: str
    keywords: tuple[str, ...]
    mirrored: bool  # its mirror image shows the same thing


@dataclass(frozen=True, kw_only=True)
class Rewording:
    """A prompt with a word of no caption, and the labels that answer it."""

    prompt: str
    answers: tuple[str, ...]


def work_folder() -> Path:
    """Where everything that training makes lies, outside the repository. Created if missing."""
    folder = Path(os.environ.get("MEZZOTINT_TRAINING", Path.home() / ".cache" / "mezzotint-training"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch() -> Path:
    """Install the pinned npm packages under the work folder; returns their node_modules. Does nothing again."""
    root = work_folder() / "npm"
    modules = root / "node_modules"
    if not all((modules / name.rsplit("@", 1)[0] / "package.json").exists() for name in PACKAGES):
        root.mkdir(exist_ok=True)
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES], cwd=root, check=True
        )
    return modules


def read_concepts() -> list[Concept]:
    """The concepts of concepts.txt, in its order, with their keywords. Held-out words are in none of them."""
    modules = fetch()
    held_out = held_out_words()
    named = [(emoji, label) for emoji, label in (line.split(" ", 1) for line in _lines(HERE / "concepts.txt"))]
    keywords = {emoji: _keywords(modules, emoji, label, held_out) for emoji, label in named}
    uses = Counter(word for some in keywords.values() for word in some)
    labels = {label for _, label in named}
    told = {emoji: tuple(w for w in some if uses[w] <= SHARED_KEYWORD) for emoji, some in keywords.items()}
    # a keyword is often the name of another thing: "cat" of a cat's face
    told = {emoji: tuple(w for w in some if w not in labels) for emoji, some in told.items()}
    groups: dict[str, str] = {codes(e): entry["group"] for e, entry in _unicode(modules).items()}
    concepts = [
        Concept(
            emoji=emoji,
            label=label,
            keywords=told[emoji],
            mirrored=groups[codes(emoji)] not in ("Symbols", "Flags") and not words(label) & {"left", "right"},
        )
        for emoji, label in named
    ]
    assert not [c for c in concepts if words(c.label) & held_out], "a label holds a held-out word"
    assert len({concept.label for concept in concepts}) == len(concepts), "two concepts share a label"
    return concepts


def read_rewordings(name: str = "rewordings.txt") -> list[Rewording]:
    """The prompts of rewordings.txt, which nothing may be chosen by, or those of tuning.txt, which are for that.

    Every answer is a label of concepts.txt.
    """
    return [
        Rewording(prompt=prompt.strip(), answers=tuple(answer.strip() for answer in answers.split(",")))
        for prompt, answers in (line.split("=") for line in _lines(HERE / name))
    ]


def held_out_words() -> frozenset[str]:
    """Words kept out of every caption, so that a prompt with one of them tests the text encoder and not memory."""
    lines = (HERE / "rewordings.txt").read_text(encoding="utf-8").splitlines()
    held = [word for line in lines if line.startswith("# hold out:") for word in line.split(":")[1].split()]
    return frozenset(held) | frozenset(f"{word}s" for word in held)


def pictures(concepts: list[Concept]) -> Pixels:
    """Every concept in every style on white, (concept, style, height, width, 3). Rendered once, then read from disk."""
    emoji = [concept.emoji for concept in concepts]
    return np.stack([_render_all(package, emoji) for package in STYLES.values()], axis=1)


def pictures_of(package: str, concepts: list[Concept]) -> tuple[list[int], Pixels]:
    """The indices of the concepts that a package has drawn, and their pictures (n, height, width, 3) on white."""
    names = _icons(fetch(), package)[1]
    drawn = [index for index, concept in enumerate(concepts) if codes(concept.emoji) in names]
    return drawn, _render_all(package, [concepts[index].emoji for index in drawn])


def all_pictures() -> tuple[list[str], Pixels]:
    """Every picture of both sets that no person, flag or symbol repeats, (n, height, width, 3), with its emoji's name.

    What the VAE and the ControlNet see.
    """
    modules = fetch()
    entries = _unicode(modules)
    emoji = [e for e, entry in entries.items() if entry["group"] not in ("People & Body", "Flags", "Symbols")]
    for package in STYLES.values():
        names = _icons(modules, package)[1]
        emoji = [e for e in emoji if codes(e) in names]
    told = [entries[e]["name"] for _ in STYLES for e in emoji]
    return told, np.concatenate([_render_all(package, emoji) for package in STYLES.values()])


def caption(concept: Concept, style: str, rng: random.Random) -> str:
    """One caption drawn anew: 10 % empty, else a label, label and keywords, or keywords, most with the style named."""
    draw = rng.random()
    if draw < 0.10:
        return ""
    some = rng.sample(concept.keywords, min(len(concept.keywords), rng.randint(1, 3)))
    if draw < 0.65 or not some:
        text = _phrase(concept.label, rng)
    elif draw < 0.90:
        text = ", ".join([_phrase(concept.label, rng), *some])
    else:
        text = ", ".join(some)
    return f"{text}, {style} style" if rng.random() < 0.80 else text


def _phrase(label: str, rng: random.Random) -> str:
    article = "an" if label[0] in "aeiou" else "a"
    return rng.choice(
        (
            label,
            label,
            label,
            f"{article} {label}",
            f"{article} {label}",
            f"the {label}",
            f"an icon of {article} {label}",
        )
    )


def _keywords(modules: Path, emoji: str, label: str, held_out: frozenset[str]) -> tuple[str, ...]:
    found: list[str] = []
    for entry in _emojibase(modules):
        if codes(entry["emoji"]) == codes(emoji):
            found += [entry["label"], *entry.get("tags", [])]
    library: dict[str, list[str]] = _read(modules / "emojilib" / "dist" / "emoji-en-US.json")
    found += library.get(emoji, []) or library.get(emoji.rstrip("\ufe0f"), [])
    plain = [re.sub(r"[_:]", " ", word).lower() for word in found]
    kept = [w for w in plain if w != label and not words(w) & held_out and re.fullmatch(r"[a-z][a-z \-’']*", w)]
    return tuple(sorted(set(kept)))


def _render_all(package: str, emoji: list[str]) -> Pixels:
    modules = fetch()
    icons, names = _icons(modules, package)
    return np.stack([_cached(package, names[codes(e)], icons) for e in emoji])


_rendered: dict[tuple[str, str], Pixels] = {}
_parsed: dict[Path, Any] = {}


def _cached(package: str, name: str, icons: dict[str, Any]) -> Pixels:
    if (package, name) not in _rendered:
        _rendered[package, name] = _render(icons, name)
    return _rendered[package, name]


def _render(icons: dict[str, Any], name: str) -> Pixels:
    """Iconify stores the body of an SVG: wrap it, and let `currentColor` be black."""
    icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    body = icon["body"].replace("currentColor", "#000")
    side = max(width, height)
    view = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {names} viewBox="{view}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, background="white", skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def _icons(modules: Path, package: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A package's drawings, and the names of those by their emoji's code points. noto-v1 names them as noto does."""
    folder = modules / "@iconify-json" / package
    icons: dict[str, Any] = _read(folder / "icons.json")
    names: dict[str, str] = _read(folder / "chars.json") or _read(modules / "@iconify-json" / "noto" / "chars.json")
    drawn = icons["icons"].keys() | icons.get("aliases", {}).keys()
    return icons, {"-".join(c for c in k.split("-") if c != "fe0f"): v for k, v in names.items() if v in drawn}


def _unicode(modules: Path) -> dict[str, Any]:
    entries: dict[str, Any] = _read(modules / "unicode-emoji-json" / "data-by-emoji.json")
    return entries


def _emojibase(modules: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = _read(modules / "emojibase-data" / "en" / "data.json")
    return entries


def _read(path: Path) -> Any:
    if path not in _parsed:
        _parsed[path] = json.loads(path.read_text(encoding="utf-8"))
    return _parsed[path]


def codes(emoji: str) -> str:
    return "-".join(f"{ord(c):x}" for c in emoji if c != "\ufe0f")


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", text.lower()))


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def main() -> None:
    concepts = read_concepts()
    shown = pictures(concepts)
    rng = random.Random(0)
    print(f"{len(concepts)} concepts, pictures {shown.shape}, {len(all_pictures()[0])} pictures for the VAE")
    for concept in rng.sample(concepts, 12):
        print(f"{concept.label}: {caption(concept, 'noto', rng)!r}; keywords {', '.join(concept.keywords)}")
    labels = {concept.label for concept in concepts}
    for rewording in read_rewordings() + read_rewordings("tuning.txt"):
        assert labels.issuperset(rewording.answers), rewording
    rows = [
        np.concatenate(list(shown[i : i + 20].transpose(1, 0, 2, 3, 4).reshape(-1, SIZE, SIZE, 3)), axis=1)
        for i in range(0, len(shown) - 19, 20)
    ]
    Image.fromarray(np.concatenate(rows)).save(work_folder() / "pictures.png")


if __name__ == "__main__":
    main()
