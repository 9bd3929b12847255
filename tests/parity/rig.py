"""Our engine and diffusers' pipelines over the same folders: what each draws for the same request."""

import itertools
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from mezzotint.engine.engine import Engine
from mezzotint.engine.meter import HostMeter
from mezzotint.families.base import Family
from mezzotint.families.sd import StableDiffusion
from mezzotint.families.sdxl import StableDiffusionXL
from mezzotint.families.table import SCHEDULERS
from mezzotint.request import Request
from mezzotint.workers import wire
from tests.requests import request

CPU = torch.device("cpu")
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

COMPANY = [
    request(prompt="a blue house on a hill by the sea", seed=100, num_inference_steps=3, scheduler="euler"),
    request(prompt="", seed=101, num_inference_steps=9, guidance_scale=1.0, scheduler="dpm_multistep"),
    request(prompt="fog", negative_prompt="sun", seed=102, num_inference_steps=5, scheduler="heun", num_images=2),
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request with its files: pictures by field, adapters in the request's order."""

    request: Request
    files: dict[str, Path] = field(default_factory=dict)
    nets: tuple[Path, ...] = ()
    loras: tuple[Path, ...] = ()
    embeddings: tuple[Path, ...] = ()  # whose names the oracle's pipeline knows already
    latents: Tensor | None = None  # in place of the input picture, for the oracle


@dataclass(frozen=True)
class Drawn:
    latents: Tensor  # (channels, h, w), before the decoder
    pixels: Pixels


class Rig:
    """One model folder, in an engine of ours and in the pipelines of diffusers."""

    def __init__(self, path: Path, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> None:
        torch.set_num_threads(1)  # the model is too small for more
        self.path = path
        self.is_xl = (path / "text_encoder_2").exists()
        kind = StableDiffusionXL if self.is_xl else StableDiffusion
        self.family: StableDiffusion = kind(path, device, dtype)
        self.family.pack()  # as a worker does
        self.pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(path, dtype=torch.float32)
        self.config = dict(self.pipeline.scheduler.config)
        self.calls: list[int] = []  # rows of each model call of the last `draw`

    def draw(self, asked: Sequence[Asked | Request], *, stagger: int = 0, max_rows: int = 32) -> list[list[Drawn]]:
        """Run all through one engine, a new one joining every `stagger` steps (0: all at once)."""
        drawn: dict[tuple[str, int], Drawn] = {}
        watched = _Watched(self.family)
        self.calls = watched.calls

        def keep(pixels: Tensor, submit: wire.Submit, index: int) -> tuple[bytes, bytes]:
            drawn[submit.session_id, index] = Drawn(watched.decoded[0], pixels.numpy())
            return b"-", b""

        def load(model: wire.ModelRef) -> Family:
            return watched

        ticks = itertools.count()
        engine = Engine(
            load, keep, lambda: float(next(ticks)), meter=HostMeter(), budget_bytes=1 << 30, max_rows=max_rows
        )
        waiting = [(i, one if isinstance(one, Asked) else Asked(request=one)) for i, one in enumerate(asked)]
        images = [one.request.num_images for _, one in waiting]
        steps = 0
        while waiting or not engine.idle:
            while waiting and (not stagger or steps >= waiting[0][0] * stagger):
                number, one = waiting.pop(0)
                submit = wire.Submit(
                    session_id=str(number),
                    attempt=1,
                    request=one.request,
                    model=_ref(self.path, "checkpoint"),
                    controlnets=tuple(_ref(path, "controlnet") for path in one.nets),
                    loras=tuple(_ref(path, "lora") for path in one.loras),
                    embeddings=tuple(_ref(path, "embedding") for path in one.embeddings),
                    inputs={name: str(path) for name, path in one.files.items()},
                )
                engine.submit(submit)
            for message, _ in engine.step():
                assert not (isinstance(message, wire.Ended) and message.outcome != "succeeded"), message
            for thread in threading.enumerate():  # or who needs an adapter would come when its company has gone
                if thread.name.startswith("load"):
                    thread.join()
            steps += 1
        return [[drawn[str(i), k] for k in range(count)] for i, count in enumerate(images)]

    def oracle(self, one: Asked | Request, index: int = 0) -> Drawn:
        """What diffusers' own pipeline makes of it; an inpainting with the input pasted back outside the mask."""
        asked = one if isinstance(one, Asked) else Asked(request=one)
        what = asked.request
        pipeline = self._pipeline(asked)
        seed = what.seed + index
        names = {name: f"use_{name}" for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas")}
        extra: dict[str, Any] = {names.get(name, name): value for name, value in what.scheduler_options.items()}
        if what.scheduler == "pndm":
            extra["skip_prk_steps"] = True
        if what.scheduler == "dpm_sde":
            extra["noise_sampler_seed"] = seed
        pipeline.scheduler = getattr(diffusers, SCHEDULERS[what.scheduler]).from_config(self.config, **extra)
        size = (what.width, what.height)
        pictures, image, mask = self._pictures(asked, size)
        with warnings.catch_warnings(action="ignore"):  # peft warns of a second adapter
            for number, path in enumerate(asked.loras):
                pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"lora{number}")
        if asked.loras:
            pipeline.set_adapters([f"lora{i}" for i in range(len(asked.loras))], [use.scale for use in what.loras])
        seen: list[Tensor] = []

        def keep(_pipeline: Any, _step: int, _timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
            seen.append(kept["latents"])
            return kept

        try:
            pipeline(
                **self._texts(what),
                **pictures,
                num_inference_steps=what.num_inference_steps,
                guidance_scale=what.guidance_scale,
                eta=what.eta,
                generator=torch.Generator("cpu").manual_seed(seed),
                callback_on_step_end=keep,
            )
        finally:
            if asked.loras:
                pipeline.unload_lora_weights()
        latents = seen[-1]
        with torch.no_grad():
            decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
        pixels = (decoded[0].permute(1, 2, 0).numpy() * 0.5 + 0.5).clip(0, 1)
        pixels = (pixels * 255).round().astype(np.uint8)
        if mask is not None and image is not None:
            pixels = self._pasted(what, pixels, image, mask)
        return Drawn(latents[0], pixels)

    def _pipeline(self, asked: Asked) -> Any:
        what = asked.request
        kind = ("ControlNet" if asked.nets else "") + ("Inpaint" if what.mask else "Img2Img" if what.image else "")
        name = f"StableDiffusion{'XL' if self.is_xl else ''}{kind}Pipeline"
        parts = dict(self.pipeline.components)
        if asked.nets:
            modes = [use.control_mode for use in what.controlnets]
            nets = [_net(path, mode) for path, mode in zip(asked.nets, modes, strict=True)]
            parts["controlnet"] = nets[0] if len(nets) == 1 else nets
        more = {} if self.is_xl else {"requires_safety_checker": False}
        if self.is_xl and not (what.image and not what.mask and not asked.nets):
            parts.pop("watermark", None)
        pipeline = getattr(diffusers, name)(**parts, **more)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _pictures(self, asked: Asked, size: tuple[int, int]) -> tuple[dict[str, Any], Any, Any]:
        what = asked.request
        image: Any = asked.latents
        if what.image and image is None:
            image = _sized(asked.files["image"], "RGB", size, what.resize_mode)
        mask = _sized(asked.files["mask"], "L", size, what.resize_mode) if what.mask else None
        if mask is not None and what.mask_blur:
            mask = VaeImageProcessor.blur(mask, what.mask_blur)
        found: dict[str, Any] = {"width": size[0], "height": size[1]}
        controls = [
            _sized(asked.files[f"controlnets[{i}].image"], "RGB", size, use.resize_mode)
            for i, use in enumerate(what.controlnets)
        ]
        if controls:
            uses = what.controlnets
            one = len(controls) == 1
            found["control_image" if image is not None else "image"] = controls[0] if one else controls
            found["controlnet_conditioning_scale"] = uses[0].scale if one else [use.scale for use in uses]
            found["control_guidance_start"] = uses[0].start if one else [use.start for use in uses]
            found["control_guidance_end"] = uses[0].end if one else [use.end for use in uses]
            found["guess_mode"] = all(use.control_mode == "control" for use in uses)
        if image is not None:
            found |= {"image": image, "strength": what.strength}
        if mask is not None:
            found |= {"mask_image": mask, "padding_mask_crop": what.padding_mask_crop}
        elif image is not None and not controls:
            del found["width"], found["height"]
        return found, image, mask

    def _pasted(self, what: Request, pixels: Pixels, image: Any, mask: Any) -> Pixels:
        processor = VaeImageProcessor()
        crop = None
        if what.padding_mask_crop is not None:
            crop = processor.get_crop_region(mask, what.width, what.height, pad=what.padding_mask_crop)
        return np.array(processor.apply_overlay(mask, image, Image.fromarray(pixels), crop))

    def _texts(self, what: Request) -> dict[str, Any]:
        if self.is_xl:
            return {
                "prompt": what.prompt,
                "negative_prompt": what.negative_prompt or None,
                "clip_skip": what.clip_skip,
            }
        if what.clip_skip:
            return {
                "prompt_embeds": self._skipped(what.prompt, what.clip_skip),
                "negative_prompt": what.negative_prompt,
            }
        return {"prompt": what.prompt, "negative_prompt": what.negative_prompt}

    def _skipped(self, prompt: str, clip_skip: int) -> Tensor:
        """What the pipeline's `clip_skip` does; with this transformers it looks for a `text_model` that is gone."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        length = tokenizer.model_max_length
        ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            hidden = encoder(ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
            skipped: Tensor = encoder.final_layer_norm(hidden)
        return skipped


class _Watched:
    """The family, with the latents that it was last given to decode and the rows of each call."""

    def __init__(self, family: Any) -> None:
        self._family = family
        self.calls: list[int] = []
        self.decoded: Tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def predict(self, rows: Any) -> Tensor:
        self.calls.append(len(rows.latents))
        output: Tensor = self._family.predict(rows)
        return output

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded = latents
        pixels: Tensor = self._family.decode(latents)
        return pixels


def save_pictures(root: Path) -> None:
    """`image.png`, `edges.png` and `mask.png`, of 16 pixels a side."""
    noise = np.random.default_rng(5)
    for name in ("image", "edges"):
        big = Image.fromarray(noise.integers(0, 256, (4, 4, 3), dtype=np.uint8), "RGB")
        big.resize((16, 16), Image.Resampling.NEAREST).save(root / f"{name}.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[4:11, 5:12] = 255
    Image.fromarray(mask, "L").save(root / "mask.png")


def difference(a: Drawn, b: Drawn) -> float:
    """Mean absolute difference of pixels, of 255."""
    return float(np.abs(a.pixels.astype(float) - b.pixels.astype(float)).mean())


def apart(a: Drawn, b: Drawn) -> float:
    """How far the latents are from one another, of the length of `b`'s."""
    return float((a.latents - b.latents).norm() / b.latents.norm())


def assert_equal(ours: Drawn, theirs: Drawn) -> None:
    """The bars of parity: pixels and, apart from the decoder, latents."""
    assert theirs.pixels.std() >= 20, "the oracle's picture says too little to compare with"
    off = apart(ours, theirs)
    assert off <= 1e-3, f"the latents are off by {off}"
    assert difference(ours, theirs) <= 0.5


def _ref(path: Path, kind: str) -> wire.ModelRef:
    name = path.stem if kind == "embedding" else path.name  # by which prompts name it
    return wire.ModelRef(id=name, kind=kind, family="", path=str(path), bytes=1, sha256=path.name)


def _net(path: Path, mode: str) -> Any:
    """A ControlNet that fades towards the outer skips as AUTOMATIC1111's do, unless it is balanced. diffusers has the
    pipelines' part of that (`guess_mode`: no net for the negative prompt); its own fade is for models of full size."""
    net = diffusers.ControlNetModel.from_pretrained(path)
    if mode != "balanced" and not net.config.global_pool_conditions:
        run = net.forward

        def faded(*args: Any, guess_mode: bool = False, **kwargs: Any) -> Any:
            down, middle = run(*args, **kwargs)
            return [part * 0.825 ** (len(down) - i) for i, part in enumerate(down)], middle

        net.forward = faded
    return net


def _sized(path: Path, mode: str, size: tuple[int, int], resize_mode: str) -> Image.Image:
    with Image.open(path) as file:
        image = file.convert(mode)
    if image.size == size or resize_mode == "original":
        return image
    if resize_mode == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    name = {"crop": "crop", "pad": "fill"}[resize_mode]
    sized: Image.Image = VaeImageProcessor().resize(image, size[1], size[0], name)
    return sized
