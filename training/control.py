"""Trains the ControlNet that follows edges, on the very edges that the server's canny preprocessor makes.

Run `python -m training.control --minutes 60` when the model is packaged; it goes on where it stopped, `--fresh` starts
again. Sees all usable pictures of both sets, mirrored, moved and resized: more shapes than the model has names for.
"""

import json
import shutil

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from mezzotint.image_child import canny
from training import adapters, data, machine, text, vae, variants
from training.package import drop_names, replace_folder
from training.pipeline import TARGET

NAME = "icons-canny"
RATE = 1e-3
LOW, HIGH = 100, 200  # the preprocessor's defaults; half of the maps are made with others
VARIANTS = machine.choose(cpu=6, gpu=16)  # of each picture
NO_TEXT = 0.4  # of the captions are empty, so that the edges must tell what to draw


def make_net(unet: UNet2DConditionModel) -> ControlNetModel:
    """The UNet's way down without its attention, 3.1 M parameters: begins with its weights and adds nothing."""
    net = ControlNetModel(
        block_out_channels=tuple(unet.config.block_out_channels),
        down_block_types=("DownBlock2D",) * 3,
        mid_block_type="UNetMidBlock2D",
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=text.WIDTH,
        norm_num_groups=unet.config.norm_num_groups,
        conditioning_embedding_out_channels=(16, 32, 64, 64),  # halves a side three times, as the VAE does
    )
    known = unet.state_dict()
    net.load_state_dict({name: known.get(name, tensor) for name, tensor in net.state_dict().items()})
    return net


class Examples:
    """Pictures with their edges and their names, every variant encoded once."""

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self._pipeline = pipeline
        self._concepts, self._styles = data.read_concepts(), list(data.STYLES)
        self._names, others = data.all_pictures()
        pictures = vae.to_tensor(np.concatenate([data.pictures(self._concepts).reshape(-1, *others.shape[1:]), others]))
        generator = torch.Generator().manual_seed(0)
        rng = np.random.default_rng(0)
        mirrored = torch.ones(len(pictures), dtype=torch.bool)
        latents, edges = [], []
        for _ in range(VARIANTS):
            drawn = variants.vary(pictures, mirrored, variants.SHAPES, generator)
            latents.append(vae.encode(pipeline.vae, drawn).clone())
            edges.append(torch.from_numpy(np.stack([_edges(picture, rng) for picture in _pixels(drawn)])))
        self._latents, self._edges = torch.cat(latents), torch.cat(edges)
        self._pictures = len(pictures)

    def batch(self, learner: adapters.Learner) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, the text encoder's states, edges (n, 3, h, w) in 0 to 1."""
        chosen = learner.draw(len(self._latents))
        captions = [self._caption(index % self._pictures, learner) for index in chosen]
        edges = self._edges[chosen].to(machine.device()).float().div(255)[:, None].expand(-1, 3, -1, -1)
        return self._latents[chosen], adapters.encode(self._pipeline, captions), edges

    def _caption(self, picture: int, learner: adapters.Learner) -> str:
        if learner.rng.random() < NO_TEXT:
            return ""
        known = len(self._concepts) * len(self._styles)
        if picture >= known:
            return self._names[picture - known]
        concept, style = divmod(picture, len(self._styles))
        return data.caption(self._concepts[concept], self._styles[style], learner.rng)


def train(minutes: float, seed: int, fresh: bool) -> ControlNetModel:
    """The averaged net."""
    pipeline = adapters.shipped()
    net = make_net(pipeline.unet).to(machine.device())
    examples = Examples(pipeline)
    learner = adapters.Learner(parameters=dict(net.named_parameters()), seed=seed, rate=RATE)

    def loss_of(learner: adapters.Learner) -> Tensor:
        latents, states, edges = examples.batch(learner)
        noisy, timesteps, wanted = learner.noisy(pipeline, latents)
        with machine.autocast():
            down, middle = net(noisy, timesteps, states, controlnet_cond=edges, return_dict=False)
            drawn = pipeline.unet(
                noisy, timesteps, states, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample
        return (drawn.float() - wanted).square().mean()

    adapters.learn(learner, loss_of, adapters.folder() / "control.pt", minutes, fresh)
    net.load_state_dict(learner.average)
    return net


def ship(net: ControlNetModel) -> None:
    """Beside the model that ships, in half precision. The folder appears whole or not at all."""
    fresh = data.work_folder() / f"{NAME}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    net.cpu().to(torch.float16).save_pretrained(fresh, safe_serialization=True)
    (fresh / "mezzotint.json").write_text(json.dumps({"control_type": "canny"}, indent=2) + "\n", encoding="utf-8")
    drop_names(fresh)
    replace_folder(fresh, TARGET.parent / NAME)
    print(f"{NAME}: {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters")


def _pixels(pictures: Tensor) -> data.Pixels:
    return ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def _edges(picture: data.Pixels, rng: np.random.Generator) -> data.Pixels:
    low, high = (LOW, HIGH) if rng.random() < 0.5 else (int(rng.integers(50, 150)), int(rng.integers(150, 250)))
    return canny(picture, low, high)[:, :, 0]


def main() -> None:
    arguments = adapters.parser(__doc__, minutes=60.0, seed=5).parse_args()
    machine.prepare()
    torch.manual_seed(arguments.seed)
    ship(train(arguments.minutes, arguments.seed, arguments.fresh))


if __name__ == "__main__":
    main()
