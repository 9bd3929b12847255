"""ComfyUI's graph of one picture as a request: follows links from the first sampler. Must not run a node."""

from collections.abc import Mapping
from typing import Any

from mezzotint.families.table import SCHEDULER_OPTIONS

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


def read(graph: Any) -> tuple[dict[str, Any], str | None, tuple[str, ...], list[str]]:
    """A body, the checkpoint's file name, fields whose pictures are not in the graph, warnings.

    Values are as they stand, within range or not. Raises ValueError, KeyError, TypeError for another shape.
    """
    nodes = _Nodes(graph)
    samplers = [one for one in graph.values() if _kind(one) in ("KSampler", "KSamplerAdvanced")]
    if not samplers:
        raise ValueError("no sampler in the graph")
    inputs = samplers[0]["inputs"]
    body: dict[str, Any] = {}
    names = {"seed": "seed", "noise_seed": "seed", "steps": "num_inference_steps", "cfg": "guidance_scale"}
    for theirs, ours in names.items():
        body |= nodes.number(inputs, theirs, ours)
    if len(samplers) > 1:
        nodes.warnings.append(
            f"its graph has {len(samplers)} samplers, of which the first counts; a second pass is hires here"
        )
    name, spacing = str(inputs.get("sampler_name", "")), str(inputs.get("scheduler", ""))
    scheduler, options = _SAMPLERS.get(name, ("", {}))
    options = options | _SPACINGS.get(spacing, {})
    if scheduler and spacing in _SPACINGS and options.keys() <= SCHEDULER_OPTIONS[scheduler]:
        body |= {"scheduler": scheduler, **({"scheduler_options": options} if options else {})}
    else:
        nodes.warnings.append(f"sampler {name[:64]!r} with scheduler {spacing[:64]!r} is not here")
    for link, field in (("positive", "prompt"), ("negative", "negative_prompt")):
        text = nodes.text(inputs.get(link), field)
        if text or (text == "" and field == "prompt"):
            body[field] = text
    latent = nodes.at(inputs.get("latent_image"))
    needs: tuple[str, ...] = ()
    if _kind(latent).startswith("Empty") and {"width", "height"} <= latent["inputs"].keys():
        for side in ("width", "height"):
            body |= nodes.number(latent["inputs"], side, side)
    elif _kind(latent).startswith("VAEEncode"):
        body |= nodes.number(inputs, "denoise", "strength")
        needs = ("image", "mask") if _kind(latent) == "VAEEncodeForInpaint" else ("image",)
    elif latent is not None:
        nodes.unknown(latent)
    if nodes.controlled:
        needs = (*needs, "controlnets")
    checkpoint, loras = nodes.model(inputs.get("model"))
    if loras:
        body["loras"] = loras
    nodes.warnings.append(
        "ComfyUI weighs prompts and draws noise in its own way; the same seed may draw another picture"
    )
    return body, checkpoint, needs, nodes.warnings


class _Nodes:
    """The graph, of which at most MAX_LINKS links are followed."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self._graph, self._links = graph, 0
        self.warnings: list[str] = []
        self.controlled = False  # a ControlNet lay between a sampler and a text

    def at(self, link: Any) -> Any:
        """The node behind `[node, slot]`; None when there is none, or enough were followed."""
        self._links += 1
        if not isinstance(link, list) or len(link) != 2 or self._links > MAX_LINKS:
            return None
        return self._graph.get(str(link[0]))

    def value(self, sent: Any, kind: type | tuple[type, ...], name: str) -> Any:
        """What was sent, or what the node behind a link holds, when it holds one of the kind and asks no further node.

        None, with a warning for a link, when there is none.
        """
        if isinstance(sent, list):
            inputs = [] if (node := self.at(sent)) is None else [*node["inputs"].values()]
            held = [one for one in inputs if isinstance(one, kind) and not isinstance(one, bool)]
            if len(held) == 1 and not any(isinstance(one, list) for one in inputs):
                return held[0]
            self.warnings.append(f"its {name} comes from another node, and is left out")
        return sent if isinstance(sent, kind) and not isinstance(sent, bool) else None

    def number(self, inputs: Mapping[str, Any], theirs: str, ours: str) -> dict[str, int | float]:
        """By our name; empty when there is none. 5.0 is 5, as some nodes write whole numbers so."""
        found = self.value(inputs.get(theirs), (int, float), theirs)
        if found is None:
            return {}
        return {ours: int(found) if isinstance(found, float) and found.is_integer() else found}

    def unknown(self, node: Any) -> None:
        self.warnings.append(f"node {_kind(node)[:64]!r} is not known; what lies behind it is left out")

    def text(self, link: Any, field: str) -> str | None:
        """Behind any ControlNets; None when it cannot be read."""
        while (kind := _kind(node := self.at(link))) in ("ControlNetApply", "ControlNetApplyAdvanced"):
            self.controlled = True
            side = "conditioning" if kind == "ControlNetApply" else {0: "positive", 1: "negative"}[link[1]]
            link = node["inputs"].get(side)
        if kind not in ("CLIPTextEncode", "CLIPTextEncodeSDXL"):
            if node is not None:
                self.unknown(node)
            return None
        found: str | None = self.value(node["inputs"].get("text", node["inputs"].get("text_g")), str, field)
        return found

    def model(self, link: Any) -> tuple[str | None, list[dict[str, Any]]]:
        loras: list[dict[str, Any]] = []
        seen: list[Any] = []
        while (node := self.at(link)) is not None and node not in seen:
            seen.append(node)
            inputs = node["inputs"]
            if _kind(node) in ("LoraLoader", "LoraLoaderModelOnly"):
                name = str(inputs["lora_name"]).replace("\\", "/").rpartition("/")[2].removesuffix(".safetensors")
                loras.append({"name": name, "scale": 1.0} | self.number(inputs, "strength_model", "scale"))
                link = inputs.get("model")
            elif _kind(node) == "CheckpointLoaderSimple":
                return str(inputs["ckpt_name"]).replace("\\", "/").rpartition("/")[2], loras[::-1]
            else:
                self.unknown(node)
                break
        return None, loras[::-1]


def _kind(node: Any) -> str:
    return str(node.get("class_type", "")) if isinstance(node, dict) else ""
