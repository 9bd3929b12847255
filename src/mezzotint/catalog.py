"""The models on disk, as facts: what each can draw, whether it can be used, its digest.

Reads JSON configs and safetensors headers only. Must not import torch, map a tensor, or run anything found in a folder.
A model that cannot be used is listed with the reason, never hidden.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mezzotint.families.table import FAMILIES, SCHEDULERS, UNUSED_COMPONENTS, FamilyFacts

BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_MODEL = "icons"

TYPES = ("text2img", "img2img", "inpainting", "controlnet", "lora")

MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")
_COMPONENT_SUFFIXES = frozenset({".json", ".txt", ".model", ".safetensors"})
_CODE_SUFFIXES = frozenset({".py", ".pyc", ".so", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"})
_PLAIN_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
_HALF_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model\.fp16(-\d+-of-\d+)?\.safetensors")
_REFUSED_CONFIG_KEYS = re.compile(r"auto_map|trust_remote_code|custom_pipelines?|_attn_implementation.*")
_SCHEDULER_NAMES = {class_name: name for name, class_name in SCHEDULERS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One model on disk. With `state` "invalid" only `id`, `kind`, `path`, `reason` mean anything."""

    id: str
    kind: str  # checkpoint, controlnet, lora
    path: str
    state: str  # "ready" or "invalid"
    reason: str | None = None
    family: str = ""
    types: tuple[str, ...] = ()
    bytes: int = 0  # of weights on disk
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
    control_type: str = ""  # what a ControlNet follows, such as "canny"; empty: not told
    trigger_words: tuple[str, ...] = ()


class _Unusable(Exception):
    """Why a folder is not a model that can be used."""


class Catalog:
    """What the model folders hold. `scan` may be called again at any time; readers see the old facts or the new."""

    def __init__(self, roots: Iterable[Path], cache: Path) -> None:
        self._roots = (*roots, BUNDLED)
        self._cache = cache / "catalog"
        self._hashing = threading.Lock()
        self.models: Mapping[str, Model] = {}

    def scan(self) -> None:
        """Read every root. Blocks on the disk; call it from a thread when a loop is running."""
        found: dict[str, Model] = {}
        for root in self._roots:
            for path in _candidates(root):
                model = _read(path, root)
                if model.id in found:
                    model = replace(model, id=f"{model.id}~{self._digest(model)[:8]}")
                found[model.id] = model
        self.models = found

    def digest(self, model_id: str) -> str:
        """SHA-256 over the model's files, 64 hex digits; cached by path, size and time. Blocks: hashes once."""
        return self._digest(self.models[model_id])

    def _digest(self, model: Model) -> str:
        with self._hashing:
            files = sorted(path for path in _walk(Path(model.path)) if path.suffix in _COMPONENT_SUFFIXES)
            total = hashlib.sha256()
            for path in files:
                relative = path.relative_to(model.path).as_posix() if path != Path(model.path) else path.name
                total.update(f"{relative}\0{self._file_digest(path)}\n".encode())
            return total.hexdigest()

    def _file_digest(self, path: Path) -> str:
        stat = path.stat()
        key = hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()
        note = self._cache / key
        if note.exists() and len(known := note.read_text()) == 64:
            return known
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        self._cache.mkdir(parents=True, exist_ok=True)
        draft = note.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(found)
        draft.replace(note)
        return found


def fitting(adapter: Model, models: Iterable[Model]) -> list[str]:
    """Ids of the checkpoints that an adapter can go with; none for what is no adapter."""
    ready = [model for model in models if model.kind == "checkpoint" and model.state == "ready"]
    if adapter.kind == "controlnet":
        return [model.id for model in ready if model.shape == adapter.shape]
    if adapter.kind == "lora":
        return [model.id for model in ready if adapter.text_width in (0, model.text_width)]
    return []


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a component: the whole precision when there are several, all its shards."""
    files = sorted(folder.glob("*.safetensors"))
    for pattern in (_PLAIN_WEIGHTS, _HALF_WEIGHTS):
        if found := [file for file in files if pattern.fullmatch(file.name)]:
            return found
    return []


def _candidates(root: Path) -> list[Path]:
    if (root / "model_index.json").exists():
        return [root]
    if not root.is_dir():
        return []
    return sorted(
        path
        for path in root.iterdir()
        if _ID.fullmatch(path.stem if path.is_file() else path.name)
        and (
            (path / "model_index.json").exists()
            or (path / "config.json").exists()
            or path.suffix in {".safetensors", ".ckpt"}
        )
    )


def _read(path: Path, root: Path) -> Model:
    name = path.stem if path.is_file() else path.name
    kind = "checkpoint"
    try:
        if path.is_file():
            kind, read = _file_kind(path), _read_file
        elif (path / "model_index.json").exists():
            read = _read_folder
        else:
            kind, read = "controlnet", _read_controlnet
        return read(path, root, name)
    except _Unusable as why:
        return Model(id=name, kind=kind, path=str(path), state="invalid", reason=str(why))
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = f"its configuration cannot be read ({type(error).__name__})"
        return Model(id=name, kind=kind, path=str(path), state="invalid", reason=reason)


def _file_kind(path: Path) -> str:
    """By the names of its tensors; a file that cannot be read counts as a checkpoint."""
    if path.suffix != ".safetensors":
        return "checkpoint"
    try:
        names = _header(path)
    except (_Unusable, OSError, ValueError):
        return "checkpoint"
    return "lora" if any("lora" in name for name in names) else "checkpoint"


def _read_file(path: Path, root: Path, name: str) -> Model:
    if not path.resolve().is_relative_to(root.resolve()):
        raise _Unusable("it is a link out of the model folder")
    if path.suffix != ".safetensors":
        raise _Unusable(f"{path.suffix} files can carry code; convert it to safetensors")
    tensors = _header(path)
    if not any("lora" in key for key in tensors):
        raise _Unusable("single-file checkpoints are not supported by this version; convert it to a diffusers folder")
    told = _beside(path)
    return Model(
        id=name,
        kind="lora",
        path=str(path),
        state="ready",
        bytes=path.stat().st_size,
        text_width=_text_width(tensors),
        trigger_words=tuple(str(word) for word in told.get("trigger_words", ())),
    )


def _text_width(tensors: Mapping[str, Any]) -> int:
    """Width of what a LoRA's cross attention reads; 0 when it adapts none."""
    for key, entry in tensors.items():
        down = key.endswith(("lora_down.weight", "lora_A.weight", "lora.down.weight"))
        if down and "attn2" in key and ("to_k" in key or "to_v" in key):
            return int(entry["shape"][1])
    return 0


def _read_controlnet(path: Path, root: Path, name: str) -> Model:
    config = _json(path / "config.json")
    if config.get("_class_name") != "ControlNetModel":
        raise _Unusable(f"its class {str(config.get('_class_name'))[:64]!r} is of no kind that this version runs")
    _check_files(path, root)
    told = _beside(path)
    return Model(
        id=name,
        kind="controlnet",
        path=str(path),
        state="ready",
        bytes=_check_weights(path),
        shape=_shape(config),
        text_width=int(config["cross_attention_dim"]),
        control_type=str(told.get("control_type") or _control_type(name)),
    )


_CONTROL_TYPES = (
    "canny",
    "depth",
    "openpose",
    "scribble",
    "softedge",
    "lineart",
    "tile",
    "seg",
    "normal",
    "mlsd",
    "edges",
)


def _control_type(name: str) -> str:
    return next((kind for kind in _CONTROL_TYPES if kind in name.lower()), "")


def _shape(config: Mapping[str, Any]) -> str:
    """What a UNet and a ControlNet must have in common."""
    widths = "-".join(str(width) for width in config["block_out_channels"])
    return f"{widths}/{config['cross_attention_dim']}/{config.get('addition_embed_type') or 'none'}"


def _beside(path: Path) -> dict[str, Any]:
    """The optional mezzotint.json of a folder, or NAME.json beside a file."""
    told = path / "mezzotint.json" if path.is_dir() else path.with_suffix(".json")
    return _json(told) if told.exists() else {}


def _read_folder(path: Path, root: Path, name: str) -> Model:
    index = _json(path / "model_index.json")
    family = next((row for row in FAMILIES.values() if index.get("_class_name") in row.pipelines), None)
    if family is None:
        raise _Unusable(f"its pipeline {str(index.get('_class_name'))[:64]!r} is of no family that this version runs")
    _check_files(path, root)
    _check_components(path, index, family)
    unet, vae = _json(path / "unet" / "config.json"), _json(path / "vae" / "config.json")
    channels, latents = unet["in_channels"], vae["latent_channels"]
    if channels not in (latents, 2 * latents + 1):
        raise _Unusable(
            f"its UNet takes {channels} channels; this version runs those of {latents} and {2 * latents + 1}"
        )
    text, scheduler = _json(path / "text_encoder" / "config.json"), _json(path / "scheduler" / "scheduler_config.json")
    weights = sum(_check_weights(path / part) for part in family.components if _has_weights(part))
    own = _beside(path).get("defaults", {})
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    sample = unet["sample_size"]
    rows, columns = (sample, sample) if isinstance(sample, int) else sample
    return Model(
        id=name,
        kind="checkpoint",
        path=str(path),
        state="ready",
        family=family.name,
        types=TYPES if channels == latents else ("inpainting",),
        bytes=weights,
        width=int(own.get("width", columns * factor)),
        height=int(own.get("height", rows * factor)),
        size_multiple=factor,
        min_size=min(16, max(1, rows // 4)) * factor,
        num_inference_steps=int(own.get("num_inference_steps", family.num_inference_steps)),
        guidance_scale=float(own.get("guidance_scale", family.guidance_scale)),
        scheduler=str(own.get("scheduler", _SCHEDULER_NAMES[index["scheduler"][1]])),
        prediction_type=str(scheduler.get("prediction_type", "epsilon")),
        text_layers=int(text["num_hidden_layers"]),
        text_width=int(unet["cross_attention_dim"]),
        shape=_shape(unet),
    )


def _has_weights(part: str) -> bool:
    return part not in ("scheduler", "tokenizer", "tokenizer_2")


def _check_files(path: Path, root: Path) -> None:
    for file in _walk(path):
        inside = file.relative_to(path)
        if not file.resolve().is_relative_to(root.resolve()):
            raise _Unusable(f"{inside} is a link out of the model folder")
        if not file.is_file():
            raise _Unusable(f"{inside} is not a plain file")
        if file.suffix in _CODE_SUFFIXES:
            raise _Unusable(f"{inside} can carry code; keep safetensors and JSON only")
        if len(inside.parts) > 1 and file.suffix not in _COMPONENT_SUFFIXES:
            raise _Unusable(f"{inside} is of no known kind; components hold .json, .txt, .model, .safetensors")


def _check_components(path: Path, index: dict[str, Any], family: FamilyFacts) -> None:
    for name, value in index.items():
        if name.startswith("_") or name in UNUSED_COMPONENTS or not isinstance(value, list) or value == [None, None]:
            continue
        if tuple(value) not in family.components.get(name, frozenset()):
            raise _Unusable(
                f"its {name} is {'.'.join(map(str, value))[:96]}, which is not on the list for {family.name}"
            )
    for name in family.components:
        if not isinstance(index.get(name), list):
            raise _Unusable(f"model_index.json names no {name}")
        for config in sorted((path / name).glob("*config.json")):
            bad = next((key for key in _json(config) if _REFUSED_CONFIG_KEYS.fullmatch(key)), None)
            if bad is not None:
                raise _Unusable(f"{config.relative_to(path)} sets {bad!r}, which could bring in code")


def _check_weights(folder: Path) -> int:
    """Bytes of the folder's weights, each file's header checked against its length before any parser sees it."""
    files = weight_files(folder)
    if not files:
        raise _Unusable(f"{folder.name} has no weights in a .safetensors file of the usual name")
    for file in files:
        _header(file)
    return sum(file.stat().st_size for file in files)


def _header(file: Path) -> dict[str, Any]:
    """The tensors that a safetensors file names, each with dtype, shape and place. Raises _Unusable."""
    size, shown = file.stat().st_size, f"{file.parent.name}/{file.name}"
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _Unusable(f"{shown} is truncated or its header is too large")
        header = json.loads(opened.read(length))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if len(tensors) > MAX_TENSORS:
        raise _Unusable(f"{shown} names more than {MAX_TENSORS} tensors")
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if 8 + length + end != size:
        raise _Unusable(f"{shown} is {size} bytes where its header says {8 + length + end}")
    return tensors


def _walk(path: Path) -> Iterable[Path]:
    if path.is_file():
        yield path
        return
    for folder, _, names in os.walk(path):
        for name in names:
            yield Path(folder) / name


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise _Unusable(f"{path.parent.name}/{path.name} is missing")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise _Unusable(f"{path.parent.name}/{path.name} is over {MAX_CONFIG_BYTES} bytes")
    read = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(read, dict):
        raise _Unusable(f"{path.parent.name}/{path.name} is not a JSON object")
    return read
