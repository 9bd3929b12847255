"""What the bundled model and its adapters draw, through a server: floors that a broken sampler or encoder falls below.

The contact sheets among the documents are the yardstick. They were drawn with other seeds.
"""

import base64
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from mezzotint.image_child import canny
from tests.process.conftest import RunningServer

DOCS = Path(__file__).parent.parent.parent / "docs"
SIZE = 128
ICONS = (  # of docs/contact_sheet.png: two rows in each style
    "a slice of pizza", "a red apple", "a sailboat", "a cat face", "a guitar", "a rocket", "a rainbow", "a cactus",
    "a penguin", "a cup of coffee", "a bicycle", "a castle", "a butterfly", "a birthday cake", "a soccer ball",
    "an umbrella",
)  # fmt: skip
SKETCHED = (  # of the sheets in docs/types, a column each
    "a red apple", "a slice of pizza", "a sailboat", "an umbrella", "a cactus", "a rocket", "a house",
    "a tropical fish",
)  # fmt: skip
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def tiles(sheet: Path) -> Pixels:
    """The pictures of a contact sheet, row by row, (n, 128, 128, 3)."""
    pixels = np.asarray(Image.open(sheet).convert("RGB"))
    rows, columns = pixels.shape[0] // SIZE, pixels.shape[1] // SIZE
    return pixels.reshape(rows, SIZE, columns, SIZE, 3).swapaxes(1, 2).reshape(-1, SIZE, SIZE, 3)


def nearest(drawn: Pixels, known: Pixels) -> list[int]:
    """Which of the known pictures, or of their mirror images, each drawn one is most like, at 24x24."""
    mine, theirs, mirrored = (
        np.stack([cv2.resize(one, (24, 24), interpolation=cv2.INTER_AREA).astype(float) for one in some])
        for some in (drawn, known, np.ascontiguousarray(known[:, :, ::-1]))
    )
    off = [((mine[:, None] - some[None]) ** 2).sum((2, 3, 4)) for some in (theirs, mirrored)]
    return [int(index) for index in np.minimum(*off).argmin(1)]


def draw(server: RunningServer, requests: list[dict[str, Any]]) -> Pixels:
    ids = [server.client.submit(**request)["id"] for request in requests]
    drawn = []
    for session_id in ids:
        session = server.client.wait(session_id)
        assert session["state"] == "succeeded", session["error"]
        drawn.append(np.asarray(Image.open(io.BytesIO(server.client.image(session_id, 0))).convert("RGB")))
    return np.stack(drawn)


def png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def outline() -> Image.Image:
    """A circle low on the left, where no icon of an apple stands."""
    image = Image.new("RGB", (SIZE, SIZE), "white")
    ImageDraw.Draw(image).ellipse((8, 44, 84, 120), fill="red")
    return image


def edges(picture: Pixels) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return canny(np.ascontiguousarray(picture), 100, 200)[:, :, 0] > 0


def edge_score(wanted: Pixels, drawn: Pixels) -> float:
    """F1 of edges, each met by one at most a pixel away."""
    asked, found = edges(wanted), edges(drawn)
    around = [cv2.dilate(one.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for one in (asked, found)]
    precision, recall = (found & around[0]).sum() / max(1, found.sum()), (asked & around[1]).sum() / asked.sum()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def test_a_prompt_draws_its_icon(server: RunningServer) -> None:
    prompts = [f"{prompt}, {('noto', 'fluent')[place % 2]} style" for place, prompt in enumerate(ICONS)]
    drawn = draw(server, [{"prompt": prompt, "seed": seed} for seed, prompt in enumerate(prompts)])
    found = nearest(drawn, tiles(DOCS / "contact_sheet.png"))
    right = [index % len(ICONS) == place for place, index in enumerate(found)]
    assert sum(right) >= 15, [prompt for prompt, ok in zip(prompts, right, strict=True) if not ok]


def test_the_controlnet_follows_edges(server: RunningServer) -> None:
    control = {"type": "canny", "image": png(outline()), "preprocessor": "canny"}
    base = [{"prompt": prompt, "seed": 7} for prompt in ("a red apple", "an orange", "a soccer ball", "a tomato")]
    wanted = np.asarray(outline())
    guided, free = (
        np.mean([edge_score(wanted, picture) for picture in draw(server, requests)])
        for requests in ([{**one, "controlnets": [control]} for one in base], base)
    )
    assert guided >= 0.5
    assert guided >= 2 * free


def test_a_lora_draws_in_its_style_and_at_scale_0_not_at_all(server: RunningServer) -> None:
    rows = tiles(DOCS / "types" / "lora.png").reshape(3, len(SKETCHED), SIZE, SIZE, 3)
    base = [{"prompt": f"{prompt}, noto style", "seed": place} for place, prompt in enumerate(SKETCHED[:4])]
    for row, name in enumerate(("", "blob", "monochrome")):
        drawn = draw(server, [{**one, "loras": [{"name": name}] if name else []} for one in base])
        found = [nearest(drawn[[place]], rows[:, place])[0] for place in range(len(base))]
        assert found.count(row) == len(base), (name, found)
    plain, none = draw(
        server,
        [{**base[0], "deterministic": True, "loras": loras} for loras in ([], [{"name": "blob", "scale": 0.0}])],
    )
    assert np.array_equal(plain, none)


def test_the_lora_of_few_steps_draws_in_four_what_the_model_draws_in_twelve(server: RunningServer) -> None:
    asked = [f"{prompt}, {style} style" for style in ("noto", "fluent") for prompt in ICONS]
    session = server.client.wait(server.client.submit(prompt=asked[0], loras=[{"name": "quick"}])["id"])
    assert (session["request"]["num_inference_steps"], session["request"]["guidance_scale"]) == (4, 1.0)
    assert session["usage"]["steps_run"] == 4
    requests = [{"prompt": prompt, "seed": place} for place, prompt in enumerate(asked)]
    drawn = draw(server, [{**one, "loras": [{"name": "quick"}]} for one in requests])
    found = nearest(drawn, tiles(DOCS / "contact_sheet.png"))
    assert sum(one == place for place, one in enumerate(found)) >= 30
    bare = draw(server, [{**one, "num_inference_steps": 4, "guidance_scale": 1.0} for one in requests[:8]])
    whole = draw(server, requests[:8]).astype(float)
    # the median, since a seed may mirror one of them
    off, off_without = (np.median(np.abs(some - whole).mean((1, 2, 3))) for some in (drawn[:8], bare))
    assert off < 0.7 * off_without


def test_img2img_keeps_more_the_less_strength_it_has(server: RunningServer) -> None:
    sketch = np.asarray(outline()).astype(float)
    drawn = draw(
        server, [{"prompt": "a tomato", "image": png(outline()), "strength": part, "seed": 3} for part in (0.3, 0.6, 1)]
    )
    off = [float(np.abs(picture - sketch).mean()) for picture in drawn]
    assert off[0] < off[1] < off[2]


def test_inpainting_gives_half_a_picture_its_other_half(server: RunningServer) -> None:
    sheet = tiles(DOCS / "contact_sheet.png")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[SIZE // 2 :] = 255
    asked = [
        {
            "prompt": f"{prompt}, noto style",
            "image": png(Image.fromarray(sheet[place])),
            "mask": png(Image.fromarray(mask)),
        }
        for place, prompt in enumerate(ICONS[:8])
    ]
    drawn = draw(server, [{**one, "seed": seed, "mask_fill": "fill"} for seed, one in enumerate(asked)])
    assert np.array_equal(drawn[:, mask == 0], sheet[:8, mask == 0])
    lower = [np.ascontiguousarray(some[:, SIZE // 2 :]) for some in (drawn, sheet)]
    right = [index % len(ICONS) == place for place, index in enumerate(nearest(lower[0], lower[1]))]
    assert sum(right) >= 7, right
