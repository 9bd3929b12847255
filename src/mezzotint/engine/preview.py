"""Pictures of images on their way, cheap enough to be made between two steps. Must not change a trajectory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mezzotint.engine.stopwatch import is_memory
from mezzotint.engine.trajectory import Trajectory
from mezzotint.families.base import Family

SHARE = 0.05  # of all time that previews may take
SHORT_S = 0.05  # a decoding that nobody notices: without it previews of quick models are now sharp, now blurred
PATCH = 16  # latents on a side of the part that is decoded to learn from


class Previews:
    """Decodes where that takes no longer than a model call, or is short; else maps latents to colours, one pixel each.
    Once it has decoded an image on its way it goes on so: calls vary, and each picture is to be nearer to the last.

    How a model's latents map to colours, and how long its decoder takes, is learned from a small part of the first
    image that is to be shown.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._colours: dict[str, Tensor] = {}  # model -> (channels + 1, 3): colour of each channel, and of none
        self._decode_s: dict[str, float] = {}  # model -> per latent, at best: a hiccup must not blur what comes after
        self._next_at = 0.0

    def draw(self, trajectory: Trajectory, *, within_s: float, must: bool) -> Tensor | None:
        """(H, W, 3) uint8 of the final size. None when previews have taken their share of time, unless it `must` be,
        when memory does not hold it, or when there is none yet.
        """
        started = self._clock()
        if (
            trajectory.estimate is None
            or not trajectory.estimate.isfinite().all()
            or (started < self._next_at and not must)
        ):
            return None
        try:
            return self._draw(trajectory, trajectory.estimate, within_s)
        except FloatingPointError:
            return None  # early steps of some models know of no picture yet
        except (MemoryError, RuntimeError) as error:
            if not is_memory(error):
                raise
            return None
        finally:
            now = self._clock()
            self._next_at = now + (now - started) * (1 / SHARE - 1)

    def _draw(self, trajectory: Trajectory, latents: Tensor, within_s: float) -> Tensor:
        family, model = trajectory.family, trajectory.key.model
        if model not in self._colours:
            self._learn(family, model, latents)
        height, width = latents.shape[2:]
        trajectory.shown_decoded |= self._decode_s[model] * height * width <= max(within_s, SHORT_S)
        if trajectory.shown_decoded:
            return self._decode(family, model, latents)
        ones = torch.ones_like(latents[:, :1])
        mapped = torch.einsum("nchw,cd->ndhw", torch.cat([latents, ones], dim=1), self._colours[model])
        size = height * family.vae_factor, width * family.vae_factor
        pixels = functional.interpolate(mapped, size=size, mode="bilinear").clamp(0, 255)
        return pixels[0].permute(1, 2, 0).round().to(torch.uint8)

    def _learn(self, family: Family, model: str, latents: Tensor) -> None:
        """By least squares, from the middle of the image."""
        top, left = (max(0, (side - PATCH) // 2) for side in latents.shape[2:])
        patch = latents[..., top : top + PATCH, left : left + PATCH]
        self._decode(family, model, patch)  # the first of a shape takes longer than those to come
        pixels = self._decode(family, model, patch).permute(2, 0, 1).float()
        colours = functional.avg_pool2d(pixels, family.vae_factor).flatten(1).T
        channels = torch.cat([patch[0].flatten(1), torch.ones(1, patch[0, 0].numel())]).T
        self._colours[model] = torch.linalg.lstsq(channels, colours, driver="gelsd").solution

    def _decode(self, family: Family, model: str, latents: Tensor) -> Tensor:
        started = self._clock()
        pixels = family.decode(latents)[0]
        each_s = (self._clock() - started) / latents[0, 0].numel()
        self._decode_s[model] = min(each_s, self._decode_s.get(model, each_s))
        return pixels
