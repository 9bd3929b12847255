"""Torch-free facts of every model family, one row each. Must not import torch: the API process reads this."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyFacts:
    name: str
    pipelines: frozenset[str]  # `_class_name` of model_index.json
    implementation: str  # module:class, imported only inside a worker
    num_inference_steps: int
    guidance_scale: float
    types: tuple[str, ...]  # request types that the engine can run for it
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

FAMILIES: dict[str, FamilyFacts] = {
    "sd": FamilyFacts(
        name="sd",
        pipelines=frozenset({"StableDiffusionPipeline"}),
        implementation="mezzotint.families.sd:StableDiffusion",
        num_inference_steps=30,
        guidance_scale=7.5,
        types=("text2img",),
        components={
            "unet": frozenset({("diffusers", "UNet2DConditionModel")}),
            "vae": frozenset({("diffusers", "AutoencoderKL")}),
            "text_encoder": frozenset({("transformers", "CLIPTextModel")}),
            "tokenizer": frozenset({("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast")}),
            "scheduler": frozenset(("diffusers", name) for name in SCHEDULERS.values()),
        },
    ),
}
