"""Turns a session into trajectories: text, pictures and adapters in, first latents out. Must not run a UNet.

The draws of noise come in the order of diffusers' pipelines: the input picture's sample, the noise, the masked
picture's sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from mezzotint.engine.inputs import Pictures
from mezzotint.engine.samplers import Sampler
from mezzotint.engine.trajectory import BatchKey, ControlPlan, Kept, SecondPass, Trajectory
from mezzotint.families.base import Conditioning, ControlNet, Family
from mezzotint.families.lora import LoraSet
from mezzotint.request import Request, Variation


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Parts:
    """All that the images of a session have in common."""

    family: Family
    model: str  # digest
    session_id: str
    request: Request
    text: Conditioning
    negative: Conditioning | None
    pictures: Pictures
    nets: Sequence[ControlNet]
    loras: LoraSet
    larger: Sequence[Tensor] = ()  # the ControlNets' pictures at the size of the second pass
    done: Sequence[int] = ()  # images that need not be drawn any more


def trajectories(parts: Parts) -> list[Trajectory]:
    """One for each image that is to be drawn, at its first step.

    For a UNet that takes a mask a text alone is an empty picture, all of which is to be drawn.
    """
    if parts.family.inpaints and parts.pictures.image is None:
        size = parts.request.passes[0].height, parts.request.passes[0].width
        empty = replace(parts.pictures, image=torch.zeros(1, 3, *size), mask=torch.ones(1, 1, *size))
        parts = replace(parts, pictures=empty)
    encoded = _Encoded(parts.family, parts.pictures)
    return [_trajectory(parts, encoded, index) for index in range(parts.request.num_images) if index not in parts.done]


class _Encoded:
    """The input pictures' latents, encoded once for all images of a session; each image draws its own sample."""

    def __init__(self, family: Family, pictures: Pictures) -> None:
        self._family, self._pictures = family, pictures
        self._known: dict[bool, tuple[Tensor, Tensor]] = {}  # masked or not -> mean and deviation

    def sample(self, sampler: Sampler, *, masked: bool = False) -> Tensor:
        """Of the input picture; with `masked` of what the mask leaves of it."""
        image, mask = self._pictures.image, self._pictures.mask
        assert image is not None  # noqa: S101  invariant: asked for only with an image
        if masked not in self._known:
            kept = image * (mask < 0.5) if masked and mask is not None else image
            self._known[masked] = self._family.encode_pixels(kept)
        mean, deviation = self._known[masked]
        return mean + deviation * sampler.draw(tuple(mean.shape))


def key(parts: Parts, index: int, request: Request) -> BatchKey:
    """What the image of this index shares calls by in this pass of the request."""
    family = parts.family
    return BatchKey(
        model=parts.model,
        executor=family.executor.name,
        dtype=family.executor.dtype,
        height=request.height // family.vae_factor,
        width=request.width // family.vae_factor,
        windows=parts.text.windows,
        alone=f"{parts.session_id}/{index}" if request.deterministic else "",
    )


def _trajectory(parts: Parts, encoded: _Encoded, index: int) -> Trajectory:
    request, family = parts.request.passes[0], parts.family
    height, width = request.height // family.vae_factor, request.width // family.vae_factor
    shape = (1, family.latent_channels, height, width)
    sampler = Sampler(request, family.scheduler_config, request.seed_of(index))
    latents, extra, kept = _start(parts, encoded, sampler, shape, request.alone(index).variation)
    return Trajectory(
        key=key(parts, index, request),
        family=family,
        index=index,
        seed=request.seed_of(index),
        sampler=sampler,
        latents=latents,
        text=parts.text,
        negative=parts.negative,
        guidance_scale=request.guidance_scale,
        priority=request.priority,
        extra=extra,
        kept=kept,
        shows=request.preview is not None,
        loras=parts.loras,
        controls=_controls(parts, parts.pictures.controls),
        second=_second(parts, index),
    )


def _second(parts: Parts, index: int) -> SecondPass | None:
    hires = parts.request.hires
    if hires is None:
        return None
    request = parts.request.passes[1]
    return SecondPass(
        key=key(parts, index, request),
        sampler=Sampler(request, parts.family.scheduler_config, request.seed_of(index)),
        upscaler=hires.upscaler,
        variation=request.alone(index).variation,
        controls=_controls(parts, parts.larger),
    )


def _controls(parts: Parts, images: Sequence[Tensor]) -> tuple[ControlPlan, ...]:
    return tuple(
        ControlPlan(net=net, image=image, scale=asked.scale, start=asked.start, end=asked.end, mode=asked.control_mode)
        for net, image, asked in zip(parts.nets, images, parts.request.controlnets, strict=True)
    )


def _start(
    parts: Parts, encoded: _Encoded, sampler: Sampler, shape: tuple[int, ...], variation: Variation | None
) -> tuple[Tensor, Tensor | None, Kept | None]:
    """First latents, the UNet's extra channels, and what is put back after each step."""
    family, pictures = parts.family, parts.pictures
    if pictures.image is None:
        return sampler.pure_noise(varied(sampler.draw(shape), variation)), None, None
    if pictures.mask is None:
        begun = encoded.sample(sampler)
        return sampler.noised(begun, varied(sampler.draw(shape), variation)), None, None

    whole = parts.request.strength in (None, 1.0)  # nothing of the picture shines through
    image = None if whole and family.inpaints else encoded.sample(sampler)
    noise = varied(sampler.draw(shape), variation)
    latents = sampler.pure_noise(noise) if whole or image is None else sampler.noised(image, noise)
    mask = functional.interpolate(pictures.mask, size=shape[2:])
    if family.inpaints:
        return latents, torch.cat([mask, encoded.sample(sampler, masked=True)], dim=1), None
    sampler.draw(shape)  # the pipeline encodes the masked picture here too, and throws it away
    assert image is not None  # noqa: S101  invariant: encoded above
    return latents, None, Kept(mask=mask, latents=image, noise=noise)


def varied(noise: Tensor, variation: Variation | None) -> Tensor:
    """Noise turned towards that of another seed along the arc between them, column by column as AUTOMATIC1111 does it.

    K. Shoemake, Animating Rotation with Quaternion Curves, 1985. Columns that lie together are mixed straight.
    """
    if variation is None:
        return noise
    other = torch.randn(noise.shape, generator=torch.Generator("cpu").manual_seed(variation.seed))
    low, high = (one / one.norm(dim=2, keepdim=True) for one in (noise, other))
    cosine = (low * high).sum(2, keepdim=True)
    if cosine.mean() > 0.9995:
        return torch.lerp(noise, other, variation.strength)
    angle = torch.acos(cosine.clamp(-1, 1))
    parts = torch.sin((1 - variation.strength) * angle), torch.sin(variation.strength * angle)
    return (parts[0] * noise + parts[1] * other) / torch.sin(angle)
