"""One model on disk as facts: what it can draw, what it goes with, or why it cannot be used.

Reads configs and headers only, through headers.py. Must not run anything found in a folder.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint import single_file
from mezzotint.families.table import FAMILIES, SCHEDULERS, UNUSED_COMPONENTS, FamilyFacts
from mezzotint.headers import (
    PICKLES,
    Header,
    Unusable,
    beside,
    beside_file,
    check_config,
    check_files,
    check_weights,
    read_header,
    read_json,
    walk,
)

TYPES = ("text2img", "img2img", "inpainting", "controlnet", "lora")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MAX_NAME_CHARACTERS = 256

_SCHEDULER_NAMES = {class_name: name for name, class_name in SCHEDULERS.items()}
_CONTROL_TYPES = (
    "canny", "depth", "openpose", "scribble", "softedge", "lineart", "tile", "seg", "normal", "mlsd", "edges",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraDefaults:
    """What a request with a LoRA gets that says nothing itself, before what its model says; None: what that says."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One model on disk. With `state` "invalid" only `id`, `kind`, `path`, `reason` and `stamp` mean anything."""

    id: str
    kind: str  # checkpoint, controlnet, lora, vae
    path: str
    state: str  # "ready" or "invalid"
    reason: str | None = None
    stamp: str = ""  # of names, sizes and times: another one when a file comes, changes or goes
    family: str = ""
    types: tuple[str, ...] = ()
    bytes: int = 0  # of weights on disk
    parameters: int = 0  # of a checkpoint: how many numbers its weights are
    width: int = 0  # px, the size it was trained at
    height: int = 0
    size_multiple: int = 0
    min_size: int = 0
    num_inference_steps: int = 0
    guidance_scale: float = 0.0
    scheduler: str = ""
    prediction_type: str = ""
    text_layers: int = 0
    text_width: int = 0  # of the states that attention reads; of a LoRA 0 when its file does not say
    shape: str = ""  # of the UNet: a ControlNet fits the models of equal shape
    latents: str = ""  # of the autoencoder: another one fits the models of equal latents
    control_type: str = ""  # what a ControlNet follows, such as "canny"; empty: not told
    trigger_words: tuple[str, ...] = ()
    lora_defaults: LoraDefaults = LoraDefaults()
    trained_as: str = ""  # the name that a LoRA's training gave it; empty: not told
    vae: str = ""  # id of the autoencoder to use in place of its own
    vae_path: str = ""
    dtype: str = "auto"  # as set for this model; auto: as set for the server


def read(path: Path, root: Path) -> Model:
    """The facts of a folder or file below `root`. Never raises: what is wrong is the reason."""
    name = path.stem if path.is_file() else path.name
    kind, stamp = "checkpoint", ""
    try:
        stamp = stamp_of(path)
        if path.is_file():
            header = _open(path, root)
            kind = single_file.kind_of(header.shapes)
            facts = _READ_FILE[kind](path, header)
        elif (path / "model_index.json").exists():
            facts = _read_pipeline(path, root)
        else:
            config = read_json(path / "config.json")
            kind = _COMPONENTS.get(str(config.get("_class_name")), "")
            if not kind:
                kind = "controlnet"
                shown = str(config.get("_class_name"))[:64]
                raise Unusable(f"its class {shown!r} is of no kind that this version runs")
            facts = _read_component(path, root, kind, config)
        return Model(id=name, kind=kind, path=str(path), stamp=stamp, state="ready", **facts)
    except Unusable as why:
        reason = str(why)
    except (OSError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        reason = f"its configuration cannot be read ({type(error).__name__})"
    return Model(id=name, kind=kind, path=str(path), stamp=stamp, state="invalid", reason=reason)


def stamp_of(path: Path) -> str:
    """Of the names, sizes and times of a model's files. Raises OSError."""
    total = hashlib.sha256()
    told = [] if path.is_dir() else [beside_file(path)]
    for file in [*sorted(walk(path)), *(one for one in told if one.exists())]:
        stat = file.stat()
        total.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return total.hexdigest()


def fitting(adapter: Model, models: Iterable[Model]) -> list[str]:
    """Ids of the checkpoints that an adapter can go with; none for what is no adapter."""
    ready = [model for model in models if model.kind == "checkpoint" and model.state == "ready"]
    if adapter.state != "ready":
        return []
    if adapter.kind == "controlnet":
        return [model.id for model in ready if model.shape == adapter.shape]
    if adapter.kind == "lora":
        return [model.id for model in ready if adapter.text_width in (0, model.text_width)]
    if adapter.kind == "vae":
        return [model.id for model in ready if model.latents == adapter.latents]
    return []


# ---- single files


def _open(path: Path, root: Path) -> Header:
    if not path.resolve().is_relative_to(root.resolve()):
        raise Unusable("it is a link out of the model folder")
    if path.suffix in PICKLES:
        raise Unusable(
            f"{path.suffix} files are pickles, which can carry code, and are never opened; get its .safetensors form, "
            "or convert it on a machine where that code may run"
        )
    return read_header(path)


def _file_checkpoint(path: Path, header: Header) -> dict[str, Any]:
    told = beside(path)
    configs = single_file.checkpoint_configs(header, told)
    family = FAMILIES[single_file.family_of(header.shapes)]
    scheduler = single_file.scheduler_of(header.shapes)
    return _checkpoint(family, configs, told, scheduler) | {
        "bytes": path.stat().st_size,
        "parameters": header.parameters,
    }


def _file_controlnet(path: Path, header: Header) -> dict[str, Any]:
    config = single_file.controlnet_config(header.shapes)
    return _component("controlnet", path, config) | {"bytes": path.stat().st_size}


def _file_vae(path: Path, header: Header) -> dict[str, Any]:
    return _component("vae", path, single_file.vae_config(header.shapes, 1.0)) | {"bytes": path.stat().st_size}


def _file_lora(path: Path, header: Header) -> dict[str, Any]:
    told = beside(path)
    own = told.get("defaults", {})
    steps, guidance, scheduler = (own.get(name) for name in ("num_inference_steps", "guidance_scale", "scheduler"))
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise Unusable(f"its default scheduler {str(scheduler)[:64]!r} is none of {', '.join(SCHEDULERS)}")
    return {
        "bytes": path.stat().st_size,
        "text_width": _text_width(header.shapes),
        "trigger_words": tuple(str(word) for word in told.get("trigger_words", ())),
        "trained_as": str(header.metadata.get("ss_output_name", ""))[:MAX_NAME_CHARACTERS],
        "lora_defaults": LoraDefaults(
            num_inference_steps=None if steps is None else max(1, int(steps)),
            guidance_scale=None if guidance is None else float(guidance),
            scheduler=scheduler,
        ),
    }


_READ_FILE = {"checkpoint": _file_checkpoint, "controlnet": _file_controlnet, "vae": _file_vae, "lora": _file_lora}


def _text_width(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Width of what a LoRA's cross attention reads; 0 when it adapts none."""
    for name, shape in shapes.items():
        down = name.endswith(("lora_down.weight", "lora_A.weight", "lora.down.weight", "hada_w1_b"))
        if down and "attn2" in name and ("to_k" in name or "to_v" in name):
            return shape[1]
    return 0


# ---- folders

_COMPONENTS = {"ControlNetModel": "controlnet", "AutoencoderKL": "vae"}


def _read_component(path: Path, root: Path, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    check_files(path, root)
    check_config(config, "config.json")
    return _component(kind, path, config) | {"bytes": check_weights(path)[0]}


def _component(kind: str, path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    if kind == "vae":
        return {"latents": _latents(config)}
    name = path.stem if path.is_file() else path.name
    follows = beside(path).get("control_type") or next((one for one in _CONTROL_TYPES if one in name.lower()), "")
    return {
        "shape": _shape(config),
        "text_width": int(config["cross_attention_dim"]),
        "control_type": str(follows),
    }


def _read_pipeline(path: Path, root: Path) -> dict[str, Any]:
    index = read_json(path / "model_index.json")
    family = next((row for row in FAMILIES.values() if index.get("_class_name") in row.pipelines), None)
    if family is None:
        raise Unusable(f"its pipeline {str(index.get('_class_name'))[:64]!r} is of no family that this version runs")
    check_files(path, root)
    _check_components(path, index, family)
    configs = {part: read_json(path / part / "config.json") for part in ("unet", "vae", "text_encoder")}
    configs["scheduler"] = read_json(path / "scheduler" / "scheduler_config.json")
    weights = [check_weights(path / part) for part in family.components if _has_weights(part)]
    scheduler = _SCHEDULER_NAMES[index["scheduler"][1]]
    return _checkpoint(family, configs, beside(path), scheduler) | {
        "bytes": sum(on_disk for on_disk, _ in weights),
        "parameters": sum(parameters for _, parameters in weights),
    }


def _check_components(path: Path, index: dict[str, Any], family: FamilyFacts) -> None:
    for name, value in index.items():
        if name.startswith("_") or name in UNUSED_COMPONENTS or not isinstance(value, list) or value == [None, None]:
            continue
        if tuple(value) not in family.components.get(name, frozenset()):
            raise Unusable(
                f"its {name} is {'.'.join(map(str, value))[:96]}, which is not on the list for {family.name}"
            )
    for name in family.components:
        if not isinstance(index.get(name), list):
            raise Unusable(f"model_index.json names no {name}")
        for config in sorted((path / name).glob("*config.json")):
            told = read_json(config)
            check_config(told if config.name == "config.json" else dict.fromkeys(told), str(config.relative_to(path)))


def _has_weights(part: str) -> bool:
    return part not in ("scheduler", "tokenizer", "tokenizer_2")


# ---- both


def _checkpoint(
    family: FamilyFacts, configs: Mapping[str, Mapping[str, Any]], told: Mapping[str, Any], scheduler: str
) -> dict[str, Any]:
    unet, vae = configs["unet"], configs["vae"]
    channels, latents = unet["in_channels"], vae["latent_channels"]
    if channels not in (latents, 2 * latents + 1):
        raise Unusable(
            f"its UNet takes {channels} channels; this version runs those of {latents} and {2 * latents + 1}"
        )
    if unet.get("time_cond_proj_dim") is not None:
        raise Unusable(
            "its UNet takes the guidance as an input (time_cond_proj_dim, as fully distilled LCMs do), which this "
            "version does not give it; use the plain model with its LCM LoRA"
        )
    prediction = str(told.get("prediction_type") or configs["scheduler"].get("prediction_type", "epsilon"))
    if prediction not in PREDICTION_TYPES:
        raise Unusable(f"prediction_type {prediction[:64]!r} is none of {', '.join(PREDICTION_TYPES)}")
    own = told.get("defaults", {})
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    sample = unet["sample_size"]
    rows, columns = (sample, sample) if isinstance(sample, int) else sample
    if own.get("scheduler", scheduler) not in SCHEDULERS:
        raise Unusable(f"its default scheduler {str(own['scheduler'])[:64]!r} is none of {', '.join(SCHEDULERS)}")
    return {
        "family": family.name,
        "types": TYPES if channels == latents else ("inpainting",),
        "width": int(own.get("width", columns * factor)),
        "height": int(own.get("height", rows * factor)),
        "size_multiple": factor,
        "min_size": min(16, max(1, rows // 4)) * factor,
        "num_inference_steps": int(own.get("num_inference_steps", family.num_inference_steps)),
        "guidance_scale": float(own.get("guidance_scale", family.guidance_scale)),
        "scheduler": str(own.get("scheduler", scheduler)),
        "prediction_type": prediction,
        "text_layers": int(configs["text_encoder"]["num_hidden_layers"]),
        "text_width": int(unet["cross_attention_dim"]),
        "shape": _shape(unet),
        "latents": _latents(vae),
        "trigger_words": tuple(str(word) for word in told.get("trigger_words", ())),
        "vae": str(own.get("vae", "")),
    }


def _shape(config: Mapping[str, Any]) -> str:
    """What a UNet and a ControlNet must have in common."""
    widths = "-".join(str(width) for width in config["block_out_channels"])
    return f"{widths}/{config['cross_attention_dim']}/{config.get('addition_embed_type') or 'none'}"


def _latents(vae: Mapping[str, Any]) -> str:
    """What two autoencoders must have in common to stand for one another."""
    return f"{vae['latent_channels']}/{len(vae['block_out_channels'])}"
