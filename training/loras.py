"""Trains a LoRA a style, "blob" and "monochrome", on the concepts as other icon sets of free licences draw them.

Run `python -m training.loras --minutes 25` (of each) when the model is packaged; it goes on where it stopped, `--fresh`
starts again. The captions name the model's own styles or none, so that a LoRA wins over them.
"""

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from training import adapters, data, machine, vae
from training.pipeline import TARGET

RATE = 2e-3
RANK = 8
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"]


class Examples:
    """The concepts that a package has drawn."""

    def __init__(self, pipeline: StableDiffusionPipeline, package: str) -> None:
        self._pipeline = pipeline
        concepts = data.read_concepts()
        drawn, pictures = data.pictures_of(package, concepts)
        self._concepts, self._styles = [concepts[index] for index in drawn], list(data.STYLES)
        self._latents = vae.encode(pipeline.vae, vae.to_tensor(pictures)).clone()

    def batch(self, learner: adapters.Learner) -> tuple[Tensor, Tensor]:
        """Latents, and the text encoder's states."""
        chosen, rng = learner.draw(len(self._latents)), learner.rng
        captions = [data.caption(self._concepts[index], rng.choice(self._styles), rng) for index in chosen]
        return self._latents[chosen], adapters.encode(self._pipeline, captions)


def train(name: str, minutes: float, seed: int, fresh: bool) -> dict[str, Tensor]:
    """The averaged factors, under peft's names for them."""
    pipeline = adapters.shipped()
    torch.manual_seed(seed)
    unet = pipeline.unet
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    examples = Examples(pipeline, data.LORA_STYLES[name])
    factors = {key: p for key, p in unet.named_parameters() if p.requires_grad}
    learner = adapters.Learner(parameters=factors, seed=seed, rate=RATE)

    def loss_of(learner: adapters.Learner) -> Tensor:
        latents, states = examples.batch(learner)
        noisy, timesteps, wanted = learner.noisy(pipeline, latents)
        with machine.autocast():
            drawn = unet(noisy, timesteps, states).sample
        return (drawn.float() - wanted).square().mean()

    adapters.learn(learner, loss_of, adapters.folder() / f"{name}.pt", minutes, fresh)
    unet.load_state_dict(learner.average, strict=False)
    return {f"unet.{key}": tensor for key, tensor in get_peft_model_state_dict(unet).items()}


def ship(name: str, factors: dict[str, Tensor]) -> None:
    """Beside the model that ships, in half precision."""
    path = TARGET.parent / f"{name}.safetensors"
    fresh = path.with_suffix(".new")
    save_file({key: tensor.cpu().to(torch.float16).contiguous() for key, tensor in factors.items()}, fresh)
    fresh.chmod(0o644)
    fresh.replace(path)
    print(f"{name}: {sum(tensor.numel() for tensor in factors.values()) / 1e6:.2f} M parameters")


def main() -> None:
    parser = adapters.parser(__doc__, minutes=25.0, seed=6)
    parser.add_argument("--style", choices=tuple(data.LORA_STYLES), help="this one alone")
    arguments = parser.parse_args()
    machine.prepare()
    for name in [arguments.style] if arguments.style else data.LORA_STYLES:
        ship(name, train(name, arguments.minutes, arguments.seed, arguments.fresh))


if __name__ == "__main__":
    main()
