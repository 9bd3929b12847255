"""Measures the ControlNet and the LoRAs through the server's engine, and draws a sheet of every type of request.

Run `python -m training.evaluate_types`; `--sheets` only draws, `--every 4` measures one concept of four.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from mezzotint.image_child import canny
from training import data
from training.evaluate import nearest, seen, small
from training.pipeline import save_sheet
from training.product import Studio, sent
from training.vae import to_tensor

FIRST_SEED = 30_000
PROMPTS = (
    "a red apple",
    "a slice of pizza",
    "a sailboat",
    "an umbrella",
    "a cactus",
    "a rocket",
    "a house",
    "a tropical fish",
)
TAILS = ("", *(f", {style} style" for style in data.STYLES))  # a LoRA must win over the style that a prompt names
Shape = tuple[str, tuple[int, ...], str]
SKETCHES: tuple[tuple[Shape, ...], ...] = (  # of each prompt, by a hand that cannot draw: (what, where of 64, colour)
    (("ellipse", (12, 16, 52, 58), "red"), ("line", (32, 18, 38, 6), "brown"), ("ellipse", (38, 6, 50, 13), "green")),
    (("polygon", (6, 14, 58, 14, 32, 60), "gold"), ("rectangle", (6, 10, 58, 16), "peru"),
     ("ellipse", (20, 22, 29, 31), "red"), ("ellipse", (34, 20, 43, 29), "red"), ("ellipse", (27, 35, 36, 44), "red")),
    (("polygon", (8, 46, 56, 46, 46, 58, 18, 58), "brown"), ("polygon", (33, 6, 33, 42, 56, 42), "orange"),
     ("polygon", (29, 12, 29, 42, 10, 42), "skyblue")),
    (("chord", (6, 8, 58, 60, 180, 360), "purple"), ("rectangle", (30, 34, 33, 58), "saddlebrown")),
    (("rectangle", (26, 10, 38, 56), "green"), ("rectangle", (12, 26, 26, 33), "green"),
     ("rectangle", (12, 16, 19, 30), "green"), ("rectangle", (38, 30, 52, 37), "green"),
     ("rectangle", (45, 18, 52, 34), "green")),
    (("polygon", (32, 4, 44, 20, 44, 48, 20, 48, 20, 20), "silver"), ("polygon", (20, 36, 20, 52, 10, 52), "red"),
     ("polygon", (44, 36, 44, 52, 54, 52), "red"), ("ellipse", (26, 20, 38, 32), "deepskyblue"),
     ("polygon", (24, 50, 40, 50, 32, 62), "orange")),
    (("rectangle", (12, 28, 52, 58), "wheat"), ("polygon", (6, 30, 58, 30, 32, 6), "firebrick"),
     ("rectangle", (28, 40, 38, 58), "saddlebrown")),
    (("ellipse", (8, 20, 48, 46), "dodgerblue"), ("polygon", (44, 33, 60, 20, 60, 46), "dodgerblue"),
     ("ellipse", (16, 27, 21, 32), "black")),
)  # fmt: skip


def sketch(shapes: tuple[Shape, ...]) -> data.Pixels:
    """(128, 128, 3) on white."""
    image = Image.new("RGB", (data.SIZE, data.SIZE), "white")
    brush = ImageDraw.Draw(image)
    for what, places, colour in shapes:
        where = tuple(place * data.SIZE // 64 for place in places)
        if what == "line":
            brush.line(where, colour, width=6)
        elif what == "chord":
            brush.chord(where[:4], places[4], places[5], colour)  # the last two are degrees
        else:
            {"ellipse": brush.ellipse, "rectangle": brush.rectangle, "polygon": brush.polygon}[what](where, colour)
    return np.asarray(image)


def edge_score(wanted: data.Pixels, drawn: data.Pixels, off: int) -> float:
    """F1 of edges (h, w), 0 or more: a point counts as met when the other has one at most `off` pixels away."""
    wanted_edges, drawn_edges = wanted > 0, drawn > 0
    precision = (drawn_edges & _grown(wanted_edges, off)).sum() / max(1, drawn_edges.sum())
    recall = (wanted_edges & _grown(drawn_edges, off)).sum() / max(1, wanted_edges.sum())
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def measure_control(studio: Studio, concepts: list[data.Concept], seed: int) -> None:
    """Edges of pictures that are in no weight, by another artist: how well are they met, with and without the net?"""
    drawn_by_others, pictures = data.pictures_of(data.MEASURING, concepts)
    requests = [{"prompt": concepts[index].label, "seed": seed + place} for place, index in enumerate(drawn_by_others)]
    nets = [{"model": "icons-canny", "image": sent(picture), "preprocessor": "canny"} for picture in pictures]
    guided = studio.draw([{**request, "controlnets": [net]} for request, net in zip(requests, nets, strict=True)])
    free = studio.draw(requests)
    wanted = [_edges(picture) for picture in pictures]
    for off in (0, 1):
        scores = [
            np.mean([edge_score(edges, _edges(picture), off) for edges, picture in zip(wanted, drawn, strict=True)])
            for drawn in (guided, free)
        ]
        told = "met exactly" if off == 0 else f"met within {off} px"
        print(f"edges of {len(wanted)} {data.MEASURING} pictures {told}: F1 {scores[0]:.3f}, without {scores[1]:.3f}")


def measure_lora(studio: Studio, name: str, concepts: list[data.Concept], seed: int) -> None:
    """In whose style is the nearest of the concept's pictures, with the LoRA and without? Is scale 0 without it?"""
    theirs, pictures = data.pictures_of(data.LORA_STYLES[name], concepts)
    choices = np.concatenate([data.pictures(concepts)[theirs], pictures[:, None]], axis=1)  # (n, style, h, w, 3)
    requests = [
        {"prompt": concepts[index].label + TAILS[place % len(TAILS)], "seed": seed + place}
        for place, index in enumerate(theirs)
    ]
    rates = []
    for loras in ([{"name": name}], []):
        drawn = small(to_tensor(studio.draw([{**request, "loras": loras} for request in requests])))
        known = small(to_tensor(choices).flatten(0, 1)).unflatten(0, choices.shape[:2])
        distances = (drawn[:, None] - known).square().sum(-1)  # (concept, style)
        rates.append(100 * (distances.argmin(1) == choices.shape[1] - 1).float().mean())
    print(
        f"{name}: the nearest of a concept's pictures is of its style in {rates[0]:.1f} % of {len(theirs)}, "
        f"without it in {rates[1]:.1f} %"
    )
    some = [{**request, "deterministic": True} for request in requests[:4]]
    none = studio.draw([{**request, "loras": [{"name": name, "scale": 0.0}]} for request in some])
    same = (none == studio.draw(some)).all((1, 2, 3)).sum()
    print(f"  at scale 0 {same} of {len(some)} are the base picture to the last bit")


def measure_quick(studio: Studio, concepts: list[data.Concept], seed: int) -> None:
    """With and without the LoRA of few steps: how often is the nearest of all pictures the right concept's?"""
    everything = data.read_concepts()
    pictures, places = seen(), {concept.label: place for place, concept in enumerate(everything)}
    asked = [(concept.label, style) for concept in concepts for style in data.STYLES]
    wanted = torch.tensor([places[label] for label, _ in asked])
    requests = [{"prompt": f"{label}, {style} style", "seed": seed + i} for i, (label, style) in enumerate(asked)]
    rates, drawn = [], []
    for loras in ([{"name": "quick"}], []):
        drawn.append(to_tensor(studio.draw([{**request, "loras": loras} for request in requests])))
        rates.append(100 * (nearest(drawn[-1], pictures, 1)[:, 0] == wanted).float().mean())
    off = (drawn[0] - drawn[1]).abs().mean() * 127.5
    print(
        f"quick: the nearest picture is the right concept's in {rates[0]:.1f} % of {len(wanted)}, without it in "
        f"{rates[1]:.1f} %; the pictures differ by {off:.1f} of 255"
    )


def sheets(studio: Studio, seed: int) -> Iterator[tuple[str, list[data.Pixels]]]:
    """A type of request and the rows of its sheet, (8, 128, 128, 3) each."""
    sketches = np.stack([sketch(shapes) for shapes in SKETCHES])
    base = [{"prompt": f"{prompt}, noto style", "seed": seed + i} for i, prompt in enumerate(PROMPTS)]
    plain = studio.draw(base)
    mask = np.zeros((data.SIZE, data.SIZE), np.uint8)
    mask[data.SIZE // 2 :] = 255
    grey = plain.copy()
    grey[:, mask > 0] = 160

    def row(fields: Callable[[int], dict[str, Any]]) -> data.Pixels:
        return studio.draw([{**request, **fields(i)} for i, request in enumerate(base)])

    def control(index: int) -> dict[str, Any]:
        return {"controlnets": [{"type": "canny", "image": sent(sketches[index]), "preprocessor": "canny"}]}

    yield "lora", [plain, *(row(lambda i, name=name: {"loras": [{"name": name}]}) for name in data.LORA_STYLES)]
    yield "quick", [plain, row(lambda i: {"loras": [{"name": "quick"}]})]
    yield (
        "controlnet",
        [
            np.stack([canny(picture, 100, 200) for picture in sketches]),
            row(control),
            row(lambda i: {**control(i), "prompt": f"{PROMPTS[i]}, fluent style"}),
            plain,
        ],
    )
    yield (
        "inpainting",
        [
            grey,
            row(lambda i: {"image": sent(plain[i]), "mask": sent(mask)}),
            row(lambda i: {"image": sent(plain[i]), "mask": sent(mask), "prompt": PROMPTS[i - 1]}),
        ],
    )
    strengths = (row(lambda i, s=s: {"image": sent(sketches[i]), "strength": s}) for s in (0.4, 0.6, 0.8))
    yield "img2img", [sketches, *strengths]


def _edges(picture: data.Pixels) -> data.Pixels:
    return canny(np.ascontiguousarray(picture), 100, 200)[:, :, 0]


def _grown(edges: np.ndarray[Any, np.dtype[np.bool_]], by: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    padded = np.pad(edges, by)
    height, width = edges.shape
    moves = [padded[y : y + height, x : x + width] for y in range(2 * by + 1) for x in range(2 * by + 1)]
    return np.logical_or.reduce(moves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--sheets", action="store_true", help="draw them, and measure nothing")
    parser.add_argument("--to", type=Path, default=data.HERE.parent / "docs" / "types")
    arguments = parser.parse_args()
    with Studio() as studio:
        if not arguments.sheets:
            concepts = data.read_concepts()[:: arguments.every]
            measure_control(studio, concepts, arguments.seed)
            for name in data.LORA_STYLES:
                measure_lora(studio, name, concepts, arguments.seed)
            measure_quick(studio, concepts, arguments.seed)
        arguments.to.mkdir(exist_ok=True)
        for kind, rows in sheets(studio, arguments.seed):
            save_sheet(to_tensor(np.concatenate(rows)), len(PROMPTS), arguments.to / f"{kind}.png")


if __name__ == "__main__":
    main()
