"""Torch-free facts of every model family, one row each. Must not import torch: the API process reads this."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyFacts:
    name: str
    pipelines: frozenset[str]  # `_class_name` of model_index.json
    implementation: str  # module:class, imported only inside a worker
    num_inference_steps: int
    guidance_scale: float
    vae_width: int  # channels of its decoder at the picture's own size, at most
    components: dict[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
    # component name -> the (library, class) pairs that may stand for it in model_index.json


# The names of `scheduler` in a request -> diffusers' class, in the order they are listed.
SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm_multistep": "DPMSolverMultistepScheduler",
    "dpm_singlestep": "DPMSolverSinglestepScheduler",
    "dpm_sde": "DPMSolverSDEScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}

# Those that ask the model twice a step, but for the last.
TWO_CALLS = frozenset({"heun", "kdpm2", "kdpm2_ancestral", "dpm_sde"})

MAX_STEPS, MAX_GUIDANCE = 1000, 50  # of a request, and of what a model brings by default

# Most steps of those that cannot do as many as a request may ask for.
# dpm_multistep and unipc lay out one more than they run, of the thousand timesteps that models are trained with.
SCHEDULER_STEPS: dict[str, int] = {"lcm": 50, "dpm_multistep": 999, "unipc": 999}

_SIGMAS = frozenset({"karras_sigmas", "exponential_sigmas", "beta_sigmas"})

# Which of a request's `scheduler_options` each can do; a test compares it with diffusers.
SCHEDULER_OPTIONS: dict[str, frozenset[str]] = {
    "ddim": frozenset({"timestep_spacing"}),
    "ddpm": frozenset({"timestep_spacing"}),
    "dpm_multistep": _SIGMAS | {"timestep_spacing", "algorithm_type", "solver_order"},
    "dpm_singlestep": _SIGMAS | {"algorithm_type", "solver_order"},
    "dpm_sde": _SIGMAS | {"timestep_spacing"},
    "euler": _SIGMAS | {"timestep_spacing"},
    "euler_ancestral": frozenset({"timestep_spacing"}),
    "heun": _SIGMAS | {"timestep_spacing"},
    "lms": _SIGMAS | {"timestep_spacing"},
    "kdpm2": _SIGMAS | {"timestep_spacing"},
    "kdpm2_ancestral": _SIGMAS | {"timestep_spacing"},
    "pndm": frozenset({"timestep_spacing"}),
    "unipc": _SIGMAS | {"timestep_spacing", "solver_order"},
    "lcm": frozenset({"timestep_spacing"}),
}

_TOKENIZER = frozenset({("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast")})
_COMMON: dict[str, frozenset[tuple[str, str]]] = {
    "unet": frozenset({("diffusers", "UNet2DConditionModel")}),
    "vae": frozenset({("diffusers", "AutoencoderKL")}),
    "text_encoder": frozenset({("transformers", "CLIPTextModel")}),
    "tokenizer": _TOKENIZER,
    "scheduler": frozenset(("diffusers", name) for name in SCHEDULERS.values()),
}

FAMILIES: dict[str, FamilyFacts] = {
    "sd": FamilyFacts(
        name="sd",
        pipelines=frozenset(
            {"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"}
        ),
        implementation="mezzotint.families.sd:StableDiffusion",
        num_inference_steps=30,
        guidance_scale=7.5,
        vae_width=256,
        components=_COMMON,
    ),
    "sdxl": FamilyFacts(
        name="sdxl",
        pipelines=frozenset(
            {"StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"}
        ),
        implementation="mezzotint.families.sdxl:StableDiffusionXL",
        num_inference_steps=30,
        guidance_scale=5.0,
        vae_width=256,
        components=_COMMON
        | {
            "text_encoder_2": frozenset({("transformers", "CLIPTextModelWithProjection")}),
            "tokenizer_2": _TOKENIZER,
        },
    ),
}

# Parts of published folders that nothing here runs: they are left where they are.
UNUSED_COMPONENTS = frozenset({"safety_checker", "feature_extractor", "image_encoder"})


def implementation(family: str) -> Any:
    """The class that runs models of a family, its module imported. Only inside a process that may import torch."""
    module, _, name = FAMILIES[family].implementation.partition(":")
    return getattr(import_module(module), name)


def calls(scheduler: str, steps: int, num_inference_steps: int) -> int:
    """Model calls for one image that runs the last `steps` of so many; a test compares it with diffusers."""
    if scheduler in TWO_CALLS:
        return 2 * steps - 1
    return steps + (scheduler == "pndm" and num_inference_steps > 1)  # which does its second step twice


def at_work(call: int, total: int, start: float, end: float) -> bool:
    """Whether a ControlNet of this `start` and `end` works in one model call of so many, as diffusers decides it."""
    return not (call / total < start or (call + 1) / total > end)


def activation_bytes(family: str, shape: str, rows: int, latent_pixels: int, pixels: int) -> int:
    """What a step of so many rows, or the decoding of one picture, takes at most in float32 beside the weights.

    The tensors of the widest level that live at once, every skip counted. `shape`: the catalog's, of a UNet.
    """
    width = int(shape.partition("-")[0])
    step = 40 * width * 4 * latent_pixels * rows
    decode = 8 * FAMILIES[family].vae_width * 4 * pixels
    return max(step, decode)
