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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from mezzotint import profiles
from mezzotint.profiles import Subject
from mezzotint.workers.limits import limit_myself

if TYPE_CHECKING:
    from mezzotint.engine import factors
    from mezzotint.families.lora import LoraSet
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
    from mezzotint.engine import executors, factors, sharing, winograd
    from mezzotint.engine.memory import give_back

    openvino = executors.import_openvino()
    _sweep(graphs.parent)
    draft = graphs.with_name(f".{graphs.name}.{os.getpid()}.tmp")
    draft.mkdir(parents=True)
    parts, worst, adapted = _parts(family), 0.0, factors.Layers()
    shares = not family.added_names  # else a text goes into the time too, and nothing is the same under two
    del family
    try:
        while parts:
            part = parts.pop(0)
            name, module, asked, expected = part.name, part.module, part.asked, part.expected
            if name == executors.DECODER:
                _fold_doubling(part.module.module.decoder)
            if name == executors.UNET:
                if shares:
                    module = sharing.SharesRows(module, part.module.module)
                    asked = [
                        (*one[:3], *sharing.shared(*one[:2], differ=any(rows)), *one[3:])
                        for one, rows in zip(asked, part.adapters, strict=True)
                    ]
                together, layers = _take_texts(part.module.module)
                _write(openvino, together, asked[0][2:3], draft / executors.TEXTS)
                texts = tuple(factors.Text(name=one, outputs=layer.out_features) for one, layer in layers.items())
                if any(part.adapters):
                    module = factors.TakesFactors(module, part.module.module, len(asked[0]), {*layers.values()})
                    adapted = factors.Layers(layers=tuple(module.layers), texts=texts)
                project = _compiled(openvino, draft / executors.TEXTS)
                asked = [
                    _with_factors(adapted, (*one[:2], project(*one[2:3]), *one[3:]), rows, one[2])
                    for one, rows in zip(asked, part.adapters, strict=True)
                ]
                del project, together, layers
            winograd.save_products(part.large, least=part.wide, larger=part.larger)
            _write(openvino, module, asked[0], draft / name)
            del part, module  # what is compiled has weights of its own: a large model fits once
            give_back()
            run = _compiled(openvino, draft / name)
            for inputs, output in zip(asked, expected, strict=True):
                worst = max(worst, executors.largest_difference(run(*inputs), output))
            del run
            if worst > MAX_ERROR:
                raise ValueError(f"{name} differs from torch by {worst:.1e}")
        told = msgspec.to_builtins(adapted)
        executors.write_manifest(draft / executors.MANIFEST, draft, largest_difference=worst, adapted=told)
        shutil.rmtree(graphs, ignore_errors=True)
        draft.replace(graphs)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _with_factors(
    adapted: "factors.Layers", inputs: tuple[Any, ...], rows: Sequence["LoraSet"], hidden: Any
) -> tuple[Any, ...]:
    from mezzotint.engine import factors

    factors.add_to_texts(adapted, rows, hidden, inputs[2])
    return *inputs, *factors.handed(adapted, rows)


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
    """A module of positional tensors; what to call it with, the first to trace, the others to check, and what that
    gives where the rows have these `adapters`, if it can have any."""

    name: str
    module: Any
    asked: list[tuple[Any, ...]]
    expected: list[Any]
    large: list[Any]  # those of its modules that see enough pixels for convolutions of fewer products,
    wide: int  # the channels from which these are worth it,
    larger: Sequence[Any] = ()  # and those that see enough for the larger tile, however many channels they have
    adapters: Sequence[tuple["LoraSet", ...]] = ()


def _parts(family: "StableDiffusion") -> list[_Part]:
    import torch
    from diffusers.models.attention_processor import AttnProcessor2_0

    from mezzotint.engine import probe
    from mezzotint.engine.executors import DECODER, UNET
    from mezzotint.families.lora import Adapted
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
        return run(inputs[:own], inputs[own:], ())

    def inputs(rows: int, height: int, width: int, windows: int) -> tuple[Any, ...]:
        plain = family.unet_inputs(probe.rows(family, rows, height, width, windows=windows))
        skips = _skips(family.unet, lambda: run(plain, (), ()))
        return *plain, *(torch.randn(skip.shape, generator=generator) / 10 for skip in skips)

    # Odd sizes, so that the UNet's way for sizes its halvings do not divide is the one traced: it fits all others too.
    least = 2 ** len(family.unet.config.block_out_channels)
    traced = inputs(2, 2 * least + 1, least + least // 2 + 1, 1)
    checked = [inputs(1, 2 * least, 2 * least, 2), inputs(4, 2 * least, least + 1, 1)]
    guided = (*map(probe.paired, checked[1][:2]), *checked[1][2:own])
    checked.append((*guided, *[torch.zeros(1, 1, 1, 1)] * (len(traced) - own)))  # without ControlNets
    asked = [traced, *checked]
    latents = [(one[0][:, : family.latent_channels],) for one in asked]
    unet: Any = Called(family.unet, run_unet).eval()
    decoder: Any = Called(family.vae, decoder_in_torch(family.vae)).eval()
    large, larger = _large(family.unet)
    adapters: list[tuple[LoraSet, ...]] = [() for _ in asked]
    if sum(parameter.numel() for parameter in family.unet.parameters()) >= profiles.ADAPTED_FROM:
        one, other = (_adapter(family.unet, generator, rank=rank) for rank in (3, 2))
        adapters = [(one, ()), (one,), ((), one, (*one, *other), ()), ()]

    def adapted(rows: tuple["LoraSet", ...], inputs: tuple[Any, ...]) -> Any:
        with Adapted(family.unet, "unet").using(rows):
            return unet(*inputs)

    return [
        _Part(
            name=UNET,
            module=unet,
            asked=asked,
            adapters=adapters,
            expected=[adapted(rows, inputs) for rows, inputs in zip(adapters, asked, strict=True)],
            large=large,
            larger=larger,
            wide=UNET_WIDE,
        ),
        _Part(
            name=DECODER,
            module=decoder,
            asked=latents,
            expected=[decoder(*inputs) for inputs in latents],
            large=[family.vae.decoder],
            wide=DECODER_WIDE,
        ),
    ]


def _adapter(unet: Any, generator: Any, *, rank: int) -> "LoraSet":
    """Of random factors for all that can be adapted in a graph."""
    import torch

    from mezzotint.families.lora import Factors, Lora

    def random(*shape: int) -> Any:
        return torch.randn(shape, generator=generator)

    found = {
        name: Factors(
            random(rank, *layer.weight.shape[1:]) / layer.weight.shape[1] ** 0.5, random(len(layer.weight), rank) / 10
        )
        for name, layer in unet.named_modules()
        if ".attentions." in name and getattr(layer, "weight", torch.empty(0)).shape[1:].numel() > 1
    }
    return ((Lora(parts={"unet": found}), 0.5),)


def _take_texts(unet: Any) -> tuple[Any, dict[str, Any]]:
    """A layer that does what each attention does to the texts first, which is the same at every step: (rows, tokens,
    channels) to all their keys and values, side by side; and the layers that did so, by name in their order. Mutates
    the UNet: it takes these in the place of texts."""
    import torch
    from diffusers.models.attention_processor import Attention

    def part_of(start: int, width: int) -> Callable[[Any], Any]:
        return lambda projected: projected[..., start : start + width]

    crossing = {
        name: one for name, one in unet.named_modules() if isinstance(one, Attention) and one.is_cross_attention
    }
    projections: dict[str, Any] = {
        f"{name}.{part}": getattr(attention, part) for name, attention in crossing.items() for part in ("to_k", "to_v")
    }
    together = torch.nn.Linear(1, 1, bias=False)
    weights = [one.weight for one in projections.values()]
    together.weight = torch.nn.Parameter(torch.cat(weights), requires_grad=False)
    start = 0
    for one in projections.values():
        one.forward, one.weight = part_of(start, one.out_features), None
        start += one.out_features
    return together, projections


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


def _large(unet: Any) -> tuple[list[Any], list[Any]]:
    """What sees pixels enough for fewer products: the blocks of those levels, each of half the sides of the one before,
    that are not SMALL, and what leads to the last of them; and of it what sees enough for the larger tile, as what
    leads to twice the sides of such a level does."""
    levels = [[*blocks] for blocks in zip(unet.down_blocks, reversed(unet.up_blocks), strict=True)]
    levels[-1].append(unet.mid_block)
    large: list[Any] = []
    larger: list[Any] = []
    for level, blocks in enumerate(levels):
        side = unet.config.sample_size >> level
        out = [one for block in blocks for one in getattr(block, "upsamplers", None) or ()]
        if side > SMALL:
            large += blocks
            larger += out
        elif 2 * side > SMALL:
            large += out
    return large, larger


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
