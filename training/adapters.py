"""What the ControlNet's and the LoRAs' trainings have in common: the shipped model, batches, a schedule, a saved state.

Both learn beside a model that stays as it is, read from the folder that ships. Must not know what is being learned.
"""

import argparse
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from training import data, machine, text
from training.pipeline import TARGET
from training.unet import BATCH, EMA_MOST, draw_noise, part_of_rate

SAVE_EVERY_S = 60.0
SAY_EVERY_S = 30.0
Loss = Callable[["Learner"], Tensor]


def shipped() -> StableDiffusionPipeline:
    """The bundled model in float32, fixed, with the attention that trains quickest on a CPU."""
    pipeline = StableDiffusionPipeline.from_pretrained(TARGET, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False)
    if machine.device().type == "cpu":
        pipeline.unet.set_attn_processor(AttnProcessor())
    pipeline.to(machine.device())
    return pipeline


def encode(pipeline: StableDiffusionPipeline, captions: list[str]) -> Tensor:
    """What the UNet reads of captions, (n, 32, 256)."""
    ids = text.tokenize(pipeline.tokenizer, captions).to(machine.device())
    with torch.no_grad(), machine.autocast():
        states: Tensor = pipeline.text_encoder(input_ids=ids).last_hidden_state.float()
    return states


@dataclass(kw_only=True)
class Learner:
    """Parameters on their way, their average, and where the schedule stands. `order`: examples still to come."""

    parameters: Mapping[str, Tensor]
    seed: int
    rate: float
    step: int = 0
    worked_s: float = 0.0
    loss: float = 1.0
    order: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=self.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.rng = random.Random(self.seed)
        self.generator = machine.generator(self.seed)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    def draw(self, examples: int) -> list[int]:
        """The next batch of examples, each of them once an epoch."""
        while len(self.order) < BATCH:
            self.order += self.rng.sample(range(examples), examples)
        chosen, self.order = self.order[:BATCH], self.order[BATCH:]
        return chosen

    def noisy(self, pipeline: StableDiffusionPipeline, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents with noise on them, their timesteps, and the velocity that a model should tell."""
        timesteps, noise = draw_noise(latents, self.generator)
        scheduler = pipeline.scheduler
        return (
            scheduler.add_noise(latents, noise, timesteps),
            timesteps,
            scheduler.get_velocity(latents, noise, timesteps),
        )

    def update(self, loss: Tensor, done: float) -> None:
        """One step down; `done` is the part of the time that has gone."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * part_of_rate(self.step, done)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        kept = min(EMA_MOST, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            newest = [self.parameters[name].detach() for name in self.average]
            torch._foreach_lerp_(list(self.average.values()), newest, 1 - kept)
        self.loss += (loss.item() - self.loss) * max(0.02, 1 / self.step)

    def save(self, path: Path) -> None:
        """Atomic: a run killed here leaves the state before."""
        state = {
            "step": self.step,
            "worked_s": self.worked_s,
            "loss": self.loss,
            "order": self.order,
            "parameters": dict(self.parameters),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.getstate(),
            "generator": self.generator.get_state(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=False, map_location=machine.device())
        self.step, self.worked_s, self.loss = state["step"], state["worked_s"], state["loss"]
        self.order, self.average = state["order"], state["average"]
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.setstate(state["rng"])
        self.generator.set_state(state["generator"].cpu())


def parser(description: str | None, minutes: float, seed: int) -> argparse.ArgumentParser:
    """What everything that learns beside the shipped model can be told."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--minutes", type=float, default=minutes)
    made.add_argument("--seed", type=int, default=seed)
    made.add_argument("--fresh", action="store_true")
    return made


def learn(learner: Learner, loss_of: Loss, path: Path, minutes: float, fresh: bool) -> None:
    """Mutates the learner until its schedule ends, `minutes` of work; goes on from `path` unless `fresh`."""
    if path.exists() and not fresh:
        learner.load(path)
    watch = machine.Stopwatch(learner.worked_s)
    threads = machine.Threads(torch.get_num_threads())
    said = saved = time.monotonic()
    while (done := watch.look() / (60 * minutes)) < 1:
        learner.update(loss_of(learner), done)
        learner.worked_s = watch.worked_s
        threads.step_done()
        now = time.monotonic()
        if now - said > SAY_EVERY_S:
            said = now
            left = minutes * (1 - done)
            print(f"{path.stem} {learner.step}: loss {learner.loss:.4f}, {left:.1f} min left", flush=True)
        if now - saved > SAVE_EVERY_S:
            saved = now
            learner.save(path)
    learner.save(path)
    print(f"{path.stem} done: {learner.step} steps, {learner.worked_s / 60:.1f} min of work, loss {learner.loss:.4f}")


def folder() -> Path:
    return data.work_folder() / "adapters"
