"""One request on a full-size Stable Diffusion 1.5 with random weights: diffusers with its defaults, and Mezzotint over
HTTP as `mezzotint models tune` sets it up, in float32 and in the dtype that it finds fastest. Run it by
`python -m benchmarks.full_size --size 256 --tune`, later without it; with `--lora` all sides draw with one of rank 16.
Random weights cost the same as trained ones.

A shared machine is a fifth slower for minutes at a time, whatever runs on it: so all sides have their turns in rounds,
and what counts is the median of the rounds' ratios. A process of diffusers is a fifth slower than the next for as long
as it lives, by how it happens to lie in memory: so each of its pictures is one process's second.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2

from benchmarks import machine
from mezzotint.client import Client
from mezzotint.config import load_settings

PEER = """
import sys, time, torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
if sys.argv[4]:
    pipeline.load_lora_weights(sys.argv[4])
def draw():
    pipeline("a rocket", width=int(sys.argv[2]), height=int(sys.argv[2]), num_inference_steps=int(sys.argv[3]),
             generator=torch.Generator().manual_seed(1))
draw()
started = time.perf_counter()
draw()
print(time.perf_counter() - started)
if sys.argv[5] == "not the first":
    sys.exit()
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counted:
    draw()
from mezzotint.engine.speed import gflops
from mezzotint.families import products
products.choose()
print(counted.get_total_flops() / gflops(torch.device("cpu"), torch.float32) / 1e9)
"""


def build() -> Path:
    """The real layout and sizes: 860 M parameters in the UNet. Kept for later runs."""
    path = load_settings().cache / "benchmarks" / "random-sd15"
    if path.exists():
        return path
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(byte + "</w>" for byte in alphabet)]
    text = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    draft = path.with_name("draft")
    pipeline.save_pretrained(draft, safe_serialization=True)
    draft.rename(path)
    return path


def build_lora(model: Path) -> Path:
    """Of random factors for every linear layer of the attention blocks, as kohya's scripts adapt by default. Kept."""
    path = model.with_name("random-lora.safetensors")
    if path.exists():
        return path
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model / "unet"))
    tensors = {}
    for name, layer in unet.named_modules():
        if ".attentions." in name and isinstance(layer, torch.nn.Linear):
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(16, layer.in_features) / layer.in_features**0.5
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 16) / 100
    save_file(tensors, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="of each side in a round")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--tune", action="store_true", help="first; it takes minutes, and its result stays")
    asked = parser.parse_args()
    model = build()
    lora = build_lora(model) if asked.lora else None
    if asked.tune:
        subprocess.run([machine.MEZZOTINT, "models", "tune", model.name, "--models", model.parent], check=True)
    rounds, least = zip(*(_round(model, lora, asked) for _ in range(asked.rounds)), strict=True)
    what = f"SD 1.5 random{', a LoRA' if lora else ''}, {asked.size} px, {asked.steps} steps"
    print(f"{machine.describe()}, {what}, median of {asked.rounds} rounds")
    for name in rounds[0]:
        seconds = statistics.median(taken for times in rounds for taken in times[name])
        faster = [statistics.median(times["diffusers"]) / statistics.median(times[name]) for times in rounds]
        each = ", ".join(f"{one:.2f}" for one in faster)
        print(f"{name:28}{seconds:8.2f} s a request  {statistics.median(faster):5.2f} x  (by round: {each})")
    most = statistics.median(
        statistics.median(one["diffusers"]) / seconds for one, seconds in zip(rounds, least, strict=True)
    )
    print(f"{statistics.median(least):.2f} s would do if float32 products at the rate measured here were all:")
    print(f"no program that multiplies as much is over {most:.2f} x as fast as diffusers in float32 on this machine")
    machine.keep("full_size", {"least_float32_s": least, "asked": vars(asked), "rounds_s": rounds})


def _round(model: Path, lora: Path | None, asked: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """Seconds of each side's requests, and what diffusers' products would take at the rate of a large one."""
    command = [sys.executable, "-c", PEER, str(model), str(asked.size), str(asked.steps), str(lora or "")]
    told = ""
    for which in range(asked.runs):
        one = [*command, "not the first" if which else "the first"]
        told += subprocess.run(one, check=True, capture_output=True, text=True).stdout
    first, least, *others = map(float, told.split())
    times = {"diffusers": [first, *others]}
    for dtype in ("float32", "auto"):
        with (
            tempfile.TemporaryDirectory() as folder,
            machine.running_server(
                Path(folder) / "data", "--models", str(model.parent), "--executor", "auto", "--dtype", dtype
            ) as url,
        ):
            body = {"model": model.name, "loras": [] if lora is None else [{"name": lora.stem}]}
            _, ran = _draw(url, body, asked)  # loads the model
            with Client(url) as client:
                machine.wait_for_rest(client)  # what the spare still does would count
            name = f"{dtype}: {ran}"
            times[name] = [_draw(url, body, asked)[0] for _ in range(asked.runs)]
    return times, least


def _draw(url: str, body: dict[str, Any], asked: argparse.Namespace) -> tuple[float, str]:
    """Seconds, and what ran it."""
    body |= {"prompt": "a rocket", "width": asked.size, "height": asked.size, "steps": asked.steps}
    started = time.perf_counter()
    answer = httpx2.post(
        f"{url}/api/inference/sessions", json=body | {"seed": 1}, headers={"Prefer": "wait=600"}, timeout=700
    )
    session = answer.raise_for_status().json()
    assert session["state"] == "succeeded", session["error"]
    return time.perf_counter() - started, "{executor} {dtype}".format(**session["usage"])


if __name__ == "__main__":
    main()
