"""Trains the LoRA "quick": four steps without guidance end where the model's own steps with guidance end.

Run `python -m training.quick --minutes 60` when the model is packaged; it goes on where it stopped, `--fresh` starts
again. The model draws first, once, and its latents on the way are kept; the LoRA then learns to go there in strides.
Progressive distillation (Salimans and Ho 2022) in one halving instead of several, along the learner's own path.
"""

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from training import adapters, data, loras, machine
from training.pipeline import GUIDANCE, TARGET, make_scheduler
from training.unet import BATCH

NAME = "quick"
STRIDES = 4
TEACHER_STEPS = 12  # a multiple of the strides
WAYS = machine.choose(cpu=4096, gpu=16384)  # of the model, from a noise to a picture, each for a caption of its own
RATE = 1e-3
RANK = 32


@dataclass(frozen=True, kw_only=True)
class Ways:
    """What the model drew: captions, and the latents before the first stride and after each, (n, 5, 4, 16, 16)."""

    captions: list[str]
    latents: Tensor


def drawn(pipeline: StableDiffusionPipeline, seed: int, path: Path) -> Ways:
    """The model's own ways. Kept in `path` as they come, so that a run that was stopped goes on."""
    rng = random.Random(seed)
    pairs = [(concept, style) for concept in data.read_concepts() for style in data.STYLES]
    captions: list[str] = []
    while len(captions) < WAYS:
        captions += [data.caption(*pair, rng) for pair in rng.sample(pairs, len(pairs))]
    captions = captions[:WAYS]
    done = torch.load(path)["latents"] if path.exists() else torch.zeros(0, STRIDES + 1, 4, 16, 16, dtype=torch.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    said = time.monotonic()
    while len(done) < len(captions):
        some = captions[len(done) : len(done) + BATCH]
        generator = machine.generator(seed + len(done))
        done = torch.cat([done, _way(pipeline, some, generator).half().cpu()])
        if time.monotonic() - said > adapters.SAY_EVERY_S or len(done) == len(captions):
            said = time.monotonic()
            torch.save({"latents": done}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
            print(f"drawn: {len(done)} of {len(captions)}", flush=True)
    return Ways(captions=captions, latents=done.to(machine.device()))


@torch.no_grad()
def _way(pipeline: StableDiffusionPipeline, captions: list[str], generator: torch.Generator) -> Tensor:
    states = adapters.encode(pipeline, [*captions, *[""] * len(captions)])
    scheduler = make_scheduler()
    scheduler.set_timesteps(TEACHER_STEPS)
    at = torch.randn((len(captions), 4, 16, 16), generator=generator, device=machine.device())
    way = [at]
    for step, timestep in enumerate(scheduler.timesteps):
        told, free = pipeline.unet(torch.cat([at, at]), timestep, states).sample.chunk(2)
        at = scheduler.step(free + GUIDANCE * (told - free), timestep, at).prev_sample
        if (step + 1) % (TEACHER_STEPS // STRIDES) == 0:
            way.append(at)
    return torch.stack(way, 1)


def walk(pipeline: StableDiffusionPipeline, states: Tensor, way: Tensor, scheduler: DDIMScheduler) -> Tensor:
    """The mean over four strides of how far each velocity is from the one that leads to the model's next latents.

    Each stride begins where the learner's last one ended, as it does in use, and must come back to the model's way.
    """
    at, losses = way[:, 0], []
    for stride, timestep in enumerate(scheduler.timesteps):
        with machine.autocast():
            velocity = pipeline.unet(at, timestep, states).sample.float()
        # a DDIM step is linear in the velocity: start + slope * velocity
        zero = torch.zeros_like(velocity)
        start = scheduler.step(zero, timestep, at).prev_sample
        slope = (scheduler.step(zero + 1, timestep, at).prev_sample - start).flatten()[0]
        wanted = (way[:, stride + 1] - start) / slope
        losses.append((velocity - wanted).square().mean())
        at = (start + slope * velocity).detach()
    return torch.stack(losses).mean()


def train(minutes: float, seed: int, fresh: bool) -> dict[str, Tensor]:
    """The averaged factors, under peft's names for them."""
    pipeline = adapters.shipped()
    torch.manual_seed(seed)
    kept = adapters.folder() / f"{NAME}-ways.pt"
    if fresh:
        kept.unlink(missing_ok=True)  # they may be another model's
    ways = drawn(pipeline, seed, kept)
    unet = pipeline.unet
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=loras.LAYERS))
    factors = {key: p for key, p in unet.named_parameters() if p.requires_grad}
    learner = adapters.Learner(parameters=factors, seed=seed, rate=RATE)
    scheduler = make_scheduler()
    scheduler.set_timesteps(STRIDES)

    def loss_of(learner: adapters.Learner) -> Tensor:
        chosen = learner.draw(len(ways.captions))
        states = adapters.encode(pipeline, [ways.captions[index] for index in chosen])
        return walk(pipeline, states, ways.latents[chosen].float(), scheduler)

    adapters.learn(learner, loss_of, adapters.folder() / f"{NAME}.pt", minutes, fresh)
    unet.load_state_dict(learner.average, strict=False)
    return {f"unet.{key}": tensor for key, tensor in get_peft_model_state_dict(unet).items()}


def main() -> None:
    arguments = adapters.parser(__doc__, minutes=60.0, seed=7).parse_args()
    machine.prepare()
    loras.ship(NAME, train(arguments.minutes, arguments.seed, arguments.fresh))
    defaults = {"num_inference_steps": STRIDES, "guidance_scale": 1.0, "scheduler": "ddim"}
    (TARGET.parent / f"{NAME}.json").write_text(json.dumps({"defaults": defaults}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
