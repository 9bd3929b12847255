"""Another way to run a family's modules than torch, behind the two callables that a family calls.

torch float32 is the plain twin: loaded beside it, what deterministic sessions run in and LoRAs that a graph does not
take, what serves when the graphs cannot be had. Must not convert anything: engine/convert.py makes what is opened here.
"""

import copy
import hashlib
import importlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from mezzotint.disk import draft_of
from mezzotint.engine import factors, sharing
from mezzotint.engine.stopwatch import why
from mezzotint.families.base import Executor
from mezzotint.families.lora import Company, LoraSet
from mezzotint.families.products import BY_MKL
from mezzotint.families.sd import RunUnet, StableDiffusion

TEXTS, UNET, DECODER = PARTS = "texts.xml", "unet.xml", "decoder.xml"
MANIFEST = "graphs.json"
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class Unavailable(Exception):
    """Why a family cannot run this way here. torch float32 serves instead; never an error to a caller."""


def import_openvino() -> Any:
    """Import it without its telemetry, which else tells its maker of every import. Raises ImportError."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it then takes its own empty stand-in
    return importlib.import_module("openvino")


def loaded_in(executor: str, dtype: str) -> torch.dtype:
    """What a family must be loaded in for `open_with`: torch runs it as it is, others have it beside in float32."""
    found: torch.dtype = getattr(torch, dtype) if executor == "torch" else torch.float32
    return found


def open_with(
    plain: StableDiffusion,
    executor: str,
    dtype: str,
    *,
    graphs: Path,
    threads: int,
    runtime: Callable[[], Any] = import_openvino,
) -> StableDiffusion:
    """The same model run otherwise: a second family that shares all but the modules with `plain`, its twin.

    What `plain` does already is itself. Raises Unavailable. `graphs` is the folder that engine/convert.py filled.
    """
    if (executor, dtype) == (plain.executor.name, plain.executor.dtype):
        return plain
    if executor != "openvino" or dtype not in _HINTS or plain.device.type != "cpu":
        raise Unavailable(f"{executor} does not run {dtype} on {plain.device.type}")
    fast = copy.copy(plain)
    # half precision still decodes faster in its graph, and so does a processor that is fast at what NNPACK does not use
    parts = PARTS[:-1] if plain.decodes_quickly and dtype == "float32" and not BY_MKL else PARTS
    fast.run_unet, fast.run_decoder, adapts = _in_openvino(plain, graphs, parts, _HINTS[dtype], threads, runtime)
    fast.executor = Executor(name=executor, dtype=dtype, twin=plain, adapts=adapts)
    fast.copied_bytes += sum((graphs / name).with_suffix(".bin").stat().st_size for name in parts)
    return fast


def check_graphs(graphs: Path) -> None:
    """Raises Unavailable unless every file is there and as it was made."""
    _check(graphs, graphs / MANIFEST, PARTS)


def write_manifest(manifest: Path, folder: Path, **facts: Any) -> None:
    """Record what `folder` holds now, beside it or in it, so that a later change is seen."""
    named = {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.suffix in (".xml", ".bin", ".blob")}
    with draft_of(manifest) as draft:
        draft.write_text(json.dumps({"files": named, **facts}, indent=2))


# ---- OpenVINO


def _in_openvino(
    plain: StableDiffusion, graphs: Path, parts: Sequence[str], hint: str, threads: int, runtime: Callable[[], Any]
) -> tuple[RunUnet, Callable[[Tensor], Tensor], frozenset[str]]:
    """What runs the UNet, what decodes, torch if that is not one of the `parts`, and what layers take LoRAs."""
    try:
        openvino = runtime()
    except ImportError as error:
        raise Unavailable(f"openvino cannot be imported: {error}") from error
    check_graphs(graphs)
    layers = _layers(graphs)
    blobs = graphs / f"blobs-{hint}"
    try:
        _check(blobs, blobs.with_suffix(".json"), ())
    except Unavailable:
        shutil.rmtree(blobs, ignore_errors=True)  # half written, or changed since: the runtime would not notice
    known = _names(blobs)
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # cores are shared with the API process, and maybe with others
        "CACHE_DIR": str(blobs),
        "CACHE_MODE": "OPTIMIZE_SIZE",  # without the weights, which it maps from the graph's own file; opens as fast
    }
    core = openvino.Core()
    try:
        texts, unet, *others = (core.compile_model(graphs / name, "CPU", options) for name in parts)
        if _names(blobs) != known:
            write_manifest(blobs.with_suffix(".json"), blobs)
    except (RuntimeError, OSError) as error:
        raise Unavailable(f"openvino cannot open the graphs: {why(error)}") from error
    channels, factor = int(plain.unet.config.out_channels), plain.vae_factor
    call = _caller(openvino, unet, lambda n, _, h, w: (n, channels, h, w))
    width = texts.output(0).partial_shape[2].get_length()
    project = _caller(openvino, texts, lambda n, tokens, _: (n, tokens, width))
    nothing = torch.zeros(1, 1, 1, 1)  # is added to every skip of every row
    company = Company(lambda loras: factors.handed(layers, loras))
    last: tuple[Tensor, list[Tensor], Tensor] | None = None  # texts, factors, and what the UNet takes for the texts

    def run_unet(inputs: Sequence[Tensor], residuals: Sequence[Tensor], loras: Sequence[LoraSet]) -> Tensor:
        nonlocal last
        latents, timesteps, hidden, *added = inputs
        given = company.of(loras)
        # they are the same at every step of the same company
        if last is None or last[1] is not given or not torch.equal(last[0], hidden):
            projected = project([hidden])
            factors.add_to_texts(layers, loras, hidden, projected)
            last = hidden, given, projected
        # where a text goes into the time too, nothing is the same under two texts
        which = () if added else sharing.shared(latents, timesteps, differ=any(loras))
        skips = residuals or [nothing] * (len(unet.inputs) - len(inputs) - len(which) - len(given))
        return call([latents, timesteps, last[2], *added, *which, *skips], given)

    if not others:
        return run_unet, plain.run_decoder, layers.names
    decode = _caller(openvino, others[0], lambda n, _, h, w: (n, 3, h * factor, w * factor))
    return run_unet, lambda latents: decode([latents]), layers.names


def _caller(openvino: Any, compiled: Any, output_shape: Callable[..., tuple[int, ...]]) -> Callable[..., Tensor]:
    """Runs a graph on torch's own memory, both in and out; every output is the caller's to keep. Takes its inputs, and
    those that come after them, many and seldom others."""
    request = compiled.create_infer_request()
    held: Sequence[Tensor] = ()

    def run(inputs: Sequence[Tensor], after: Sequence[Tensor] = ()) -> Tensor:
        nonlocal held
        output = torch.empty(output_shape(*inputs[0].shape))
        # held until it has run
        arrays = [(one if one.dtype == torch.int32 else one.to(torch.float32)).contiguous().numpy() for one in inputs]
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
        if after is not held:
            for index, one in enumerate(after, start=len(arrays)):
                request.set_input_tensor(index, openvino.Tensor(one.numpy(), shared_memory=True))
            held = after
        request.set_output_tensor(openvino.Tensor(output.numpy(), shared_memory=True))
        request.infer()
        return output

    return run


def _check(folder: Path, manifest: Path, needed: tuple[str, ...]) -> None:
    try:
        files = dict(json.loads(manifest.read_text())["files"])
    except OSError:
        raise Unavailable("its graphs are not made yet") from None
    except (ValueError, KeyError, TypeError):
        raise Unavailable("the record of its graphs cannot be read") from None
    missing = [name for name in needed if name not in files]
    if missing or not all((folder / name).is_file() and _digest(folder / name) == files[name] for name in files):
        raise Unavailable("its graphs are not as they were made")


def _layers(graphs: Path) -> factors.Layers:
    return msgspec.convert(json.loads((graphs / MANIFEST).read_text()).get("adapted", {}), factors.Layers)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Infinite for what is not a number."""
    found = float((one - other).abs().max())
    return found if math.isfinite(found) else math.inf
