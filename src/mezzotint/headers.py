"""What may be read of a model's files, and how: safetensors headers, JSON configs, lists of what is allowed.

Must not map a tensor or import torch. What is wrong with a file is an Unusable with a reason to show, never a crash.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

MAX_CONFIG_BYTES = 1 << 20
MAX_TEXT_BYTES = 64 << 20  # vocabularies are the largest
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
_MARKS = {"{": 5, "[": 5, ":": 10, ",": 20}  # how many a tensor has at most, and room for those in texts of metadata
MAX_LAYERS = 256  # of one part; a config of a few bytes may ask for any number
MAX_WIDTH = 1 << 20
MAX_POSITIONS = 1 << 12  # of a window of text

COMPONENT_SUFFIXES = frozenset({".json", ".txt", ".model", ".safetensors"})
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
# A LoRA and an embedding as diffusers' training scripts leave them, beside logs and checkpoints.
TRAINED_EMBEDDING = "learned_embeds.safetensors"
TRAINED = ("pytorch_lora_weights.safetensors", TRAINED_EMBEDDING)
OTHER_HALF = "learned_embeds_2.safetensors"  # of an embedding of SDXL
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # a pair, as PEFT saves it
_CODE = PICKLES | {".py", ".pyc", ".so", ".h5", ".msgpack"}
_PLAIN_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
_HALF_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model\.fp16(-\d+-of-\d+)?\.safetensors")
_REFUSED_KEYS = re.compile(r"auto_map|trust_remote_code|custom_pipelines?|_attn_implementation.*")
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


class Unusable(Exception):
    """Why a file or folder is not a model that can be used."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]

    @property
    def parameters(self) -> int:
        return sum(map(prod, self.shapes.values()))


def read_header(file: Path) -> Header:
    """Check that a file is what its header says, byte for byte. Raises Unusable, OSError, ValueError."""
    size, shown = file.stat().st_size, f"{file.parent.name}/{file.name}"
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise Unusable(f"{shown} is truncated or its header is too large")
        text = opened.read(length).decode()
    if any(text.count(mark) > most * MAX_TENSORS for mark, most in _MARKS.items()):
        raise Unusable(f"{shown} names more than {MAX_TENSORS} tensors, or holds other things in such numbers")
    header = _of_unicode(json.loads(text, object_pairs_hook=_once), text)
    if not isinstance(header, dict):
        raise Unusable(f"{shown} has a header that is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if len(header) > MAX_TENSORS:
        raise Unusable(f"{shown} names more than {MAX_TENSORS} tensors")
    places = sorted(_place(name, entry, shown) for name, entry in header.items())
    at = 0
    for begin, end, name in places:
        if begin != at:
            raise Unusable(f"{shown} lays {name[:96]!r} over another tensor or leaves a hole before it")
        at = end
    if 8 + length + at != size:
        raise Unusable(f"{shown} is {size} bytes where its header says {8 + length + at}")
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    return Header(shapes, metadata if isinstance(metadata, dict) else {})


def _place(name: str, entry: Any, shown: str) -> tuple[int, int, str]:
    begin, end = entry["data_offsets"]
    shape, bits = entry["shape"], _BITS.get(entry["dtype"])
    if bits is None:
        raise Unusable(f"{shown} holds {name[:96]!r} in {str(entry['dtype'])[:32]!r}, which this version does not read")
    sizes = [begin, end, *shape]
    if not all(type(one) is int and 0 <= one < 1 << 48 for one in sizes) or len(shape) > 8:
        raise Unusable(f"{shown} gives {name[:96]!r} a shape or place that cannot be")
    if end - begin != prod(shape) * bits // 8:
        raise Unusable(
            f"{shown} gives {name[:96]!r} {end - begin} bytes where its shape needs {prod(shape) * bits // 8}"
        )
    return begin, end, name


def _of_unicode(read: Any, text: str) -> Any:
    """What was read of a text. Raises ValueError for half of a surrogate pair, which no answer can hold."""
    if "\\u" in text:
        json.dumps(read, ensure_ascii=False).encode()
    return read


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a component: the whole precision when there are several, all its shards."""
    return [folder / name for name in chosen_weights(file.name for file in folder.glob("*.safetensors"))]


def chosen_weights(names: Iterable[str]) -> list[str]:
    """Of the names in a component's folder those of its weights, in order."""
    names = sorted(names)
    for pattern in (_PLAIN_WEIGHTS, _HALF_WEIGHTS):
        if found := [name for name in names if pattern.fullmatch(name)]:
            return found
    return []


def check_weights(folder: Path) -> tuple[int, int]:
    """Bytes of the folder's weights and how many numbers they are, each file's header checked against its length before
    any parser sees it."""
    files = weight_files(folder)
    if not files:
        raise Unusable(f"{folder.name} has no weights in a .safetensors file of the usual name")
    headers = [read_header(file) for file in files]
    return sum(file.stat().st_size for file in files), sum(header.parameters for header in headers)


def check_files(path: Path, root: Path) -> None:
    """Raises Unusable when a folder holds anything but what models are made of, or links out of `root`."""
    for file in walk(path):
        inside = file.relative_to(path)
        if not file.resolve().is_relative_to(root.resolve()):
            raise Unusable(f"{inside} is a link out of the model folder")
        if file.is_dir():
            raise Unusable(f"{inside} is a link to a folder, whose files would go unseen; link the files themselves")
        if not file.is_file():
            raise Unusable(f"{inside} is not a plain file")
        if file.suffix.lower() in PICKLES:
            raise Unusable(f"{inside} is a pickle, which can carry code; keep its .safetensors form only")
        if file.suffix.lower() in _CODE:
            raise Unusable(f"{inside} can carry code; keep safetensors and JSON only")
        if len(inside.parts) > 1 and file.suffix not in COMPONENT_SUFFIXES:
            raise Unusable(f"{inside} is of no known kind; components hold .json, .txt, .model, .safetensors")
        if file.suffix != ".safetensors" and file.stat().st_size > MAX_TEXT_BYTES:
            raise Unusable(f"{inside} is over {MAX_TEXT_BYTES} bytes")


def check_config(config: Mapping[str, Any], shown: str) -> None:
    """Raises Unusable for keys that bring in code, and for more layers or width than any model has."""
    for key, value in config.items():
        if _REFUSED_KEYS.fullmatch(key):
            raise Unusable(f"{shown} sets {key!r}, which could bring in code")
        limit = MAX_LAYERS if "layers" in key else MAX_WIDTH if key.endswith(("_channels", "_size", "_dim")) else None
        limit = MAX_POSITIONS if key == "max_position_embeddings" else limit
        if limit is not None and not all(0 <= one <= limit for one in _whole_numbers(value)):
            raise Unusable(f"{shown} sets {key!r} to {str(value)[:64]}; from 0 to at most {limit} can be right")


def _whole_numbers(value: Any) -> Iterator[int]:
    """In lists of lists, too."""
    if isinstance(value, list):
        for one in value:
            yield from _whole_numbers(one)
    elif type(value) is int:
        yield value


def read_json(path: Path) -> dict[str, Any]:
    """Raises Unusable, OSError."""
    shown = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise Unusable(f"{shown} is missing")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise Unusable(f"{shown} is over {MAX_CONFIG_BYTES} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        read = _of_unicode(json.loads(text), text)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{shown} cannot be read as JSON: {str(error)[:96]}") from error
    if not isinstance(read, dict):
        raise Unusable(f"{shown} is not a JSON object")
    return read


def beside(path: Path) -> dict[str, Any]:
    """What its owner says of a model: the optional mezzotint.json of its folder, or NAME.json beside a file."""
    told = beside_file(path)
    return read_json(told) if told.exists() else {}


def beside_file(path: Path) -> Path:
    told = (path if path.is_dir() else path.parent) / "mezzotint.json"
    in_its_folder = path.is_dir() or (path.name in TRAINED and told.exists())
    return told if in_its_folder else path.with_suffix(".json")


def told_beside(path: Path) -> list[Path]:
    """Of a model in one file the files beside it that say something of it; of a folder none: all of its are its own."""
    if path.is_dir():
        return []
    partners = {PEFT_WEIGHTS: PEFT_CONFIG, TRAINED_EMBEDDING: OTHER_HALF}
    told = [beside_file(path), *([path.with_name(partners[path.name])] if path.name in partners else [])]
    return [one for one in told if one.exists()]


def lora_file(path: Path) -> Path:
    """Where the tensors of a LoRA lie that is a file, or a folder of PEFT's."""
    return path / PEFT_WEIGHTS if path.is_dir() else path


def peft_config(path: Path) -> dict[str, Any] | None:
    """What PEFT says beside a LoRA. None when that is not its own: of a file under another name. Raises Unusable."""
    file = lora_file(path)
    told = file.with_name(PEFT_CONFIG)
    is_its_own = path.is_dir() or (file.name == PEFT_WEIGHTS and told.exists())
    return read_json(told) if is_its_own else None


def walk(path: Path) -> Iterator[Path]:
    """Every file of a folder, or the file itself. Links to folders are among them, and what is behind them is not."""
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in names + linked:
            yield Path(folder) / name
