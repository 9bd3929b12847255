"""Trains the UNet on latents of the VAE, to what the text encoder says of captions. Leaves both of them as they are.

Run `python -m training.unet --minutes 75`, or `--until 18:40`. It goes on where it stopped; `--fresh` starts again;
`--anew` keeps the weights and begins the schedule again, which a UNet needs whose text encoder has changed.
"""

import argparse
import copy
import datetime
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from training import data, machine, text, vae
from training.pipeline import FIXED_PROMPTS, assemble, draw, make_scheduler, save_sheet
from training.teacher import NearWords, Teacher

BATCH = 32
RATE, LAST_RATE = 1e-3, 0.02
WARM_UP_STEPS = 100
CONSTANT_FOR = 0.3
EMA_MOST = 0.999
NOISIER = 0.7  # below 1, noisy timesteps are seen more often: there it is decided what the picture shows
NEAR_WORDS = 0.2  # of the captions name a near word in place of their label
MIXED, MIXED_MOST = 0.4, 0.4  # of the texts are drawn towards another one, by up to this part of the way
NOISE_MOST = 0.4  # deviation in each number of a state, where the states have a deviation of about 0.9
NO_TOKENS = 0.15  # of the texts are read by the states after them alone
SAVE_EVERY_S = 150.0
SHEET_EVERY_S = 420.0


def make_unet() -> UNet2DConditionModel:
    """16x16 latents, 16.8 M parameters, attention heads 32 wide, random weights."""
    return UNet2DConditionModel(
        sample_size=data.SIZE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 256),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 8),  # diffusers' name for the number of heads
        cross_attention_dim=text.WIDTH,
        use_linear_projection=True,
        norm_num_groups=16,
    )


@dataclass(kw_only=True)
class Training:
    """Everything a resumed run needs. `step` counts batches, `worked_s` the time that this schedule worked."""

    unet: UNet2DConditionModel
    seed: int
    rate: float = RATE
    step: int = 0
    began: int = 0  # the step at which the schedule began
    worked_s: float = 0.0
    loss: float = 1.0
    order: list[int] = field(default_factory=list)  # pictures of this epoch still to come
    average: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.unet.set_attn_processor(AttnProcessor())
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=self.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.rng = random.Random(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.average = {name: p.detach().clone() for name, p in self.unet.named_parameters()}

    def update(self, latents: Tensor, states: Tensor, scheduler: DDIMScheduler, done: float) -> float:
        """One batch; `done` is the part of the time that has gone. Returns the loss."""
        n = len(latents)
        even = (torch.arange(n) + torch.rand(n, generator=self.generator)) / n
        timesteps = (1000 * even**NOISIER).long().clamp(max=999)
        noise = torch.randn(latents.shape, generator=self.generator)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        wanted = scheduler.get_velocity(latents, noise, timesteps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * part_of_rate(self.step - self.began, done)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = self.unet(noisy, timesteps, states).sample
        loss = (drawn.float() - wanted).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        since = self.step - self.began
        kept = min(EMA_MOST, (1 + since) / (10 + since))
        with torch.no_grad():
            named = dict(self.unet.named_parameters())
            torch._foreach_lerp_(list(self.average.values()), [named[name].detach() for name in self.average], 1 - kept)
        self.loss += (loss.item() - self.loss) * max(0.02, 1 / self.step)
        return self.loss

    def averaged(self) -> UNet2DConditionModel:
        """A copy that holds the averaged weights."""
        unet = copy.deepcopy(self.unet).eval()
        unet.load_state_dict(self.average)
        return unet

    def begin_again(self, rate: float) -> None:
        """From the averaged weights: the schedule, the optimizer and the average start afresh, the steps count on."""
        self.unet.load_state_dict(self.average)
        self.rate, self.began, self.worked_s = rate, self.step, 0.0
        self.__post_init__()

    def save(self, path: Path) -> None:
        """Atomic: a run killed here leaves the state before."""
        state = {
            "step": self.step,
            "began": self.began,
            "rate": self.rate,
            "worked_s": self.worked_s,
            "loss": self.loss,
            "order": self.order,
            "weights": self.unet.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.getstate(),
            "generator": self.generator.get_state(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=False)
        self.unet.load_state_dict(state["weights"])
        self.step, self.worked_s, self.loss = state["step"], state["worked_s"], state["loss"]
        self.began, self.rate = state["began"], state["rate"]
        self.order, self.average = state["order"], state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.setstate(state["rng"])
        self.generator.set_state(state["generator"])


def part_of_rate(step: int, done: float) -> float:
    """Warm-up by steps; then by the part of the time that has gone: constant, then linear to the last rate."""
    falling = max(0.0, min(1.0, (done - CONSTANT_FOR) / (1 - CONSTANT_FOR)))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - falling * (1 - LAST_RATE))


def disturb(states: Tensor, ended: Tensor, generator: torch.Generator) -> Tensor:
    """What near words would say, roughly: `states` (n, 32, w), some of them moved, so that the UNet reads a region.

    `ended` (n, 32) marks the states that have read their whole text: those are moved together, because a word that is
    almost another one is so at all of them. Some are drawn towards another text, and all get a noise; of some the
    states before the end are overwritten with one of the end, since those of an unknown word say nothing.
    """
    n, _, width = states.shape
    mean = (states * ended[..., None]).sum(1) / ended.sum(1, keepdim=True)
    draws = torch.rand(4, n, 1, generator=generator)
    other = mean[torch.randperm(n, generator=generator)]
    towards = (draws[0] < MIXED) * MIXED_MOST * draws[1] * (other - mean)
    move = towards + NOISE_MOST * draws[2] * torch.randn(n, width, generator=generator)
    moved = states + move[:, None] * ended[..., None]
    untold = (draws[3] < NO_TOKENS) & ~ended
    untold[:, 0] = False
    return torch.where(untold[..., None], (mean + move)[:, None], moved)


class Examples:
    """Draws batches: pictures in a shuffled order, each with a caption of its own."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, decoder: AutoencoderKL) -> None:
        """Encodes every picture once."""
        self.concepts = data.read_concepts()
        self.latents = vae.encode(decoder, vae.to_tensor(data.pictures(self.concepts)).flatten(0, 1)).clone()
        self.styles = list(data.STYLES)
        self.tokenizer, self.encoder = tokenizer, encoder
        self.near_words = NearWords(tokenizer, Teacher())

    def batch(self, rng: random.Random, order: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents, and the disturbed states of their captions.

        Takes pictures from the front of `order`, and appends an epoch when that is short.
        """
        if len(order) < BATCH:
            order += rng.sample(range(len(self.latents)), len(self.latents))
        chosen = order[:BATCH]
        del order[:BATCH]
        captions = [self._caption(self.concepts[i // len(self.styles)], i % len(self.styles), rng) for i in chosen]
        ids = text.tokenize(self.tokenizer, captions)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            states = self.encoder(input_ids=ids).last_hidden_state.float()
        ended = (ids == self.tokenizer.eos_token_id).cumsum(1) > 0
        told = torch.tensor([bool(caption) for caption in captions])[:, None, None]
        return self.latents[chosen], torch.where(told, disturb(states, ended, generator), states)

    def _caption(self, concept: data.Concept, style: int, rng: random.Random) -> str:
        near = rng.random() < NEAR_WORDS and self.near_words.draw_for(concept.label, rng)
        if not near:
            return data.caption(concept, self.styles[style], rng)
        phrase = self.near_words.form(rng)[0].format(near.word)
        return f"{phrase}, {self.styles[style]} style" if rng.random() < 0.80 else phrase


def folder() -> Path:
    return data.work_folder() / "unet"


def state_file() -> Path:
    return folder() / "training.pt"


def restored(seed: int, fresh: bool = False) -> Training:
    """The training as it was last saved, or a new one."""
    torch.manual_seed(seed)
    training = Training(unet=make_unet(), seed=seed)
    if state_file().exists() and not fresh:
        training.load(state_file())
    return training


def part_done(worked_s: float, minutes: float, until: datetime.datetime | None) -> float:
    """The part of the run that is over, by the time worked, so that a pause costs nothing.

    Where it must end by a time of the day: the time worked against what is left until then.
    """
    if until is None:
        return worked_s / (60 * minutes)
    left = (until - datetime.datetime.now()).total_seconds()
    return 1.0 if left <= 0 else worked_s / (worked_s + left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=75.0)
    parser.add_argument("--until", help="a time of today, 18:40; takes the place of --minutes")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--anew", action="store_true", help="keep the weights, begin the schedule again")
    parser.add_argument("--rate", type=float, default=RATE, help="of a schedule that begins")
    arguments = parser.parse_args()
    machine.prepare()
    until = arguments.until and datetime.datetime.combine(
        datetime.date.today(), datetime.time.fromisoformat(arguments.until)
    )
    tokenizer = CLIPTokenizer.from_pretrained(text.folder() / "tokenizer")
    decoder = AutoencoderKL.from_pretrained(vae.folder(), torch_dtype=torch.float32)
    encoder = CLIPTextModel.from_pretrained(
        text.folder() / "text_encoder", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    examples = Examples(tokenizer, encoder, decoder)
    training = restored(arguments.seed, arguments.fresh)
    if arguments.anew or training.step == 0:
        training.begin_again(arguments.rate)
    scheduler = make_scheduler()
    watch = machine.Stopwatch(training.worked_s)
    threads = machine.Threads(torch.get_num_threads())
    said = saved = shown = started = time.monotonic()
    first = training.step
    while (done := part_done(watch.look(), arguments.minutes, until)) < 1:
        training.update(*examples.batch(training.rng, training.order, training.generator), scheduler, done)
        training.worked_s = watch.worked_s
        threads.step_done()
        now = time.monotonic()
        if now - said > 30:
            said = now
            pace = (training.step - first) * BATCH / (now - started)
            left = training.worked_s * (1 / done - 1)
            print(
                f"unet {training.step}: loss {training.loss:.4f}, {pace:.0f} pictures/s, "
                f"{torch.get_num_threads()} threads, {left / 60:.1f} min left",
                flush=True,
            )
        if now - saved > SAVE_EVERY_S:
            saved = now
            training.save(state_file())
        if now - shown > SHEET_EVERY_S:
            shown = now
            _save_sheet(training, examples, decoder)
    training.save(state_file())
    _save_sheet(training, examples, decoder)
    epochs = training.step * BATCH / len(examples.latents)
    print(
        f"unet done: {training.step} steps, {epochs:.0f} epochs, {training.worked_s / 60:.1f} min of work, "
        f"loss {training.loss:.4f}"
    )


def _save_sheet(training: Training, examples: Examples, decoder: AutoencoderKL) -> None:
    unet = training.averaged()
    prompts = [f"{prompt}, {style} style" for style in data.STYLES for prompt in FIXED_PROMPTS]
    pictures = draw(
        assemble(vae=decoder, encoder=examples.encoder, tokenizer=examples.tokenizer, unet=unet),
        prompts,
        range(100, 100 + len(prompts)),
    )
    save_sheet(pictures, 8, folder() / f"sheet-{training.step:06d}.png", zoom=2)


if __name__ == "__main__":
    main()
