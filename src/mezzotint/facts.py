"""One model on disk as facts: what it can draw, what it goes with, or why it cannot be used.

Reads configs and headers only, through headers.py. Must not run anything found in a folder.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint import single_file
from mezzotint.families.mentions import MAX_TOKENS
from mezzotint.families.table import (
    FAMILIES,
    MAX_GUIDANCE,
    MAX_STEPS,
    SCHEDULER_STEPS,
    SCHEDULERS,
    UNUSED_COMPONENTS,
    FamilyFacts,
)
from mezzotint.headers import (
    OTHER_HALF,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    PICKLES,
    TRAINED,
    TRAINED_EMBEDDING,
    Header,
    Unusable,
    beside,
    check_config,
    check_files,
    check_weights,
    lora_file,
    peft_config,
    read_header,
    read_json,
    told_beside,
    walk,
)

TYPES = ("text2img", "img2img", "inpainting", "controlnet", "lora")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MAX_NAME_CHARACTERS = 256
_OF_PEFT = "base_model.model."
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq")
MAX_SAMPLE = 1 << 13  # latents a side that a model may have been trained at
MAX_LEVELS = 8
MAX_OF_SCHEDULER = {"num_train_timesteps": 10_000, "solver_order": 3}
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")

_MARKS = ("model_index.json", "config.json", PEFT_CONFIG, PEFT_WEIGHTS)  # a folder with one of these is a model
_SCHEDULER_NAMES = {class_name: name for name, class_name in SCHEDULERS.items()}
_CONTROL_LEVELS = (16, 32, 96, 256)  # of a ControlNet whose config says nothing
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
    kind: str  # checkpoint, controlnet, lora, vae, embedding
    path: str
    state: str  # "ready" or "invalid"
    reason: str | None = None
    stamp: str = ""  # of names, sizes and times: another one when a file of it, or of its `vae`, comes, changes or goes
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
    trained_as: str = ""  # the name that a LoRA's or an embedding's training gave it; empty: not told
    tokens: int = 0  # that an embedding stands for
    vae: str = ""  # id of the autoencoder to use in place of its own
    vae_path: str = ""
    dtype: str = "auto"  # as set for this model; auto: as set for the server


def model_at(path: Path) -> Path | None:
    """What is a model of what lies in a model folder: itself, or what diffusers' training left in a folder."""
    # os.path.exists: False in a folder of others, such as lost+found
    if any(os.path.exists(path / name) for name in _MARKS) or path.suffix.lower() in PICKLES | {".safetensors"}:
        return path
    return next((path / name for name in TRAINED if os.path.exists(path / name)), None)


def read(path: Path, root: Path) -> Model:
    """The facts of a folder or file below `root`. Never raises: what is wrong is the reason."""
    name, kind, stamp = id_of(named_by(path, root)), "checkpoint", ""
    try:
        if not path.is_file() and not path.is_dir():
            raise Unusable("it is a link to nothing, or no plain file")
        stamp = stamp_of(path)
        if path.is_file():
            header = _open(path, root)
            kind = single_file.kind_of(header.shapes)
            facts = _READ_FILE[kind](path, header)
        elif (path / "model_index.json").exists():
            facts = _read_pipeline(path, root)
        elif lora_file(path).exists() or (path / PEFT_CONFIG).exists():
            kind = "lora"
            check_files(path, root)
            facts = _file_lora(path, read_header(lora_file(path)))
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
        reason = str(why).encode(errors="replace").decode()  # names of files can be of any bytes
    except KeyError as error:
        reason = f"its configuration lacks {str(error.args[0])[:96]!r}"
    except OSError as error:
        reason = f"its files cannot be read: {error.strerror}"
    except Exception as error:  # noqa: BLE001  a stranger wrote what is read; one bad model must not hide the others
        reason = f"its configuration cannot be read ({type(error).__name__})"
    return Model(id=name, kind=kind, path=str(path), stamp=stamp, state="invalid", reason=reason)


def named_by(path: Path, root: Path) -> Path:
    """What a model has its name from: itself, but of what its training left the folder."""
    return path.parent if path.name in TRAINED and path.parent != root else path


def id_of(path: Path) -> str:
    """Its name without a file's suffix; what an id cannot hold becomes `_`."""
    name = path.name if os.path.isdir(path) else path.stem  # Path.is_dir raises for what may not be looked at
    if ID.fullmatch(name):
        return name
    mended = re.sub(r"[^A-Za-z0-9._~-]+", "_", name).lstrip("._~-")[:128]
    return mended if ID.fullmatch(mended) else f"model~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def stamp_of(path: Path) -> str:
    """Of the names, sizes and times of a model's files. Raises OSError."""
    total = hashlib.sha256()
    for file in [*sorted(walk(path)), *told_beside(path)]:
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
    if adapter.kind == "lora":  # a file that says nothing of its width may fit; loading it decides
        return [model.id for model in ready if adapter.text_width in (0, model.text_width)]
    if adapter.kind == "vae":
        return [model.id for model in ready if model.latents == adapter.latents]
    if adapter.kind == "embedding":
        return [model.id for model in ready if model.text_width == adapter.text_width]
    return []


# ---- single files


def _open(path: Path, root: Path) -> Header:
    if not path.resolve().is_relative_to(root.resolve()):
        raise Unusable("it is a link out of the model folder")
    if path.suffix.lower() in PICKLES:
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
    own = _own_defaults(told)
    _check_peft(path, header)
    return {
        "bytes": lora_file(path).stat().st_size,
        "text_width": _text_width(header.shapes),
        "trigger_words": _trigger_words(told),
        "trained_as": str(header.metadata.get("ss_output_name", ""))[:MAX_NAME_CHARACTERS],
        "lora_defaults": LoraDefaults(
            num_inference_steps=own.get("num_inference_steps"),
            guidance_scale=own.get("guidance_scale"),
            scheduler=own.get("scheduler"),
        ),
    }


def _file_embedding(path: Path, header: Header) -> dict[str, Any]:
    if path.name == TRAINED_EMBEDDING and path.with_name(OTHER_HALF).exists():
        raise Unusable(
            f"it is half of one: write the tensors of both files into one, {OTHER_HALF}'s as clip_g, its own as clip_l"
        )
    counts = {shape[0] if len(shape) == 2 else 1 for shape in header.shapes.values()}
    if len(counts) != 1 or not 1 <= max(counts) <= MAX_TOKENS:
        raise Unusable(
            f"it stands for {max(counts)} tokens; an embedding is of 1 to {MAX_TOKENS}, as many for each text encoder"
        )
    return {
        "bytes": path.stat().st_size,
        "text_width": sum(shape[-1] for shape in header.shapes.values()),
        "tokens": max(counts),
        "trained_as": next(iter(header.shapes))[:MAX_NAME_CHARACTERS],
    }


_READ_FILE = {
    "checkpoint": _file_checkpoint,
    "controlnet": _file_controlnet,
    "vae": _file_vae,
    "lora": _file_lora,
    "embedding": _file_embedding,
}


def _check_peft(path: Path, header: Header) -> None:
    """Raises Unusable when what PEFT says beside a LoRA makes of it something else than the sum of its products."""
    if (told := peft_config(path)) is None:
        stray = (path.parent / PEFT_CONFIG).exists() and any(name.startswith(_OF_PEFT) for name in header.shapes)
        if stray and "lora_adapter_metadata" not in header.metadata:
            raise Unusable(
                f"beside it lies an {PEFT_CONFIG} that may tell how strong it is, or another LoRA; put the two into a "
                f"folder of their own, this one under the name {PEFT_WEIGHTS}"
            )
        return
    if (kind := told.get("peft_type", "LORA")) != "LORA":
        raise Unusable(f"its {PEFT_CONFIG} says {str(kind)[:64]!r}, which is no plain LoRA")
    start = str(told.get("init_lora_weights")).lower()
    if start.startswith(_CHANGED_BASES):
        raise Unusable(f"it belongs to a base that its training changed (init_lora_weights {start[:64]!r}); convert it")


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
    if (read := config.get("conditioning_channels", 3)) != 3:
        raise Unusable(f"it reads control images of {str(read)[:64]} channels; this version gives it 3")
    factor = _factor(config, "conditioning_embedding_out_channels", _CONTROL_LEVELS)
    return {
        "shape": _shape(config, config.get("in_channels", 4), factor),
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
    for name, most in MAX_OF_SCHEDULER.items():
        number = configs["scheduler"].get(name, 1)
        if type(number) is not int or not 1 <= number <= most:
            raise Unusable(f"its scheduler's {name} is {str(number)[:64]}; it is a whole number from 1 to {most}")
    factor = _factor(vae, "block_out_channels")
    sample = unet["sample_size"]
    rows, columns = sample if isinstance(sample, list) and len(sample) == 2 else (sample, sample)
    if not all(type(side) is int and 0 < side <= MAX_SAMPLE for side in (rows, columns)):
        raise Unusable(f"its UNet's sample_size is {str(sample)[:64]}; it is a size of latents, of 1 to {MAX_SAMPLE}")
    least = min(16, max(1, rows // 4)) * factor
    own = {
        "width": columns * factor,
        "height": rows * factor,
        "num_inference_steps": family.num_inference_steps,
        "guidance_scale": family.guidance_scale,
        "scheduler": scheduler,
        "vae": "",
        **_own_defaults(told),
    }
    for side in ("width", "height"):
        if own[side] % factor or own[side] < least:
            raise Unusable(f"its default {side} {own[side]} must be a multiple of {factor}, {least} or more")
    if own["num_inference_steps"] > (most := SCHEDULER_STEPS.get(own["scheduler"], MAX_STEPS)):
        raise Unusable(
            f"its default {own['scheduler']} runs at most {most} steps; told are {own['num_inference_steps']}"
        )
    return {
        "family": family.name,
        "types": TYPES if channels == latents else ("inpainting",),
        "size_multiple": factor,
        "min_size": least,
        "prediction_type": prediction,
        "text_layers": int(configs["text_encoder"]["num_hidden_layers"]),
        "text_width": int(unet["cross_attention_dim"]),
        "shape": _shape(unet, latents, factor),
        "latents": _latents(vae),
        "trigger_words": _trigger_words(told),
        **own,
    }


def _own_defaults(told: Mapping[str, Any]) -> dict[str, Any]:
    """What its owner says that requests get. Raises Unusable for what no request could say."""
    own = told.get("defaults", {})
    if not isinstance(own, dict):
        raise Unusable("its defaults are no JSON object")
    for name, value in own.items():
        if name not in RULES:
            raise Unusable(f"its defaults hold {name[:64]!r}; they can be {', '.join(RULES)}")
        fits, rule = RULES[name]
        if not fits(value):
            raise Unusable(f"its default {name} must be {rule}; it is {str(value)[:64]!r}")
    return own | ({"guidance_scale": float(own["guidance_scale"])} if "guidance_scale" in own else {})


def _trigger_words(told: Mapping[str, Any]) -> tuple[str, ...]:
    words = told.get("trigger_words", [])
    if not isinstance(words, list):
        raise Unusable(f"its trigger_words must be a list of words; they are {str(words)[:64]!r}")
    return tuple(str(word) for word in words)


def _is_side(value: Any) -> bool:
    return type(value) is int and value > 0


# What each default may be, whatever the model.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "width": (_is_side, "a whole number of px"),
    "height": (_is_side, "a whole number of px"),
    "num_inference_steps": (
        lambda value: type(value) is int and 1 <= value <= MAX_STEPS,
        f"a whole number from 1 to {MAX_STEPS}",
    ),
    "guidance_scale": (
        lambda value: type(value) in (int, float) and 0 <= value <= MAX_GUIDANCE,
        f"a number from 0 to {MAX_GUIDANCE}",
    ),
    "scheduler": (lambda value: isinstance(value, str) and value in SCHEDULERS, f"one of {', '.join(SCHEDULERS)}"),
    "vae": (lambda value: isinstance(value, str), "the id of an autoencoder"),
}


def _widths(config: Mapping[str, Any], name: str, usual: Sequence[int] = ()) -> list[int]:
    """Channels of each level. Raises Unusable when there is none, or more than a model has."""
    widths = config.get(name, usual)
    if not isinstance(widths, Sequence) or not widths or not all(type(one) is int and one > 0 for one in widths):
        raise Unusable(f"its {name} is {str(widths)[:64]}; it must list the channels of each level")
    if len(widths) > MAX_LEVELS:
        raise Unusable(f"its {name} lists {len(widths)} levels; at most {MAX_LEVELS} levels can be right")
    return list(widths)


def _factor(config: Mapping[str, Any], name: str, usual: Sequence[int] = ()) -> int:
    """Pixels a side to one of latents: every level but the first halves the picture."""
    return 1 << (len(_widths(config, name, usual)) - 1)


def _shape(config: Mapping[str, Any], latents: int, factor: int) -> str:
    """What a UNet and a ControlNet must have in common, the model's latents among it. The widths come first."""
    widths = "-".join(str(width) for width in _widths(config, "block_out_channels"))
    added, layers = config.get("addition_embed_type") or "none", config.get("layers_per_block", 2)
    return f"{widths}/{config['cross_attention_dim']}/{added}/{layers}/{latents}/{factor}"


def _latents(vae: Mapping[str, Any]) -> str:
    """What two autoencoders must have in common to stand for one another."""
    return f"{vae['latent_channels']}/{len(_widths(vae, 'block_out_channels'))}"
