"""Draws the thumbnails by which people know the bundled models, beside them. Changes no weight.

Run `python -m training.previews` when everything is packaged. Each is four pictures in a square, drawn by the server.
"""

from typing import Any

import numpy as np

from mezzotint.image_child import canny
from training import control, data
from training.evaluate_types import PROMPTS, SKETCHES, sketch
from training.pipeline import TARGET, save_sheet
from training.product import Studio, sent
from training.vae import to_tensor

SEED = 40_000
ICONS = ("a slice of pizza", "a penguin", "a rocket", "a cactus")
STYLED = ("a red apple", "an umbrella", "a house", "a mushroom")  # of every LoRA, so that they compare
FOLLOWED = ("a sailboat", "a cactus")


def squares(studio: Studio) -> dict[str, data.Pixels]:
    """A model's name and its four pictures, (4, 64, 64, 3); of the ControlNet two maps and what it made of them."""

    def draw(*requests: dict[str, Any]) -> data.Pixels:
        return studio.draw([{**request, "seed": SEED + place} for place, request in enumerate(requests)])

    found = {TARGET.name: draw(*({"prompt": prompt} for prompt in ICONS))}
    for name in data.LORA_STYLES:
        found[name] = draw(*({"prompt": prompt, "loras": [{"name": name}]} for prompt in STYLED))
    sketches = [sketch(SKETCHES[PROMPTS.index(prompt)]) for prompt in FOLLOWED]
    nets = [{"model": control.NAME, "image": sent(picture), "preprocessor": "canny"} for picture in sketches]
    drawn = draw(*({"prompt": prompt, "controlnets": [net]} for prompt, net in zip(FOLLOWED, nets, strict=True)))
    maps = np.stack([canny(picture, control.LOW, control.HIGH) for picture in sketches])
    found[control.NAME] = np.concatenate([maps, drawn])
    return found


def main() -> None:
    with Studio() as studio:
        for name, pictures in squares(studio).items():
            save_sheet(to_tensor(pictures), 2, TARGET.parent / f"{name}.png")


if __name__ == "__main__":
    main()
