"""What images on their way look like, and what is spent on showing them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mezzotint.engine.preview import Previews
from mezzotint.engine.samplers import Sampler
from mezzotint.engine.trajectory import BatchKey, Trajectory
from mezzotint.families.base import Conditioning
from tests.requests import request

COLOURS = torch.tensor([[40.0, 0, 0], [0, 30, 0], [0, 0, 20], [5, 5, 5], [120, 120, 120]])
CONFIG = {"num_train_timesteps": 1000, "clip_sample": False}


class Decoder:
    """Each latent becomes 2 x 2 px of its colours. Takes `each_s` for a latent."""

    vae_factor = 2

    def __init__(self, each_s: float) -> None:
        self.each_s, self.now = each_s, 0.0
        self.decoded: list[tuple[int, int]] = []
        self.error: Exception | None = None

    def decode(self, latents: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        self.decoded.append((latents.shape[2], latents.shape[3]))
        self.now += self.each_s * latents[0, 0].numel()
        mapped = torch.einsum("nchw,cd->nhwd", torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1), COLOURS)
        return mapped.repeat_interleave(2, 1).repeat_interleave(2, 2).round().clamp(0, 255).to(torch.uint8)


def on_its_way(decoder: Any, size: int = 32, **asked: Any) -> Trajectory:
    latents = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(1))
    return Trajectory(
        key=BatchKey(model="toy", height=size, width=size, windows=1, alone=""),
        family=decoder,
        index=0,
        seed=1,
        sampler=Sampler(request(**asked), CONFIG, 1),
        latents=latents,
        text=Conditioning(hidden=torch.ones(1, 2), windows=1, cut=False),
        negative=None,
        guidance_scale=1.0,
        priority=5,
        shows=True,
        estimate=latents,
    )


def test_where_decoding_is_quick_the_preview_is_decoded() -> None:
    decoder = Decoder(each_s=1e-6)
    previews = Previews(lambda: decoder.now)
    one = on_its_way(decoder)
    pixels = previews.draw(one, within_s=0.1, must=True)
    assert pixels is not None
    assert one.estimate is not None
    assert torch.equal(pixels, decoder.decode(one.estimate)[0])


def test_where_it_is_not_colours_are_learned_from_one_small_part() -> None:
    decoder = Decoder(each_s=1e-3)
    previews = Previews(lambda: decoder.now)
    one = on_its_way(decoder)
    for _ in range(3):
        pixels = previews.draw(one, within_s=0.1, must=True)
    assert set(decoder.decoded) == {(16, 16)}
    assert pixels is not None
    assert pixels.shape == (64, 64, 3)
    assert one.estimate is not None
    near = pixels.float() - decoder.decode(one.estimate)[0].float()
    assert near.abs().mean() < 20, "smooth between latents, else the same"


def test_one_slow_decoding_does_not_blur_the_previews_after_it() -> None:
    decoder = Decoder(each_s=1e-6)
    previews = Previews(lambda: decoder.now)
    one = on_its_way(decoder)
    for decoder.each_s in (1e-6, 1.0, 1e-6):
        decoder.decoded.clear()
        previews.draw(one, within_s=0.1, must=True)
        assert decoder.decoded[-1] == (32, 32)


def test_an_image_whose_preview_was_decoded_is_not_blurred_by_a_shorter_call() -> None:
    decoder = Decoder(each_s=1e-4)
    previews = Previews(lambda: decoder.now)
    one, other = on_its_way(decoder), on_its_way(decoder)
    for each, within_s, size in ((one, 0.2, 32), (one, 0.01, 32), (other, 0.01, None)):
        decoder.decoded.clear()
        previews.draw(each, within_s=within_s, must=True)
        assert decoder.decoded[-1:] == ([(size, size)] if size else [])


def test_previews_take_no_more_than_their_share_of_time() -> None:
    decoder = Decoder(each_s=1e-5)
    previews = Previews(lambda: decoder.now)
    one, spent, shown = on_its_way(decoder), 0.0, 0
    for _ in range(2000):
        before = decoder.now
        shown += previews.draw(one, within_s=1.0, must=False) is not None
        spent += decoder.now - before
        decoder.now += 0.005
    assert 10 < shown < 200
    assert 0.03 < spent / decoder.now < 0.06
    assert previews.draw(one, within_s=1.0, must=True) is not None


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm_multistep", "heun"])
def test_the_estimate_is_the_picture_when_the_model_is_right(prediction: str, scheduler: str) -> None:
    asked = request(scheduler=scheduler, num_inference_steps=10, scheduler_options={})
    sampler = Sampler(asked, CONFIG | {"prediction_type": prediction}, 1)
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    noisy = sampler.noised(clean, noise)
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    share = alphas[int(sampler.timestep.round())]
    told = {"epsilon": noise, "v_prediction": share.sqrt() * noise - (1 - share).sqrt() * clean, "sample": clean}
    far = (sampler.clean(told[prediction], noisy) - clean).abs().mean()
    assert far < 0.05, "timesteps between two of the table are rounded"


def test_memory_that_holds_no_preview_costs_the_preview_only() -> None:
    decoder = Decoder(each_s=1e-6)
    decoder.error = MemoryError()
    previews = Previews(lambda: decoder.now)
    assert previews.draw(on_its_way(decoder), within_s=1.0, must=True) is None
    decoder.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        previews.draw(on_its_way(decoder), within_s=1.0, must=True)
