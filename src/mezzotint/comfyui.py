"""ComfyUI's graph of one picture as a request: follows links from the first sampler. Must not run a node."""

from collections.abc import Mapping
from typing import Any

MAX_LINKS = 1000

_SAMPLERS = {
    "ddim": ("ddim", {}), "ddpm": ("ddpm", {}), "dpmpp_2m": ("dpm_multistep", {}), "dpmpp_sde": ("dpm_sde", {}),
    "dpmpp_2m_sde": ("dpm_multistep", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2s_ancestral": ("dpm_singlestep", {}), "euler": ("euler", {}), "euler_ancestral": ("euler_ancestral", {}),
    "heun": ("heun", {}), "lms": ("lms", {}), "dpm_2": ("kdpm2", {}), "dpm_2_ancestral": ("kdpm2_ancestral", {}),
    "uni_pc": ("unipc", {}), "lcm": ("lcm", {}),
}  # fmt: skip
_SPACINGS: dict[str, dict[str, Any]] = {
    "karras": {"karras_sigmas": True},
    "exponential": {"exponential_sigmas": True},
    "beta": {"beta_sigmas": True},
    "simple": {"timestep_spacing": "trailing"},
    "sgm_uniform": {"timestep_spacing": "trailing"},
    "ddim_uniform": {"timestep_spacing": "leading"},
    "normal": {},
}


def read(graph: Any) -> tuple[dict[str, Any], str | None, list[str]]:
    """A body, the checkpoint's file name, warnings. Raises ValueError, KeyError, TypeError for another shape."""
    nodes = _Nodes(graph)
    samplers = [one for one in graph.values() if _kind(one) in ("KSampler", "KSamplerAdvanced")]
    if not samplers:
        raise ValueError("no sampler in the graph")
    inputs = samplers[0]["inputs"]
    body: dict[str, Any] = {}
    names = {"seed": "seed", "noise_seed": "seed", "steps": "num_inference_steps", "cfg": "guidance_scale"}
    body |= {ours: inputs[theirs] for theirs, ours in names.items() if isinstance(inputs.get(theirs), int | float)}
    warnings: list[str] = []
    if len(samplers) > 1:
        warnings.append(
            f"its graph has {len(samplers)} samplers, of which the first counts; a second pass is hires here"
        )
    name, spacing = str(inputs.get("sampler_name", "")), str(inputs.get("scheduler", ""))
    if name in _SAMPLERS and spacing in _SPACINGS:
        body["scheduler"], options = _SAMPLERS[name]
        if options | _SPACINGS[spacing]:
            body["scheduler_options"] = options | _SPACINGS[spacing]
    else:
        warnings.append(f"sampler {name[:64]!r} with scheduler {spacing[:64]!r} is not here")
    for link, field in (("positive", "prompt"), ("negative", "negative_prompt")):
        text = nodes.text(inputs.get(link), warnings)
        if text:
            body[field] = text
    latent = nodes.at(inputs.get("latent_image"))
    if _kind(latent) == "EmptyLatentImage":
        sides = {name: latent["inputs"][name] for name in ("width", "height")}
        body |= {name: side for name, side in sides.items() if isinstance(side, int)}
        if not all(isinstance(side, int) for side in sides.values()):
            warnings.append("its size comes from another node, and is left out")
    elif latent is not None:
        if isinstance(inputs.get("denoise"), int | float):
            body["strength"] = inputs["denoise"]
        warnings.append("it began at a picture that its file does not hold; send it with the request")
    checkpoint, loras = nodes.model(inputs.get("model"), warnings)
    if loras:
        body["loras"] = loras
    warnings.append("ComfyUI weighs prompts and draws noise in its own way; the same seed may draw another picture")
    return body, checkpoint, warnings


class _Nodes:
    """The graph, of which at most MAX_LINKS links are followed."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self._graph, self._links = graph, 0

    def at(self, link: Any) -> Any:
        """The node behind `[node, slot]`; None when there is none, or enough were followed."""
        self._links += 1
        if not isinstance(link, list) or len(link) != 2 or self._links > MAX_LINKS:
            return None
        return self._graph.get(str(link[0]))

    def text(self, link: Any, warnings: list[str]) -> str:
        node = self.at(link)
        if _kind(node) not in ("CLIPTextEncode", "CLIPTextEncodeSDXL"):
            if node is not None:
                warnings.append(f"node {_kind(node)[:64]!r} is not known; what lies behind it is left out")
            return ""
        text = node["inputs"].get("text", node["inputs"].get("text_g", ""))
        return text if isinstance(text, str) else ""

    def model(self, link: Any, warnings: list[str]) -> tuple[str | None, list[dict[str, Any]]]:
        loras: list[dict[str, Any]] = []
        while (node := self.at(link)) is not None:
            inputs = node["inputs"]
            if _kind(node) in ("LoraLoader", "LoraLoaderModelOnly"):
                name = str(inputs["lora_name"]).replace("\\", "/").rpartition("/")[2].removesuffix(".safetensors")
                loras.append({"name": name, "scale": float(inputs.get("strength_model", 1))})
                link = inputs.get("model")
            elif _kind(node) == "CheckpointLoaderSimple":
                return str(inputs["ckpt_name"]).replace("\\", "/").rpartition("/")[2], loras[::-1]
            else:
                warnings.append(f"node {_kind(node)[:64]!r} is not known; what lies behind it is left out")
                break
        return None, loras[::-1]


def _kind(node: Any) -> str:
    return str(node.get("class_type", "")) if isinstance(node, dict) else ""
