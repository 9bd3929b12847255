"""Other executors draw what torch float32 draws, and what cannot be used is refused with a reason, never run."""

import gc
import json
import math
import os
import shutil
import subprocess
import sys
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from mezzotint import profiles
from mezzotint.engine import convert, executors, memory, probe, sharing, tune
from mezzotint.families.sd import StableDiffusion
from mezzotint.families.sdxl import StableDiffusionXL
from mezzotint.profiles import Candidate, Subject
from mezzotint.request import ControlNetUse, LoraUse
from tests.models import build_controlnet, build_lora, build_sd, build_sdxl
from tests.parity.rig import COMPANY, Asked, Rig, apart, difference
from tests.pictures import picture
from tests.requests import request


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """Which UNet the model of a test has."""
    return str(getattr(request, "param", "sd"))


of_every_kind = pytest.mark.parametrize("kind", ["sd", "inpainting", "sdxl"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def rig(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    folder = tmp_path_factory.mktemp(kind) / "tiny"
    return Rig(build_sdxl(folder) if kind == "sdxl" else build_sd(folder, inpaints=kind == "inpainting"))


@pytest.fixture(scope="module")
def made(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's graphs. Made once; tests that spoil them take a copy."""
    return graphs_made(rig, tmp_path_factory.mktemp("openvino") / "tiny")


def graphs_made(rig: Rig, graphs: Path) -> Path:
    """With fewer products wherever they fit, and inputs for adapters, as in a large model."""
    with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(convert, "UNET_WIDE", 8)
        patched.setattr(convert, "DECODER_WIDE", 8)
        patched.setattr(convert, "SMALL", 2)
        patched.setattr(profiles, "ADAPTED_FROM", 0)
        convert.convert(type(rig.family)(rig.path, torch.device("cpu"), torch.float32), graphs)
    return graphs


@pytest.fixture
def graphs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "graphs", ignore=shutil.ignore_patterns("blobs-*")))


def opened(rig: Rig, graphs: Path, executor: str = "openvino", dtype: str = "float32") -> Rig:
    """The same rig with another executor in its family."""
    other = Rig.__new__(Rig)
    other.__dict__.update(rig.__dict__)
    plain: Any = rig.family
    if (wanted := executors.loaded_in(executor, dtype)) != plain.dtype:
        plain = type(plain)(rig.path, torch.device("cpu"), wanted)
    other.family = executors.open_with(plain, executor, dtype, graphs=graphs, threads=1)
    return other


ASKED = [
    request(),
    request(guidance_scale=1.0, scheduler="euler"),
    request(width=24, height=32, scheduler="dpm_multistep"),
    request(width=22, height=18),  # latents that halving does not divide
    request(prompt="long " * 12, num_inference_steps=3),
    request(num_images=3, seed=40),
]


@of_every_kind
@pytest.mark.parametrize("company", [[], COMPANY], ids=["alone", "in company"])
def test_pictures_through_openvino_are_those_of_torch(rig: Rig, made: Path, company: list[Any]) -> None:
    fast = opened(rig, made)
    assert fast.family.executor.name == "openvino"
    for asked in ASKED:
        expected, drawn = rig.draw([asked])[0], fast.draw([asked, *company], stagger=1)[0]
        assert all(difference(one, other) <= 0.5 for one, other in zip(drawn, expected, strict=True)), asked
    assert difference(fast.draw([request(seed=8)])[0][0], rig.draw([request()])[0][0]) > 5, "any picture would pass"


@of_every_kind
def test_an_inpainting_through_openvino_is_that_of_torch(rig: Rig, made: Path, tmp_path: Path) -> None:
    """With a UNet that takes the mask, and with those that do not."""
    picture(size=(16, 16)).save(tmp_path / "image.png")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (5, 4, 12, 11))
    mask.save(tmp_path / "mask.png")
    files = {name: tmp_path / f"{name}.png" for name in ("image", "mask")}
    asked = Asked(request=request(type="inpainting", image="asset:i", mask="asset:m", strength=0.8), files=files)
    expected, fast = rig.draw([asked])[0][0], opened(rig, made)
    for company in ([], COMPANY):
        drawn = fast.draw([*company, asked])[-1][0]
        assert difference(drawn, expected) <= 0.5
        assert apart(drawn, expected) <= 1e-3
    assert apart(rig.draw([replace(asked, request=replace(asked.request, seed=8))])[0][0], expected) > 0.1


@of_every_kind
@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_outputs_through_openvino_are_those_of_torch(rig: Rig, made: Path, rows: int) -> None:
    fast = opened(rig, made).family
    asked = probe.rows(rig.family, rows, 9, 12, windows=2)
    expected, first = rig.family.predict(asked), fast.predict(asked)
    kept = first.clone()
    assert float((first - expected).abs().max()) <= 1e-4
    fast.predict(replace(asked, latents=asked.latents + 1))
    assert torch.equal(first, kept), "an output is the caller's to keep"


@pytest.mark.parametrize(
    ("kind", "field"),
    [("sd", "hidden"), ("sdxl", "hidden"), ("inpainting", "extra"), ("sdxl", "pooled")],
    indirect=["kind"],
    scope="module",
)
def test_what_a_unet_takes_beside_the_latents_reaches_its_graph_row_by_row(rig: Rig, made: Path, field: str) -> None:
    asked = probe.rows(rig.family, 3, 8, 8)
    given = getattr(asked, field).clone()
    given[1] += 1
    changed = replace(asked, **{field: given})
    fast = opened(rig, made).family
    assert [float((fast.predict(changed) - fast.predict(asked))[row].abs().max()) > 1e-3 for row in range(3)] == [
        False,
        True,
        False,
    ]


def test_texts_are_taken_in_once_for_all_steps_of_the_same_company(
    rig: Rig, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: Counter[int] = Counter()  # by the dimensions of the first input: texts have three
    plain = executors._caller

    def counted(openvino: Any, compiled: Any, output_shape: Any) -> Any:
        run, dimensions = plain(openvino, compiled, output_shape), compiled.input(0).partial_shape.rank.get_length()

        def count(*inputs: Any) -> Any:
            called[dimensions] += 1
            return run(*inputs)

        return count

    monkeypatch.setattr(executors, "_caller", counted)
    fast = opened(rig, made)
    for prompt in ("a rocket", "a fox"):
        fast.draw([request(prompt=prompt, num_inference_steps=6)])
    assert called == {3: 2, 4: 2 * 6 + 2}, "twice the texts; the UNet at each step and the decoder at the end"


def test_the_level_of_the_fewest_pixels_keeps_its_convolutions_but_not_what_leads_out_of_it() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64)  # of four levels, as Stable Diffusion 1.5 has it
    keeps = (unet.down_blocks[3], unet.mid_block, unet.up_blocks[0])
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    large, larger = convert._large(unet)
    behind = [block.upsamplers[0] for block in unet.up_blocks[:3]]
    assert (set(large), larger) == ({*blocks, behind[0]} - {*keeps}, [behind[2], behind[1]])


@pytest.mark.parametrize("part", [executors.UNET, executors.DECODER])
def test_wide_convolutions_are_made_with_fewer_products(rig: Rig, made: Path, tmp_path: Path, part: str) -> None:
    with torch.no_grad():
        convert.convert(type(rig.family)(rig.path, torch.device("cpu"), torch.float32), tmp_path / "narrow")
    convolutions = 'type="Convolution"'
    narrow, wide = ((graphs / part).read_text().count(convolutions) for graphs in (tmp_path / "narrow", made))
    assert wide < narrow / 2


def test_the_decoder_that_openvino_runs_doubles_no_picture_before_it_convolves_it(made: Path) -> None:
    assert 'type="Interpolate"' in (made / executors.UNET).read_text()
    assert 'type="Interpolate"' not in (made / executors.DECODER).read_text()


def test_a_pictures_two_rows_share_what_comes_before_their_texts(
    rig: Rig, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []  # rows to compute, of how many
    found = sharing.shared

    def noted(*rows: Any, differ: bool) -> Any:
        computed, which = found(*rows, differ=differ)
        calls.append((len(computed), len(which)))
        return computed, which

    monkeypatch.setattr(sharing, "shared", noted)
    fast = opened(rig, made)
    fast.draw([request(num_inference_steps=3, num_images=2)])
    assert {2 * computed for computed, _ in calls} == {of for _, of in calls} != set()
    calls.clear()
    fast.draw([request(num_inference_steps=3, guidance_scale=1.0)])
    assert {*calls} == {(1, 1)}


@pytest.mark.parametrize(("dtype", "by_mkl", "whose"), [
    ("float32", False, "torch"), ("float32", True, "openvino"), ("bfloat16", False, "openvino"),
])  # fmt: skip
def test_float32_decodes_in_torch_where_that_is_quicker(
    rig: Rig, made: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, by_mkl: bool, whose: str
) -> None:
    monkeypatch.setattr(rig.family, "decodes_quickly", True)
    monkeypatch.setattr(executors, "BY_MKL", by_mkl)
    fast = executors.open_with(rig.family, "openvino", dtype, graphs=made, threads=2)
    assert (fast.run_decoder is rig.family.run_decoder) == (whose == "torch")
    kept = [(made / name).with_suffix(".bin").stat().st_size for name in executors.PARTS]
    assert fast.copied_bytes - rig.family.copied_bytes == sum(kept) - (kept[-1] if whose == "torch" else 0)


@of_every_kind
@pytest.mark.parametrize("executor", ["torch", "openvino"])
def test_bfloat16_is_near_and_not_the_same(rig: Rig, made: Path, executor: str) -> None:
    fast = opened(rig, made, executor, "bfloat16")
    assert 0 < difference(fast.draw([request()])[0][0], rig.draw([request()])[0][0]) <= 4


@of_every_kind
def test_a_deterministic_picture_is_that_of_the_plain_twin(rig: Rig, made: Path) -> None:
    asked = request(deterministic=True)
    fast = opened(rig, made, "openvino", "bfloat16")
    assert np.array_equal(fast.draw([asked, *COMPANY])[0][0].pixels, rig.draw([asked])[0][0].pixels)


def measured(model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Candidate]:
    """By dtype, of torch alone."""
    subject = Subject(
        id="tiny",
        family="sd",
        path=str(model),
        sha256="0" * 64,
        device="cpu:0",
        threads=1,
        cache=str(model.parent),
        width=64,
        height=64,
        steps=4,
        guidance_scale=3.0,
        scheduler="ddim",
    )
    monkeypatch.setattr(tune, "CANDIDATES", {"cpu": (("torch", "float32"), ("torch", "bfloat16"))})
    grad, precision, threads = torch.is_grad_enabled(), torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        return {one.dtype: one for one in tune.measure(subject, refused=None).ranking}
    finally:  # it is made for a process of its own
        torch.set_grad_enabled(grad)
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)


def test_what_takes_many_times_as_long_as_torch_is_not_measured_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "TOO_SLOW", 0.0)
    told = measured(build_sd(tmp_path / "tiny"), monkeypatch)
    assert told["float32"].ms_per_step
    assert told["bfloat16"].ms_per_step is None
    assert "times what torch takes in float32" in (told["bfloat16"].reason or "")


def test_a_dtype_that_draws_no_numbers_is_refused_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_sd(tmp_path / "tiny")
    (file,) = (model / "vae").glob("*.safetensors")
    weights = load_file(file)
    weights["decoder.conv_out.bias"].fill_(torch.finfo(torch.float32).max)  # rounds up to infinity in bfloat16
    save_file(weights, file)
    monkeypatch.setattr(tune, "TOO_SLOW", math.inf)
    told = measured(model, monkeypatch)
    assert told["float32"].ms_per_step
    assert "not finite" in (told["bfloat16"].reason or "")


def refusal(family: StableDiffusion, graphs: Path, **options: Any) -> str:
    with pytest.raises(executors.Unavailable) as caught:
        executors.open_with(family, "openvino", "float32", graphs=graphs, threads=1, **options)
    return str(caught.value)


def test_a_missing_openvino_is_a_reason_and_not_a_fault(rig: Rig, graphs: Path) -> None:
    def absent() -> Any:
        raise ImportError("no module named openvino")

    assert "cannot be imported" in refusal(rig.family, graphs, runtime=absent)


@pytest.mark.parametrize("spoilt", ["unet.bin", "decoder.xml"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_spoilt_graph_is_not_opened(rig: Rig, graphs: Path, spoilt: str, how: str) -> None:
    file = graphs / spoilt
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if how == "flipped" else content[:-1])
    if how == "gone":
        file.unlink()
    assert refusal(rig.family, graphs) == "its graphs are not as they were made"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": {}}'])
def test_a_spoilt_record_is_not_believed(rig: Rig, graphs: Path, text: str) -> None:
    (graphs / executors.MANIFEST).write_text(text)
    assert "graphs" in refusal(rig.family, graphs)


def test_graphs_that_are_not_made_yet_are_a_reason(rig: Rig, tmp_path: Path) -> None:
    assert refusal(rig.family, tmp_path / "none") == "its graphs are not made yet"


@of_every_kind
@pytest.mark.parametrize(
    ("executor", "dtype", "most"), [("openvino", "float32", 0.5), ("openvino", "bfloat16", 4), ("torch", "bfloat16", 4)]
)
def test_rows_with_controlnets_share_the_call_of_those_without(
    rig: Rig, made: Path, tmp_path: Path, executor: str, dtype: str, most: float
) -> None:
    plain = build_sd(tmp_path / "plain") if rig.family.inpaints else rig.path  # a net is never told of the mask
    net = build_controlnet(tmp_path / "edges", plain, seed=2)
    picture(size=(16, 16)).save(tmp_path / "edges.png")
    use = ControlNetUse(
        model="edges",
        image="asset:e",
        preprocessor="none",
        options={},
        scale=1.0,
        start=0.0,
        end=1.0,
        resize_mode="stretch",
        control_mode="balanced",
    )
    asked = Asked(
        request=request(type="controlnet", controlnets=(use,)),
        files={"controlnets[0].image": tmp_path / "edges.png"},
        nets=(net,),
    )
    fast = opened(rig, made, executor, dtype)
    expected = rig.draw([asked])[0][0]
    assert difference(expected, rig.draw([request()])[0][0]) > 1, "it does nothing"
    for company in ([], [request(seed=9), request(seed=10)]):
        drawn = fast.draw([asked, *company])[0][0]
        assert difference(drawn, expected) <= most
        assert max(fast.calls) == 2 * (1 + len(company)), "one call for all"


# As kohya's scripts adapt by default.
OF_ATTENTIONS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "net.0.proj", "net.2", "q_proj", "fc1")


def adapted(file: Path, scale: float = 0.8, **changes: Any) -> Asked:
    return Asked(request=request(type="lora", loras=(LoraUse(name=file.stem, scale=scale),), **changes), loras=(file,))


@of_every_kind
@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.5), ("bfloat16", 6)])  # they are strong ones
def test_rows_with_adapters_share_the_call_of_those_without(
    rig: Rig, made: Path, tmp_path: Path, dtype: str, most: float
) -> None:
    """Of different layers, ranks and scales."""
    ink = build_lora(tmp_path / "ink.safetensors", rig.path, seed=3, layers=OF_ATTENTIONS)
    oil = build_lora(tmp_path / "oil.safetensors", rig.path, seed=4, layers=("to_k", "net.2"), rank=9, layout="kohya")
    both = LoraUse(name="ink", scale=-0.4), LoraUse(name="oil", scale=1.2)
    asked = [
        adapted(ink),
        adapted(oil, seed=5),
        Asked(request=request(type="lora", loras=both, guidance_scale=1.0), loras=(ink, oil)),
    ]
    expected, fast = [rig.draw([one])[0][0] for one in asked], opened(rig, made, dtype=dtype)
    without = rig.draw([request()])[0][0]
    assert all(difference(one, without) > 4 for one in expected)
    for company in ([], [request(seed=9), request(seed=10)]):
        drawn = [one for (one,) in fast.draw([*asked, *company])]
        assert max(fast.calls) == 5 + 2 * len(company), "one call for all"
        assert all(difference(one, other) <= most for one, other in zip(drawn, expected, strict=False))
    for one, other in zip(asked, expected, strict=True):
        assert difference(fast.draw([one])[0][0], other) <= most
    assert difference(fast.draw([request()])[0][0], without) <= most, "what was held for others"


@of_every_kind
def test_adapters_that_a_graph_does_not_take_run_in_the_plain_twin_beside_others(
    rig: Rig, made: Path, tmp_path: Path
) -> None:
    """Those of convolutions, and all of a model whose graph takes none."""
    small = tmp_path / "small"
    with torch.no_grad():
        convert.convert(type(rig.family)(rig.path, torch.device("cpu"), torch.float32), small)
    assert not opened(rig, small).family.executor.adapts
    for graphs, layers in ((made, ("to_q", "conv1")), (small, OF_ATTENTIONS)):
        asked = adapted(build_lora(tmp_path / "ink.safetensors", rig.path, seed=3, layers=layers))
        fast, expected = opened(rig, graphs), rig.draw([asked])[0][0]
        fast.draw(COMPANY, stagger=1)
        of_company = sum(fast.calls)
        drawn = fast.draw([*COMPANY, asked], stagger=1)[-1][0]
        assert sum(fast.calls) == of_company
        assert difference(drawn, expected) <= 0.5
        assert difference(rig.draw([request()])[0][0], drawn) > 1


@of_every_kind
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rows_with_adapters_share_the_call_of_those_without_in_half_precision_too(
    rig: Rig, made: Path, tmp_path: Path, dtype: str
) -> None:
    lora = build_lora(tmp_path / "ink.safetensors", rig.path, seed=3)
    asked = Asked(request=request(type="lora", loras=(LoraUse(name="ink", scale=0.8),)), loras=(lora,))
    fast, expected = opened(rig, made, "torch", dtype), rig.draw([asked])[0][0]
    assert difference(rig.draw([request()])[0][0], expected) > 5
    for company in ([], [request(seed=9), request(seed=10)]):
        drawn = fast.draw([asked, *company])[0][0]
        assert 0 < difference(drawn, expected) <= 4
        assert max(fast.calls) == 2 * (1 + len(company)), "one call for all"


@pytest.mark.parametrize(("told", "expected"), [(None, "float32"), (True, "float32"), (False, "float16")])
def test_an_autoencoder_whose_values_float16_cannot_hold_stays_float32(
    tmp_path: Path, told: bool | None, expected: str
) -> None:
    path = build_sdxl(tmp_path / "tiny")
    config = json.loads((path / "vae" / "config.json").read_text())
    del config["force_upcast"]
    (path / "vae" / "config.json").write_text(json.dumps(config | ({} if told is None else {"force_upcast": told})))
    for dtype, kept in ((torch.float16, expected), (torch.bfloat16, "bfloat16")):
        family = StableDiffusionXL(path, torch.device("cpu"), dtype)
        assert (family.unet.dtype, family.vae.dtype) == (dtype, getattr(torch, kept))
    assert family.decode(torch.zeros(1, family.latent_channels, 2, 2)).shape[0] == 1


def test_a_spoilt_compiled_form_is_made_anew(rig: Rig, graphs: Path) -> None:
    opened(rig, graphs)
    blobs = {file: file.read_bytes() for file in (graphs / "blobs-f32").iterdir()}
    assert len(blobs) == len(executors.PARTS)
    for file in blobs:
        file.chmod(0o600)
        file.write_bytes(b"not what it was")
    assert difference(opened(rig, graphs).draw([request()])[0][0], rig.draw([request()])[0][0]) <= 0.5
    recorded = json.loads((graphs / "blobs-f32.json").read_text())["files"]
    assert set(recorded) == {file.name for file in (graphs / "blobs-f32").iterdir()}
    assert all(file.read_bytes() != b"not what it was" for file in (graphs / "blobs-f32").iterdir())


def test_a_conversion_lets_go_of_a_module_before_it_compiles_it(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families = [type(rig.family)(rig.path, torch.device("cpu"), torch.float32)]
    modules, gone = (weakref.ref(families[0].unet), weakref.ref(families[0].vae)), []

    def give_back() -> None:
        gc.collect()
        gone.append([module() is None for module in modules])

    monkeypatch.setattr(memory, "give_back", give_back)
    with torch.no_grad():
        convert.convert(families.pop(), tmp_path / "tiny")
    assert gone == [[True, False], [True, True]]


def test_a_conversion_that_was_stopped_leaves_nothing_that_counts(rig: Rig, tmp_path: Path) -> None:
    dead = tmp_path / f".tiny.{2**22 + 1}.tmp"  # above any process id
    dead.mkdir()
    (dead / "unet.xml").write_text("half")
    assert refusal(rig.family, tmp_path / "tiny") == "its graphs are not made yet"
    executors.check_graphs(graphs_made(rig, tmp_path / "tiny"))
    assert not list(tmp_path.glob(".*"))


def test_importing_openvino_tells_nobody(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a connection')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from mezzotint.workers.imports import import_quickly\n"
        "import_quickly()\n"
        "from mezzotint.engine.executors import import_openvino\n"
        "import_openvino().Core()\n"
        "assert not any(n.startswith('openvino_telemetry') and m for n, m in sys.modules.items())\n"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.iterdir()) == []
