"""Between two passes: the first picture's latents, enlarged and noised as the second pass begins.

Latents are enlarged as they are, or as a picture that is decoded, enlarged and encoded again. Must not run a UNet.
"""

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mezzotint.engine.prepare import varied
from mezzotint.engine.trajectory import Trajectory

# how the latents are drawn apart: torch's mode, and whether neighbours are weighed in
_LATENT = {
    "latent": ("bilinear", False),
    "latent_antialiased": ("bilinear", True),
    "latent_bicubic": ("bicubic", False),
    "latent_bicubic_antialiased": ("bicubic", True),
    "latent_nearest": ("nearest", False),
    "latent_nearest_exact": ("nearest-exact", False),
}
_PIXELS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}


def begin_second(trajectory: Trajectory) -> None:
    """Enlarge what the first pass drew, until it covers the new size, cut the middle out and go on there."""
    second = trajectory.second
    assert second is not None  # noqa: S101  invariant: asked for while it is to come
    sampler, size = second.sampler, (second.key.height, second.key.width)
    if second.upscaler in _LATENT:
        latents = _latents(trajectory.latents, size, *_LATENT[second.upscaler])
    else:
        mean, deviation = trajectory.family.encode_pixels(_pixels(trajectory, size, _PIXELS[second.upscaler]))
        latents = mean + deviation * sampler.draw(tuple(mean.shape))
    noise = varied(sampler.draw(tuple(latents.shape)), second.variation)
    trajectory.enter_second(sampler.noised(latents, noise))


def _latents(latents: Tensor, size: tuple[int, int], mode: str, antialias: bool) -> Tensor:
    covering = _covering((latents.shape[2], latents.shape[3]), size)
    enlarged = functional.interpolate(latents, size=covering, mode=mode, antialias=antialias)
    top, left = ((covering[side] - size[side]) // 2 for side in (0, 1))
    return enlarged[:, :, top : top + size[0], left : left + size[1]].contiguous()


def _pixels(trajectory: Trajectory, size: tuple[int, int], method: Image.Resampling) -> Tensor:
    """(1, 3, H, W) in -1..1."""
    factor = trajectory.family.vae_factor
    drawn = Image.fromarray(trajectory.family.decode(trajectory.latents)[0].numpy(), "RGB")
    wanted = size[0] * factor, size[1] * factor
    height, width = _covering((drawn.height, drawn.width), wanted)
    top, left = (height - wanted[0]) // 2, (width - wanted[1]) // 2
    enlarged = drawn.resize((width, height), method).crop((left, top, left + wanted[1], top + wanted[0]))
    pixels = torch.frombuffer(bytearray(enlarged.tobytes()), dtype=torch.uint8).view(*wanted, 3)
    return (pixels.permute(2, 0, 1)[None] / 255.0) * 2.0 - 1.0


def _covering(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """The size in its own shape, as small as covers the other."""
    scale = max(wanted[0] / size[0], wanted[1] / size[1])
    return max(wanted[0], round(size[0] * scale)), max(wanted[1], round(size[1] * scale))
