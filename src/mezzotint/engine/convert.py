"""Makes the graphs that OpenVINO runs: once per model and version, checked against torch. A process of its own.

`python -m mezzotint.engine.convert` with a Subject as JSON. Exit code 0: the graphs are there and whole; 1: the last
line of stderr says why not. Must not run inside a worker: it takes seconds, both cores, and a model's size in memory.
"""

import argparse
import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from mezzotint import profiles
from mezzotint.profiles import Subject
from mezzotint.workers.limits import limit_myself

if TYPE_CHECKING:
    from mezzotint.families.sd import StableDiffusion

MAX_ERROR = 1e-4  # of any output, against torch
UNET_WIDE, DECODER_WIDE = 320, 256  # channels from which a convolution takes less time with fewer products
SMALL = 8  # sides of latents at the model's own size: so few pixels are not worth the larger weights


def main() -> None:
    parser = argparse.ArgumentParser(prog="mezzotint-convert")
    parser.add_argument("subject")
    parser.add_argument("--memory-bytes", type=int, required=True)
    args = parser.parse_args()
    limit_myself(niceness=19, memory_bytes=args.memory_bytes)
    subject = msgspec.json.decode(args.subject, type=Subject)
    graphs = profiles.graphs_of(Path(subject.cache), subject.sha256)
    try:
        _ensure(subject, graphs)
    except Exception as error:  # noqa: BLE001  a foreign tracer can raise anything; the reason is for a person
        sys.stderr.write(f"{_reason(error)}\n")
        raise SystemExit(1) from None


def convert(family: "StableDiffusion", graphs: Path) -> None:
    """Write the graphs of a family to `graphs`, whole or not at all. Mutates the family, which is not to be used after:
    who holds it no more saves its memory. Raises ValueError when they differ from torch."""
    from mezzotint.engine import executors, winograd
    from mezzotint.engine.memory import give_back

    openvino = executors.import_openvino()
    _sweep(graphs.parent)
    draft = graphs.with_name(f".{graphs.name}.{os.getpid()}.tmp")
    draft.mkdir(parents=True)
    parts, worst = _parts(family), 0.0
    del family
    try:
        while parts:
            part = parts.pop(0)
            name, asked, expected = part.name, part.asked, [part.module(*inputs) for inputs in part.asked]
            if name == executors.DECODER:
                _fold_doubling(part.module.module.decoder)
            if name == executors.UNET:
                _write(openvino, _take_texts(part.module.module), asked[0][2:3], draft / executors.TEXTS)
                project = _compiled(openvino, draft / executors.TEXTS)
                asked = [(*one[:2], project(*one[2:3]), *one[3:]) for one in asked]
                del project
            winograd.save_products(part.large, least=part.wide)
            _write(openvino, part.module, asked[0], draft / name)
            del part  # what is compiled has weights of its own: a large model fits once
            give_back()
            run = _compiled(openvino, draft / name)
            for inputs, output in zip(asked, expected, strict=True):
                worst = max(worst, executors.largest_difference(run(*inputs), output))
            del run
            if worst > MAX_ERROR:
                raise ValueError(f"{name} differs from torch by {worst:.1e}")
        executors.write_manifest(draft / executors.MANIFEST, draft, largest_difference=worst)
        shutil.rmtree(graphs, ignore_errors=True)
        draft.replace(graphs)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(openvino: Any, module: Any, inputs: tuple[Any, ...], path: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about branches that hold for all sizes alike
        # torch's own check of the trace takes as long as the trace; that of `convert` is against other inputs too
        traced = torch.jit.trace(module, inputs, check_trace=False, strict=False)
        graph = openvino.convert_model(traced, example_input=inputs)
    openvino.save_model(graph, path, compress_to_fp16=False)


def _compiled(openvino: Any, path: Path) -> Callable[..., Any]:
    import torch

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(*inputs: Any) -> Any:
        return torch.from_numpy(compiled([tensor.numpy() for tensor in inputs])[0])

    return run


def _ensure(subject: Subject, graphs: Path) -> None:
    import torch  # whole: OpenVINO reads what traces programs

    from mezzotint.workers.imports import import_quickly

    import_quickly()
    from mezzotint.engine import executors
    from mezzotint.families.table import implementation

    with contextlib.suppress(executors.Unavailable):
        executors.check_graphs(graphs)
        return
    torch.set_num_threads(subject.threads)
    torch.set_grad_enabled(False)
    vae = Path(subject.vae) if subject.vae else None
    convert(implementation(subject.family)(Path(subject.path), torch.device("cpu"), torch.float32, vae), graphs)
    for other in graphs.parent.glob(f"{subject.sha256}-*"):  # of other versions of OpenVINO
        if other != graphs:
            shutil.rmtree(other, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A module of positional tensors; what to call it with, the first to trace, the others to check."""

    name: str
    module: Any
    asked: list[tuple[Any, ...]]
    large: list[Any]  # those of its modules that see enough pixels for convolutions of fewer products,
    wide: int  # and the channels from which these are worth it


def _parts(family: "StableDiffusion") -> list[_Part]:
    import torch
    from diffusers.models.attention_processor import AttnProcessor2_0

    from mezzotint.engine import probe
    from mezzotint.engine.executors import DECODER, UNET
    from mezzotint.families.sd import decoder_in_torch, unet_in_torch

    class Called(torch.nn.Module):
        def __init__(self, module: Any, run: Any) -> None:
            super().__init__()
            self.module, self._run = module, run

        def forward(self, *inputs: Any) -> Any:
            return self._run(*inputs)

    family.unet.set_attn_processor(AttnProcessor2_0())
    family.vae.set_attn_processor(AttnProcessor2_0())
    generator = torch.Generator().manual_seed(0)
    run, own = unet_in_torch(family.unet, family.added_names), 3 + len(family.added_names)

    def run_unet(*inputs: Any) -> Any:
        return run(inputs[:own], inputs[own:])

    def inputs(rows: int, height: int, width: int, windows: int) -> tuple[Any, ...]:
        plain = family.unet_inputs(probe.rows(family, rows, height, width, windows=windows))
        skips = _skips(family.unet, lambda: run(plain, ()))
        return *plain, *(torch.randn(skip.shape, generator=generator) / 10 for skip in skips)

    # Odd sizes, so that the UNet's way for sizes its halvings do not divide is the one traced: it fits all others too.
    least = 2 ** len(family.unet.config.block_out_channels)
    traced = inputs(2, 2 * least + 1, least + least // 2 + 1, 1)
    checked = [inputs(1, 2 * least, 2 * least, 2), inputs(4, 2 * least, least + 1, 1)]
    checked.append((*checked[0][:own], *[torch.zeros(1, 1, 1, 1)] * (len(traced) - own)))  # without ControlNets
    latents = [(one[0][:, : family.latent_channels],) for one in (traced, *checked)]
    return [
        _Part(
            name=UNET,
            module=Called(family.unet, run_unet).eval(),
            asked=[traced, *checked],
            large=_large(family.unet),
            wide=UNET_WIDE,
        ),
        _Part(
            name=DECODER,
            module=Called(family.vae, decoder_in_torch(family.vae)).eval(),
            asked=latents,
            large=[family.vae.decoder],
            wide=DECODER_WIDE,
        ),
    ]


def _take_texts(unet: Any) -> Any:
    """A layer that does what each attention does to the texts first, which is the same at every step: (rows, tokens,
    channels) to all their keys and values, side by side. Mutates the UNet: it takes these in the place of texts."""
    import torch
    from diffusers.models.attention_processor import Attention

    def part_of(start: int, width: int) -> Callable[[Any], Any]:
        return lambda projected: projected[..., start : start + width]

    crossing = [one for one in unet.modules() if isinstance(one, Attention) and one.is_cross_attention]
    projections: list[Any] = [layer for attention in crossing for layer in (attention.to_k, attention.to_v)]
    together = torch.nn.Linear(1, 1, bias=False)
    together.weight = torch.nn.Parameter(torch.cat([one.weight for one in projections]), requires_grad=False)
    start = 0
    for one in projections:
        one.forward, one.weight = part_of(start, one.out_features), None
        start += one.out_features
    return together


def _fold_doubling(decoder: Any) -> None:
    """To double a picture's sides and then convolve it 3 by 3 is one transposed convolution, 4 by 4, with sums of the
    same weights: the same pixels for four ninths of the products. (A UNet also goes to sizes that are no doubles.)
    Mutates the decoder."""
    import torch
    from torch.nn import functional

    def folded(convolution: Any) -> Any:
        twice = torch.ones(convolution.in_channels, 1, 2, 2)
        sums = functional.conv_transpose2d(convolution.weight, twice, groups=convolution.in_channels)
        weight = sums.flip(2, 3).transpose(0, 1).contiguous()
        return lambda inputs: functional.conv_transpose2d(inputs, weight, convolution.bias, stride=2, padding=1)

    for block in decoder.up_blocks:
        for upsampler in block.upsamplers or ():
            upsampler.forward = folded(upsampler.conv)
            del upsampler.conv  # nothing runs it any more


def _large(unet: Any) -> list[Any]:
    """The blocks of those levels, each of half the sides of the one before, that are not SMALL."""
    levels = [[*blocks] for blocks in zip(unet.down_blocks, reversed(unet.up_blocks), strict=True)]
    levels[-1].append(unet.mid_block)
    return [
        block for level, blocks in enumerate(levels) if unet.config.sample_size >> level > SMALL for block in blocks
    ]


def _skips(unet: Any, call: Callable[[], Any]) -> list[Any]:
    """What a ControlNet may add to, in its order: what the way down leaves for the way up, then the middle."""
    skips: list[Any] = []
    hooks = [
        unet.conv_in.register_forward_hook(lambda _, __, output: skips.append(output)),
        *(one.register_forward_hook(lambda _, __, output: skips.extend(output[1])) for one in unet.down_blocks),
        unet.mid_block.register_forward_hook(lambda _, __, output: skips.append(output)),
    ]
    call()
    for hook in hooks:
        hook.remove()
    return skips


def _sweep(folder: Path) -> None:
    """Remove what conversions that were stopped have left."""
    for draft in folder.glob(".*.tmp"):
        if not psutil.pid_exists(int(draft.name.split(".")[-2])):
            shutil.rmtree(draft, ignore_errors=True)


def _reason(error: Exception) -> str:
    from mezzotint.engine.stopwatch import why

    if isinstance(error, ImportError):
        return f"openvino cannot be imported: {error}"
    return f"conversion failed: {why(error)}"


if __name__ == "__main__":
    main()
