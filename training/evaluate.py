"""Measures a model folder against the pictures it was trained on, and draws contact sheets. Changes no weight.

Run `python -m training.evaluate`; `--guidance 2 3 4` compares, `--prompt "a slice of pizza" --seed 7` only draws.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional

from training import data, machine
from training.pipeline import FIXED_PROMPTS, STEPS, TARGET, draw, save_sheet
from training.vae import to_tensor

SMALL = 24  # pixels on a side of the pictures that are compared
FURTHER_SEED = 32
FIRST_SEED = 20_000  # the training's own samples use seeds from 100 to 131


def seen() -> Tensor:
    """Every concept in every style, and its mirror image where training shows it: (concept, picture, 3, h, w)."""
    concepts = data.read_concepts()
    pictures = to_tensor(data.pictures(concepts))
    mirrored = torch.tensor([concept.mirrored for concept in concepts])[:, None, None, None, None]
    return torch.cat([pictures, torch.where(mirrored, pictures.flip(-1), pictures)], dim=1)


def nearest(drawn: Tensor, concepts: Tensor, count: int) -> Tensor:
    """The concepts (n, count) whose picture is nearest: (n, 3, h, w) against (concept, picture, 3, h, w)."""
    mine = small(drawn)
    theirs = small(concepts.flatten(0, 1))
    distances = torch.cdist(mine, theirs).view(len(mine), *concepts.shape[:2]).amin(2)
    return distances.topk(count, largest=False).indices


def small(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) as they are compared, (n, numbers)."""
    size = (SMALL, SMALL)
    return functional.interpolate(pictures, size=size, mode="bilinear", antialias=True, align_corners=False).flatten(1)


def measure_concepts(
    pipeline: StableDiffusionPipeline, pictures: Tensor, seed: int, steps: int, guidance: float, every: int
) -> None:
    """Labels in every style, a seed of its own each: how often the nearest picture is the right concept's."""
    concepts = data.read_concepts()
    prompts = [f"{concept.label}, {style} style" for concept in concepts[::every] for style in data.STYLES]
    wanted = torch.arange(len(concepts))[::every].repeat_interleave(len(data.STYLES))
    drawn = draw(pipeline, prompts, range(seed, seed + len(prompts)), steps=steps, guidance=guidance)
    found = nearest(drawn, pictures, 5)
    first, five = found[:, 0] == wanted, (found == wanted[:, None]).any(1)
    wrong = [f"{p} -> {concepts[int(i)].label}" for p, i, ok in zip(prompts, found[:, 0], first, strict=True) if not ok]
    print(
        f"guidance {guidance:g}, {steps} steps: top-1 {100 * first.float().mean():.1f} %, "
        f"top-5 {100 * five.float().mean():.1f} % of {len(prompts)}"
    )
    print(f"  not found: {'; '.join(wrong) or 'none'}", flush=True)


def measure_rewordings(
    pipeline: StableDiffusionPipeline, pictures: Tensor, name: str, seed: int, steps: int, guidance: float
) -> None:
    """Prompts with a word of no caption, without style words: is the nearest picture what a person would expect?"""
    concepts, rewordings = data.read_concepts(), data.read_rewordings(name)
    prompts = [rewording.prompt for rewording in rewordings]
    drawn = draw(pipeline, prompts, range(seed, seed + len(prompts)), steps=steps, guidance=guidance)
    found = [concepts[int(i)].label for i in nearest(drawn, pictures, 1)[:, 0]]
    right = [label in rewording.answers for label, rewording in zip(found, rewordings, strict=True)]
    wrong = [f"{p} -> {label}" for p, label, ok in zip(prompts, found, right, strict=True) if not ok]
    print(
        f"guidance {guidance:g}: {sum(right)} of {len(right)} of {name}; wrong: {'; '.join(wrong) or 'none'}",
        flush=True,
    )


def measure_seeds(pipeline: StableDiffusionPipeline, seed: int, steps: int, guidance: float) -> None:
    """How far apart two seeds of one prompt draw, as a part of the range of a pixel."""
    prompts = [*FIXED_PROMPTS, *FIXED_PROMPTS]
    drawn = draw(pipeline, prompts, range(seed, seed + len(prompts)), steps=steps, guidance=guidance)
    one, other = drawn.chunk(2)
    print(f"two seeds of one prompt differ by {100 * (one - other).abs().mean() / 2:.1f} % on average")


def contact_sheet(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], path: Path, seed: int, steps: int, guidance: float
) -> None:
    """Unlabelled, eight in a row."""
    drawn = draw(pipeline, prompts, range(seed, seed + len(prompts)), steps=steps, guidance=guidance)
    save_sheet(drawn, 8, path)
    print(f"{path.name}: {path.stat().st_size} bytes")


def fixed_prompts() -> list[str]:
    """The 16 of the contact sheet: two rows in each style."""
    return [f"{prompt}, {style} style" for style in data.STYLES for prompt in FIXED_PROMPTS]


def further_prompts() -> list[str]:
    """32 labels from all over the list, in no order that a judge could know, without a style."""
    labels = [concept.label for concept in data.read_concepts()]
    return random.Random(FURTHER_SEED).sample(labels, 32)


def _guidances(given: Sequence[float] | None, folder: Path) -> list[float]:
    return list(given) if given else [json.loads((folder / "mezzotint.json").read_text())["defaults"]["guidance_scale"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=TARGET)
    parser.add_argument("--guidance", type=float, nargs="+", help="default: what mezzotint.json says")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--every", type=int, default=1, help="measure one concept of so many")
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument("--sheet", type=Path, default=data.HERE.parent / "docs" / "contact_sheet.png")
    parser.add_argument(
        "--rewordings",
        nargs="+",
        choices=["rewordings.txt", "tuning.txt"],
        default=["rewordings.txt"],
        help="only tuning.txt may decide how the model is trained",
    )
    parser.add_argument("--prompt", help="draw this one to --sheet, and measure nothing")
    arguments = parser.parse_args()
    machine.prepare()
    seed, steps = arguments.seed, arguments.steps
    guidances = _guidances(arguments.guidance, arguments.folder)
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(machine.device())
    if arguments.prompt:
        save_sheet(
            draw(pipeline, [arguments.prompt], [seed], steps=steps, guidance=guidances[0]), 1, arguments.sheet, zoom=4
        )
        return
    pictures = seen()
    for guidance in guidances:
        measure_concepts(pipeline, pictures, seed, steps, guidance, arguments.every)
        for name in arguments.rewordings:
            measure_rewordings(pipeline, pictures, name, seed, steps, guidance)
    measure_seeds(pipeline, seed, steps, guidances[0])
    contact_sheet(pipeline, fixed_prompts(), arguments.sheet, seed, steps, guidances[0])
    further = arguments.sheet.with_stem(f"{arguments.sheet.stem}_further")
    contact_sheet(pipeline, further_prompts(), further, seed, steps, guidances[0])


if __name__ == "__main__":
    main()
