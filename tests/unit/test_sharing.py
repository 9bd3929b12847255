"""A picture's two rows go through a UNet's first layers as one, and come out as they would have by themselves."""

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from mezzotint.engine import probe
from mezzotint.engine.sharing import SharesRows, shared
from tests import models


class Called(nn.Module):
    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, times: Tensor, texts: Tensor) -> Tensor:
        output: Tensor = self.unet(latents, times, texts, return_dict=False)[0]
        return output


@pytest.mark.parametrize(("latents", "times", "computed", "which"), [
    ([1, 1], [7, 7], [0], [0, 0]),
    ([1, 1, 2, 3, 3], [7, 7, 7, 7, 7], [0, 2, 3], [0, 0, 1, 2, 2]),
    ([1, 1], [7, 8], [0, 1], [0, 1]),
    ([1, 2, 1], [7, 7, 7], [0, 1, 2], [0, 1, 2]),
    ([1], [7], [0], [0]),
])  # fmt: skip
def test_rows_that_follow_one_like_them_are_one(
    latents: list[int], times: list[int], computed: list[int], which: list[int]
) -> None:
    rows = torch.tensor(latents, dtype=torch.float32)[:, None, None, None].expand(-1, 4, 2, 3), torch.tensor(times)
    assert [one.tolist() for one in shared(*rows, differ=False)] == [computed, which]
    every = [*range(len(latents))]
    assert [one.tolist() for one in shared(*rows, differ=True)] == [every, every]


@torch.no_grad()
def test_what_comes_before_the_first_look_at_a_text_runs_once_for_a_picture() -> None:
    torch.manual_seed(0)
    unet = models.tiny_unet(in_channels=4, cross_attention_dim=32).eval()
    latents, times = probe.paired(torch.randn(4, 4, 9, 7)), probe.paired(torch.tensor([1.0, 5.0, 700.0, 3.0]))
    texts = torch.randn(4, 5, 32)
    expected = Called(unet)(latents, times, texts)
    seen: dict[str, int] = {}
    for name, layer in unet.named_modules():
        layer.register_forward_hook(lambda _, __, output, name=name: seen.update({name: len(output)}))
    run = SharesRows(Called(unet), unet)
    assert torch.allclose(run(latents, times, texts, *shared(latents, times, differ=False)), expected, atol=1e-6)
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    once = ("down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv", f"{block}.attn1.to_q")
    assert [seen[name] for name in once] == [2, 2, 2]
    assert [seen[name] for name in (f"{block}.attn2.to_q", "up_blocks.0.resnets.0.conv1")] == [4, 4]
    assert torch.allclose(run(latents, times, texts, *shared(latents, times, differ=True)), expected, atol=1e-6)
    assert seen[once[0]] == 4


@torch.no_grad()
def test_what_looks_at_texts_at_once_shares_only_what_is_before_it() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(block_out_channels=(32, 32), only_cross_attention=True, down_block_types=(
            "CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    SharesRows(Called(unet), unet)
    shares = [name for name, layer in unet.named_modules() if "forward" in vars(layer)]
    assert shares == ["down_blocks.0.resnets.0"]
