"""Trains the UNet on latents of the VAE, to what the text encoder says of captions. Leaves both of them as they are.

Run `python -m training.unet --minutes 75`, or `--until 18:40`. It goes on where it stopped, or from the weights that
ship; `--fresh` starts from nothing; `--anew` keeps the weights and begins the schedule again, which a UNet needs whose
text encoder has changed.
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

from training import data, machine, text, vae, variants
from training.pipeline import FIXED_PROMPTS, TARGET, assemble, draw, make_scheduler, save_sheet
from training.teacher import NearWords, Teacher

BATCH = machine.choose(cpu=32, gpu=512)
VARIANTS = machine.choose(cpu=6, gpu=32)  # of each picture
CAPTIONS = 64  # of each picture
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
        sample_size=data.SIZE // 8,
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
        device = machine.device()
        self.unet.to(device)
        if device.type == "cpu":
            self.unet.set_attn_processor(AttnProcessor())
        self._drawn = self.unet if device.type == "cpu" else torch.compile(self.unet)
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=self.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.rng = random.Random(self.seed)
        self.generator = machine.generator(self.seed)
        self._recent = torch.tensor(self.loss, device=device)
        self.average = {name: p.detach().clone() for name, p in self.unet.named_parameters()}

    def update(self, latents: Tensor, states: Tensor, scheduler: DDIMScheduler, done: float) -> None:
        """One batch; `done` is the part of the time that has gone."""
        timesteps, noise = draw_noise(latents, self.generator)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        wanted = scheduler.get_velocity(latents, noise, timesteps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * part_of_rate(self.step - self.began, done)
        with machine.autocast():
            drawn = self._drawn(noisy, timesteps, states).sample
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
            self._recent.lerp_(loss.detach(), max(0.02, 1 / self.step))

    def look(self) -> float:
        """The loss of late. A GPU must have finished its work for it, so it is not asked for at each step."""
        self.loss = self._recent.item()
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
            "loss": self.look(),
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
        state = torch.load(path, weights_only=False, map_location=machine.device())
        self.unet.load_state_dict(state["weights"])
        self.step, self.worked_s, self.loss = state["step"], state["worked_s"], state["loss"]
        self.began, self.rate = state["began"], state["rate"]
        self.order, self.average = state["order"], state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.setstate(state["rng"])
        self._recent.fill_(self.loss)
        self.generator.set_state(state["generator"].cpu())


def draw_noise(latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A timestep for each of the latents, spread evenly over the schedule, and noise for it."""
    n, device = len(latents), latents.device
    even = (torch.arange(n, device=device) + torch.rand(n, generator=generator, device=device)) / n
    timesteps = (1000 * even**NOISIER).long().clamp(max=999)
    return timesteps, torch.randn(latents.shape, generator=generator, device=device)


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
    device = states.device
    mean = (states * ended[..., None]).sum(1) / ended.sum(1, keepdim=True)
    draws = torch.rand(4, n, 1, generator=generator, device=device)
    other = mean[torch.randperm(n, generator=generator, device=device)]
    towards = (draws[0] < MIXED) * MIXED_MOST * draws[1] * (other - mean)
    move = towards + NOISE_MOST * draws[2] * torch.randn(n, width, generator=generator, device=device)
    moved = states + move[:, None] * ended[..., None]
    untold = (draws[3] < NO_TOKENS) & ~ended
    untold[:, 0] = False
    return torch.where(untold[..., None], (mean + move)[:, None], moved)


class Examples:
    """Draws batches: pictures in a shuffled order, each as one of its variants and with one of its captions."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, autoencoder: AutoencoderKL, seed: int) -> None:
        """Draws and encodes the variants, and draws the captions, of which each batch then takes."""
        device, rng = machine.device(), random.Random(seed)
        self._concepts, self._styles = data.read_concepts(), list(data.STYLES)
        self.encoder, self._end = encoder, tokenizer.eos_token_id
        pictures = vae.to_tensor(data.pictures(self._concepts)).flatten(0, 1).to(device)
        mirrored = torch.tensor([c.mirrored for c in self._concepts for _ in self._styles], device=device)
        generator = machine.generator(seed)
        drawn = (variants.vary(pictures, mirrored, variants.SEEDS, generator) for _ in range(VARIANTS))
        self._latents = torch.stack([vae.encode(autoencoder, some) for some in drawn], dim=1).clone()
        self._near_words = NearWords(tokenizer, Teacher())
        captions = [self._caption(c, s, rng) for c in self._concepts for s in self._styles for _ in range(CAPTIONS)]
        ids = text.tokenize(tokenizer, captions)
        self._ids = ids.to(device).view(len(pictures), CAPTIONS, -1)

    def __len__(self) -> int:
        return len(self._latents)

    def batch(self, rng: random.Random, order: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents, and the disturbed states of their captions.

        Takes pictures from the front of `order`, and appends an epoch when that is short.
        """
        device = self._latents.device
        while len(order) < BATCH:
            order += rng.sample(range(len(self)), len(self))
        chosen = torch.tensor(order[:BATCH]).to(device, non_blocking=True)
        del order[:BATCH]
        variant, caption = (
            torch.randint(most, (BATCH,), generator=generator, device=device)
            for most in (self._latents.shape[1], CAPTIONS)
        )
        ids = self._ids[chosen, caption]
        with torch.no_grad(), machine.autocast():
            states = self.encoder(input_ids=ids).last_hidden_state.float()
        ended = (ids == self._end).cumsum(1) > 0
        told = ~ended[:, 1, None, None]  # not so of an empty caption
        return self._latents[chosen, variant], torch.where(told, disturb(states, ended, generator), states)

    def _caption(self, concept: data.Concept, style: str, rng: random.Random) -> str:
        near = rng.random() < NEAR_WORDS and self._near_words.draw_for(concept.label, rng)
        if not near:
            return data.caption(concept, style, rng)
        phrase = self._near_words.form(rng)[0].format(near.word)
        return f"{phrase}, {style} style" if rng.random() < 0.80 else phrase


def folder() -> Path:
    return data.work_folder() / "unet"


def state_file() -> Path:
    return folder() / "training.pt"


def restored(seed: int, fresh: bool = False) -> Training:
    """The training as it was last saved; where none was, from the weights that ship; from nothing if `fresh`."""
    torch.manual_seed(seed)
    unet = make_unet()
    kept = state_file().exists() and not fresh
    if not kept and not fresh:
        unet = UNet2DConditionModel.from_pretrained(TARGET / "unet", torch_dtype=torch.float32)
    training = Training(unet=unet, seed=seed)
    if kept:
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
    for part in (decoder, encoder):
        part.to(machine.device())
    examples = Examples(tokenizer, encoder, decoder, arguments.seed)
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
                f"unet {training.step}: loss {training.look():.4f}, {pace:.0f} pictures/s, "
                f"{torch.get_num_threads()} threads, {left / 60:.1f} min left",
                flush=True,
            )
        if now - saved > SAVE_EVERY_S:
            saved = now
            training.save(state_file())
        if now - shown > SHEET_EVERY_S:
            shown = now
            _save_sheet(training, tokenizer, encoder, decoder)
    training.save(state_file())
    _save_sheet(training, tokenizer, encoder, decoder)
    epochs = training.step * BATCH / len(examples)
    print(
        f"unet done: {training.step} steps, {epochs:.0f} epochs, {training.worked_s / 60:.1f} min of work, "
        f"loss {training.loss:.4f}"
    )


def _save_sheet(training: Training, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, decoder: AutoencoderKL) -> None:
    unet = training.averaged()
    prompts = [f"{prompt}, {style} style" for style in data.STYLES for prompt in FIXED_PROMPTS]
    pictures = draw(
        assemble(vae=decoder, encoder=encoder, tokenizer=tokenizer, unet=unet),
        prompts,
        range(100, 100 + len(prompts)),
    )
    save_sheet(pictures, 8, folder() / f"sheet-{training.step:06d}.png")


if __name__ == "__main__":
    main()
