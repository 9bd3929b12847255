"""What is asked, complete: `Request` and the values it is made of. Below this nothing is left to a default.

Must not know what was sent nor the rules it met, which are in resolving.py: workers read this and import none of that.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    format: str
    quality: int
    embed_metadata: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlNetUse:
    model: str
    image: str  # asset:ID
    preprocessor: str
    options: dict[str, Any]
    scale: float
    start: float
    end: float
    resize_mode: str
    control_mode: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraUse:
    name: str
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    seed: int  # of image 0
    strength: float  # above 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Hires:
    """The second pass: the picture of the first, enlarged to cover this size, cut to it and drawn on."""

    width: int
    height: int
    upscaler: str
    strength: float
    steps: int  # as num_inference_steps: those that run are fewer by strength


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewUse:
    every_steps: int  # 0: none but those of at_steps
    at_steps: tuple[int, ...]
    max_px: int

    def at(self, step: int) -> bool:
        """Whether the picture after so many steps is wanted."""
        return step in self.at_steps or (self.every_steps > 0 and step % self.every_steps == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookUse:
    url: str
    events: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the caller asked, validated and complete. Crosses to the worker and is stored as it is."""

    model: str
    type: str
    prompt: str
    negative_prompt: str
    prompt_syntax: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    scheduler_options: dict[str, Any]  # those that were given
    eta: float
    seed: int
    num_images: int
    clip_skip: int | None
    image: str | None  # asset:ID
    mask: str | None
    strength: float | None  # None without an image
    mask_blur: int
    mask_fill: str
    padding_mask_crop: int | None
    resize_mode: str
    controlnets: tuple[ControlNetUse, ...]
    loras: tuple[LoraUse, ...]
    output: Output
    priority: int
    timeout_s: float | None
    expires_s: float | None
    device: str | None
    deterministic: bool
    metadata: dict[str, Any]
    variation: Variation | None = None
    hires: Hires | None = None
    webhook: WebhookUse | None = None  # with a default: rows of before it have none
    preview: PreviewUse | None = None
    cancel_on_disconnect: bool = False
    embeddings: tuple[str, ...] = ()  # those that the prompts name

    def seed_of(self, index: int) -> int:
        """The seed of one image. Variations of one picture share it."""
        return self.seed if self.variation is not None else self.seed + index

    def alone(self, index: int) -> "Request":
        """What a session of its own would ask to draw the image of this index."""
        varied = self.variation and replace(self.variation, seed=self.variation.seed + index)
        return replace(self, seed=self.seed_of(index), num_images=1, variation=varied)

    @property
    def passes(self) -> "tuple[Request, ...]":
        """What is drawn one after the other: this without `hires`, and what `hires` asks as a request of its own."""
        hires = self.hires
        if hires is None:
            return (self,)
        second = replace(
            self,
            width=hires.width,
            height=hires.height,
            strength=hires.strength,
            num_inference_steps=hires.steps,
            hires=None,
        )
        return replace(self, hires=None), second

    @property
    def largest(self) -> "Request":
        """Of its passes the one with the most pixels."""
        return max(self.passes, key=lambda one: one.width * one.height)

    @property
    def steps(self) -> int:
        """Those that run for each image: fewer than asked for when they begin at a picture, more with `hires`."""
        if self.hires is not None:
            return sum(one.steps for one in self.passes)
        strength = 1.0 if self.strength is None else self.strength
        return max(1, min(self.num_inference_steps, int(self.num_inference_steps * strength)))


def plain(model: str, prompt: str, seed: int) -> Request:
    """Text to image and nothing else, complete: six small steps, for probes and tests to change."""
    return Request(
        model=model,
        type="text2img",
        prompt=prompt,
        negative_prompt="",
        prompt_syntax="plain",
        width=16,
        height=16,
        num_inference_steps=6,
        guidance_scale=5.0,
        scheduler="ddim",
        scheduler_options={},
        eta=0.0,
        seed=seed,
        num_images=1,
        clip_skip=None,
        image=None,
        mask=None,
        strength=None,
        mask_blur=0,
        mask_fill="original",
        padding_mask_crop=None,
        resize_mode="stretch",
        controlnets=(),
        loras=(),
        output=Output(format="png", quality=95, embed_metadata=True),
        priority=5,
        timeout_s=None,
        expires_s=None,
        device=None,
        deterministic=False,
        metadata={},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    request: Request
    warnings: tuple[dict[str, Any], ...]


def input_files(request: Request, folder: Path) -> dict[str, str]:
    """The files of a session's pictures, by field; they lie in its own folder."""
    fields = [name for name in ("image", "mask") if getattr(request, name) is not None]
    fields += [f"controlnets[{index}].image" for index in range(len(request.controlnets))]
    return {field: str(folder / input_name(field)) for field in fields}


def input_name(field: str) -> str:
    return f"input-{field.replace('[', '-').replace('].', '-')}.png"
