"""Distils the model to four steps without guidance: a LoRA for the LCM sampler, by latent consistency distillation.

Run `python -m training.few_steps --minutes 60` when the model is packaged; it goes on where it stopped, `--fresh`
starts again. The teacher is the model itself, with its guidance, one short DDIM step at a time (Luo et al., 2023).
"""

import copy

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from training import adapters, loras, machine
from training.pipeline import GUIDANCE
from training.unet import Examples

NAME = "few-steps"
RATE = 1e-3
RANK = 32
SOLVED = 50  # steps that the teacher takes from noise to picture; the sampler's own number too


class Signal:
    """How much of the picture and of the noise a noisy latent holds, by its timestep; -1 is the picture itself."""

    def __init__(self, scheduler: DDIMScheduler) -> None:
        products = torch.cat([scheduler.alphas_cumprod, torch.ones(1)]).to(machine.device())
        self._picture, self._noise = products.sqrt(), (1 - products).sqrt()

    def mix(self, picture: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self._picture[timesteps].view(-1, 1, 1, 1) * picture + self._noise[timesteps].view(-1, 1, 1, 1) * noise

    def picture(self, noisy: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
        """What the model takes for the picture."""
        return self.mix(noisy, -velocity, timesteps)

    def noise(self, noisy: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
        return self.mix(velocity, noisy, timesteps)


def train(minutes: float, seed: int, fresh: bool) -> dict[str, Tensor]:
    """The averaged factors, under peft's names for them."""
    pipeline = adapters.shipped()
    torch.manual_seed(seed)
    teacher: UNet2DConditionModel = pipeline.unet
    student = copy.deepcopy(teacher)
    student.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=loras.LAYERS))
    examples = Examples(pipeline.tokenizer, pipeline.text_encoder, pipeline.vae, seed)
    factors = {key: p for key, p in student.named_parameters() if p.requires_grad}
    learner = adapters.Learner(parameters=factors, seed=seed, rate=RATE)
    signal, nothing = Signal(pipeline.scheduler), adapters.encode(pipeline, [""])
    every = pipeline.scheduler.config.num_train_timesteps // SOLVED

    def loss_of(learner: adapters.Learner) -> Tensor:
        latents, states = examples.batch(learner.rng, learner.order, learner.generator)
        n, device = len(latents), latents.device
        timesteps = every * torch.randint(1, SOLVED + 1, (n,), generator=learner.generator, device=device) - 1
        earlier = timesteps - every  # -1 where the picture is reached
        noise = torch.randn(latents.shape, generator=learner.generator, device=device)
        noisy = signal.mix(latents, noise, timesteps)
        with torch.no_grad(), machine.autocast():
            both = torch.cat([nothing.expand_as(states), states])
            without, told = teacher(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), both).sample.float().chunk(2)
            velocity = without + GUIDANCE * (told - without)
            solved = signal.picture(noisy, velocity, timesteps)
            nearer = signal.mix(solved, signal.noise(noisy, velocity, timesteps), earlier)
            reached = (earlier < 0)[:, None, None, None]
            drawn = student(nearer, earlier.clamp(min=0), states).sample.float()
            wanted = torch.where(reached, nearer, signal.picture(nearer, drawn, earlier))
        with machine.autocast():
            drawn = student(noisy, timesteps, states).sample
        off = signal.picture(noisy, drawn.float(), timesteps) - wanted
        return ((off.square() + 1e-4).sqrt() - 1e-2).mean()

    adapters.learn(learner, loss_of, adapters.folder() / f"{NAME}.pt", minutes, fresh)
    student.load_state_dict(learner.average, strict=False)
    return {f"unet.{key}": tensor for key, tensor in get_peft_model_state_dict(student).items()}


def main() -> None:
    arguments = adapters.parser(__doc__, minutes=60.0, seed=7).parse_args()
    machine.prepare()
    loras.ship(NAME, train(arguments.minutes, arguments.seed, arguments.fresh))


if __name__ == "__main__":
    main()
