"""LoRAs of each layout, several at once, in company with others; diffusers with peft is the oracle."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.loha.layer import HadaWeight
from peft.tuners.lokr.layer import make_kron, make_weight_cp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from mezzotint.families.lora import Adapted, read_lora
from mezzotint.families.lycoris import as_plain
from mezzotint.request import LoraUse
from tests.models import build_lora, build_sd
from tests.parity.rig import COMPANY, Asked, Rig, assert_equal, difference
from tests.requests import request

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loras")
    build_sd(root / "tiny")
    for seed in range(8):
        build_lora(root / f"style{seed}.safetensors", root / "tiny", seed=seed, rank=2 + seed % 3)
    build_lora(root / "kohya.safetensors", root / "tiny", seed=3, rank=4, layout="kohya")
    build_lora(root / "same.safetensors", root / "tiny", seed=3, rank=4)
    return root


@pytest.fixture(scope="module")
def rig(folder: Path) -> Rig:
    return Rig(folder / "tiny")


def adapted(folder: Path, *uses: tuple[str, float], **changes: Any) -> Asked:
    loras = tuple(LoraUse(name=name, scale=scale) for name, scale in uses)
    return Asked(
        request=request(type="lora", loras=loras, **changes),
        loras=tuple(folder / f"{name}.safetensors" for name, _ in uses),
    )


@pytest.mark.parametrize(
    "uses",
    [
        [("style0", 1.0)],
        [("style0", 0.4)],
        [("style0", -0.5)],
        [("style1", 0.6), ("style2", 0.5)],
        [("style0", 0.3), ("style1", 0.3), ("style2", 0.3)],
    ],
    ids=str,
)
def test_loras_equal_the_pipelines(rig: Rig, folder: Path, uses: list[tuple[str, float]]) -> None:
    asked = adapted(folder, *uses)
    expected = rig.oracle(asked)
    assert difference(rig.oracle(request()), expected) > 1, "the LoRA changes nothing"
    assert_equal(rig.draw([asked])[0][0], expected)
    assert_equal(rig.draw([*COMPANY, adapted(folder, ("style5", 1.0)), asked], stagger=1)[-1][0], expected)


def test_the_layout_of_kohya_is_read(rig: Rig, folder: Path) -> None:
    # diffusers cannot be asked: it loses the text encoder's part of such files with this transformers
    expected = rig.oracle(adapted(folder, ("same", 0.45)))
    assert_equal(rig.draw([adapted(folder, ("kohya", 0.9))])[0][0], expected)  # alpha is half the rank


def test_eight_sets_of_loras_share_each_call_and_each_is_as_alone(rig: Rig, folder: Path) -> None:
    asked = [adapted(folder, (f"style{i}", 0.2 + 0.1 * i), seed=i, num_inference_steps=20) for i in range(8)]
    together = rig.draw(asked)
    assert 16 in rig.calls, "eight sessions with guidance, once all are loaded"
    for one, drawn in zip(asked, together, strict=True):
        assert_equal(drawn[0], rig.draw([one])[0][0])


@pytest.mark.parametrize("rank", [2, 9], ids=["few", "more than the layers have"])
def test_a_loha_is_the_product_that_peft_makes_of_it(rig: Rig, tmp_path: Path, rank: int) -> None:
    noise = torch.Generator().manual_seed(6)
    tensors: dict[str, Tensor] = {}
    for name in (QUERY, CONVOLUTION):
        outs, *ins = rig.family.unet.get_parameter(f"{name}.weight").shape
        stem = f"lora_unet_{name.replace('.', '_')}"
        shapes = {"w1_a": (outs, rank), "w1_b": (rank, prod(ins)), "w2_a": (outs, rank), "w2_b": (rank, prod(ins))}
        tensors |= {f"{stem}.hada_{end}": torch.randn(shape, generator=noise) for end, shape in shapes.items()}
        tensors[f"{stem}.alpha"] = torch.tensor(1.5)
    save_file(tensors, tmp_path / "loha.safetensors")
    read = rig.family.load_lora(tmp_path / "loha.safetensors").parts["unet"]
    for name in (QUERY, CONVOLUTION):
        factors = [
            tensors[f"lora_unet_{name.replace('.', '_')}.hada_{end}"] for end in ("w1_a", "w1_b", "w2_a", "w2_b")
        ]
        theirs = HadaWeight.apply(*factors, torch.tensor(1.5 / rank))
        torch.testing.assert_close(read[name].up @ read[name].down.flatten(1), theirs, rtol=1e-4, atol=1e-4)
    asked = Asked(request=request(loras=(LoraUse(name="loha", scale=0.05),)), loras=(tmp_path / "loha.safetensors",))
    assert difference(rig.draw([asked])[0][0], rig.draw([request()])[0][0]) > 1


def _w1(*names: str) -> dict[str, tuple[int, ...]]:
    return {name: {"w1": (4, 2), "w1_a": (4, 2), "w1_b": (2, 2)}[name] for name in names}


LOKR: list[tuple[dict[str, tuple[int, ...]], int | None]] = [
    ({**_w1("w1"), "w2": (8, 6)}, None),
    ({**_w1("w1"), "w2_a": (8, 3), "w2_b": (3, 6)}, 3),
    ({**_w1("w1_a", "w1_b"), "w2_a": (8, 1), "w2_b": (1, 6)}, 1),
    ({**_w1("w1_a", "w1_b"), "w2": (8, 6)}, 2),
]
MIDDLE = ({**_w1("w1"), "t2": (3, 3), "w2_a": (3, 8), "w2_b": (3, 6)}, 3)  # of convolutions alone


@pytest.mark.parametrize(
    ("factors", "rank", "kernel"),
    [(*one, kernel) for kernel in ((), (3, 3)) for one in LOKR] + [(*MIDDLE, (3, 3))],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_a_lokr_is_the_product_that_peft_makes_of_it(
    factors: dict[str, tuple[int, ...]], rank: int | None, kernel: tuple[int, ...]
) -> None:
    noise = torch.Generator().manual_seed(8)
    drawn = {name: torch.randn(shape, generator=noise) for name, shape in factors.items()}
    if kernel:  # the last of the factors carries it
        last = "t2" if "t2" in factors else "w2" if "w2" in factors else "w2_b"
        shape = (*factors[last], *kernel)
        drawn[last] = torch.randn(shape, generator=noise)
        if last == "w2_b":
            drawn[last] = drawn[last].flatten(1)
    stem = "lora_unet_anything"
    plain = as_plain(
        {f"{stem}.lokr_{name}": tensor for name, tensor in drawn.items()} | {f"{stem}.alpha": torch.tensor(1.5)}
    )
    assert plain.keys() == {f"{stem}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    down, up, alpha = (plain[f"{stem}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
    w1 = drawn["w1"] if "w1" in drawn else drawn["w1_a"] @ drawn["w1_b"]
    if "t2" in drawn:
        w2 = make_weight_cp(drawn["t2"], drawn["w2_a"], drawn["w2_b"])
    else:
        w2 = drawn["w2"] if "w2" in drawn else drawn["w2_a"] @ drawn["w2_b"]
    theirs = make_kron(w1, w2, 1.5 / rank if rank else 1.0)
    ours = up @ down.flatten(1) * (float(alpha) / len(down))
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-4, atol=1e-4)
    assert len(down) <= min(ours.shape)


def test_a_lokr_changes_the_picture_and_one_that_lacks_a_factor_is_refused(rig: Rig, tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(9)
    outs, ins = rig.family.unet.get_parameter(f"{QUERY}.weight").shape
    stem = f"lora_unet_{QUERY.replace('.', '_')}"
    shapes = {"w1": (4, 4), "w2_a": (outs // 4, 2), "w2_b": (2, ins // 4)}
    tensors = {f"{stem}.lokr_{name}": torch.randn(shape, generator=noise) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "lokr.safetensors")
    asked = Asked(request=request(loras=(LoraUse(name="lokr", scale=0.5),)), loras=(tmp_path / "lokr.safetensors",))
    assert difference(rig.draw([asked])[0][0], rig.draw([request()])[0][0]) > 1
    del tensors[f"{stem}.lokr_w2_b"]
    save_file(tensors, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="has no lokr_w2"):
        rig.family.load_lora(tmp_path / "half.safetensors")


def test_a_locon_with_a_middle_factor_is_its_three_convolutions(rig: Rig, tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(7)
    outs, ins, *kernel = rig.family.unet.get_parameter(f"{CONVOLUTION}.weight").shape
    stem = f"lora_unet_{CONVOLUTION.replace('.', '_')}"
    shapes = {"down": (3, ins, 1, 1), "mid": (3, 3, *kernel), "up": (outs, 3, 1, 1)}
    tensors = {f"{stem}.lora_{end}.weight": torch.randn(shape, generator=noise) for end, shape in shapes.items()}
    save_file(tensors, tmp_path / "locon.safetensors")
    read = rig.family.load_lora(tmp_path / "locon.safetensors").parts["unet"][CONVOLUTION]
    pixels = torch.randn(1, ins, 5, 5, generator=noise)
    theirs = pixels
    for end in shapes:
        theirs = functional.conv2d(theirs, tensors[f"{stem}.lora_{end}.weight"])
    ours = functional.conv2d(functional.conv2d(pixels, read.down), read.up[:, :, None, None])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("ending", "parts"),
    [("lora_magnitude_vector", ("unet.",)), ("lora_magnitude_vector.weight", ("unet.", "text_encoder."))],
    ids=["as peft writes it", "as it calls it"],  # of a text encoder diffusers reads the second alone
)
def test_a_weight_decomposed_adapter_equals_the_pipelines(
    rig: Rig, folder: Path, tmp_path: Path, ending: str, parts: tuple[str, ...]
) -> None:
    noise = torch.Generator().manual_seed(12)
    tensors = {key: tensor for key, tensor in load_file(folder / "style0.safetensors").items() if key.startswith(parts)}
    for stem in [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]:
        part, _, name = stem.partition(".")
        weight = getattr(rig.pipeline, part).get_parameter(f"{name}.weight").detach()
        lengths = weight.flatten(1).norm(dim=1) * (0.7 + 0.6 * torch.rand(len(weight), generator=noise))
        tensors[f"{stem}.{ending}"] = lengths.reshape(1, -1, 1, 1) if weight.dim() == 4 else lengths
    save_file(tensors, tmp_path / "dora.safetensors")
    asked = adapted(tmp_path, ("dora", 1.0))
    expected = rig.oracle(asked)
    assert difference(rig.oracle(adapted(folder, ("style0", 1.0))), expected) > 1, "the magnitudes change nothing"
    assert_equal(rig.draw([asked])[0][0], expected)
    assert_equal(rig.draw([*COMPANY, adapted(folder, ("style5", 1.0)), asked], stagger=1)[-1][0], expected)


class Two(nn.Module):
    """A layer of each kind, as a UNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 10, 3, padding=1)
        self.line = nn.Linear(10, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.line(self.conv(inputs).permute(0, 2, 3, 1))
        return output


@pytest.mark.parametrize("of_output", [True, False], ids=["by output", "by input"])
def test_a_weight_decomposed_adapter_is_what_comfyui_merges(tmp_path: Path, *, of_output: bool) -> None:
    """Rows with one, with two, with none, each at a scale of its own."""
    noise = torch.Generator().manual_seed(13)
    torch.manual_seed(13)
    module = Two()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    merged: dict[str, dict[str, Tensor]] = {}
    for name in ("one", "two"):
        tensors: dict[str, Tensor] = {}
        merged[name] = {}
        for layer, rank in (("conv", 2), ("line", 3)):
            weight = before[f"{layer}.weight"]
            outs, *ins = weight.shape
            down, up = torch.randn(rank, *ins, generator=noise), torch.randn(outs, rank, generator=noise)
            whole = weight + torch.tensordot(up, down, 1) * 0.5
            dims = [dim for dim in range(weight.dim()) if dim != (0 if of_output else 1)]
            lengths = whole.square().sum(dims, keepdim=True).sqrt()
            magnitude = lengths * (0.5 + torch.rand(lengths.shape, generator=noise))
            merged[name][layer] = whole * magnitude / lengths - weight
            tensors |= {f"lora_unet_{layer}.lora_down.weight": down, f"lora_unet_{layer}.dora_scale": magnitude}
            tensors |= {
                f"lora_unet_{layer}.lora_up.weight": up.reshape(outs, rank, *[1] * (weight.dim() - 2)),
                f"lora_unet_{layer}.alpha": torch.tensor(rank * 0.5),
            }
        save_file(tensors, tmp_path / f"{name}.safetensors")
    one, two = (
        read_lora(tmp_path / f"{name}.safetensors", {"unet": module}, torch.device("cpu")) for name in ("one", "two")
    )
    pixels, rows = torch.randn(4, 6, 5, 5, generator=noise), [((one, 1.0),), (), ((one, 0.4), (two, -0.7)), ()]
    with torch.no_grad():
        with Adapted(module, "unet").using(rows):
            ours = module(pixels)
        scales = [{"one": 1.0}, {}, {"one": 0.4, "two": -0.7}, {}]
        for row, asked in enumerate(scales):
            for layer in ("conv", "line"):
                delta = sum(scale * merged[name][layer] for name, scale in asked.items())
                getattr(module, layer).weight.copy_(before[f"{layer}.weight"] + delta)
            torch.testing.assert_close(ours[row], module(pixels)[row], rtol=1e-4, atol=1e-4)


def test_a_weight_decomposed_adapter_of_another_size_is_refused(rig: Rig, folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "style0.safetensors") | {f"unet.{QUERY}.lora_magnitude_vector": torch.ones(99)}
    save_file(tensors, tmp_path / "dora.safetensors")
    with pytest.raises(ValueError, match=r"attn1\.to_q: its magnitudes are \(99,\)"):
        rig.family.load_lora(tmp_path / "dora.safetensors")


def test_scale_zero_is_the_base_picture(rig: Rig, folder: Path) -> None:
    drawn = rig.draw([adapted(folder, ("style0", 0.0))])[0][0]
    assert torch.equal(drawn.latents, rig.draw([request()])[0][0].latents)


def test_a_lora_of_another_shape_is_refused_with_the_layer_named(rig: Rig, folder: Path, tmp_path: Path) -> None:
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    wide = {f"{name}.lora_A.weight": torch.zeros(2, 99), f"{name}.lora_B.weight": torch.zeros(32, 2)}
    save_file(wide, tmp_path / "wide.safetensors")
    modules = {"unet": rig.family.unet}
    with pytest.raises(ValueError, match=r"attn1\.to_q are \(2, 99\)"):
        read_lora(tmp_path / "wide.safetensors", modules, torch.device("cpu"))
    save_file({"unet.nowhere.lora_A.weight": torch.zeros(2, 2), "unet.nowhere.lora_B.weight": torch.zeros(2, 2)},
              tmp_path / "nowhere.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="nowhere"):
        read_lora(tmp_path / "nowhere.safetensors", modules, torch.device("cpu"))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["unet.conv_in.lora_magnitude_vector"], r"1 \('unet\.conv_in"),  # of a layer without factors
        ([f"unet.{QUERY}.lora_B.bias"], r"1 \('unet\.down_blocks.*lora_B\.bias'\)"),
        (["unet.mid_block.resnets.0.conv2.diff"], r"1 \('unet\.mid_block"),
        ([f"unet.{QUERY}.lora.up.weight"], r"1 \('unet\.down_blocks.*lora\.up"),  # its other half is missing
        ([f"text_encoder.layers.{i}.lora_{half}.weight" for i in range(9) for half in "AB"], r"18 \(.*, \.\.\.\) of"),
    ],
    ids=["magnitudes", "bias", "difference", "half", "layers"],
)
def test_a_lora_with_parts_that_nothing_here_takes_is_refused_not_drawn_without_them(
    rig: Rig, folder: Path, tmp_path: Path, names: list[str], told: str
) -> None:
    whole = load_file(folder / "style0.safetensors")
    save_file(whole | {name: torch.ones(2, 2) for name in names}, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=told):
        rig.family.load_lora(tmp_path / "more.safetensors")


def test_an_old_file_may_name_a_text_encoders_projections_as_the_unets(rig: Rig, tmp_path: Path) -> None:
    old = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
    layer = "encoder.layers.1.self_attn"
    tensors = {}
    for name, ours in old.items():
        out, into = rig.family.text_encoder.get_parameter(f"{layer}.{ours}.weight").shape
        tensors[f"text_encoder.text_model.{layer}.{name}_lora.down.weight"] = torch.ones(2, into)
        tensors[f"text_encoder.text_model.{layer}.{name}_lora.up.weight"] = torch.ones(out, 2)
    save_file(tensors, tmp_path / "old.safetensors")
    parts = rig.family.load_lora(tmp_path / "old.safetensors").parts
    assert set(parts["text_encoder"]) == {f"{layer}.{ours}" for ours in old.values()}


def test_what_has_no_effect_may_stand_in_a_lora(rig: Rig, folder: Path, tmp_path: Path) -> None:
    whole = load_file(folder / "kohya.safetensors")
    more = {"lora_te_text_model_embeddings.position_ids": torch.ones(1, 2), "lora_unet_conv_out.alpha": torch.tensor(1)}
    save_file(whole | more, tmp_path / "more.safetensors")
    assert rig.family.load_lora(tmp_path / "more.safetensors").parts["unet"]


def test_the_strength_that_pefts_config_tells_equals_the_pipelines(rig: Rig, folder: Path, tmp_path: Path) -> None:
    layers = {"unet": "to_q to_k to_v to_out.0 conv1", "text_encoder": "q_proj v_proj fc1"}
    patterns = {"unet": {f"^{QUERY}": 24, "to_v": 1}, "text_encoder": {"layers.1.mlp.fc1": 9}}
    told = {
        f"{part}.{field}": value
        for part, names in layers.items()
        for field, value in {
            "r": 2, "lora_alpha": 3, "use_rslora": part == "unet", "alpha_pattern": patterns[part],
            "target_modules": names.split(),
        }.items()
    }  # fmt: skip
    told_of = {"lora_adapter_metadata": json.dumps(told)}
    save_file(load_file(folder / "style0.safetensors"), tmp_path / "told.safetensors", told_of)
    asked = adapted(tmp_path, ("told", 0.4))
    expected = rig.oracle(asked)
    assert difference(rig.oracle(adapted(folder, ("style0", 0.4))), expected) > 1, "what is told changes nothing"
    assert_equal(rig.draw([asked])[0][0], expected)


def test_the_strength_that_pefts_config_tells_beside_a_lora_is_that_of_its_own_file(
    rig: Rig, folder: Path, tmp_path: Path
) -> None:
    told = {"r": 2, "lora_alpha": 3, "use_rslora": True, "alpha_pattern": {f"^{QUERY}": 24, "to_v": 1}}
    build_lora(tmp_path / "ink" / "adapter_model.safetensors", folder / "tiny", rank=2, layout="peft alone")
    tensors = load_file(tmp_path / "ink" / "adapter_model.safetensors")
    inside = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in told.items()})}
    save_file(tensors, tmp_path / "told.safetensors", inside)
    expected = rig.family.load_lora(tmp_path / "told.safetensors")
    (tmp_path / "ink" / "adapter_config.json").write_text(json.dumps(told))
    for path in (tmp_path / "ink", tmp_path / "ink" / "adapter_model.safetensors"):
        factors = rig.family.load_lora(path).parts["unet"]
        for name, pair in expected.parts["unet"].items():
            assert torch.equal(factors[name].up, pair.up)
    (tmp_path / "ink" / "adapter_config.json").write_text('{"r": 16, "lora_alpha": 3}')
    with pytest.raises(ValueError, match="rank 2, where adapter_config"):
        rig.family.load_lora(tmp_path / "ink")


def test_a_pattern_of_pefts_that_could_take_for_ever_is_refused(rig: Rig, folder: Path, tmp_path: Path) -> None:
    told = {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": {"(a+)+$": 1}})}
    save_file(load_file(folder / "style0.safetensors"), tmp_path / "told.safetensors", told)
    with pytest.raises(ValueError, match="alpha_pattern"):
        rig.family.load_lora(tmp_path / "told.safetensors")
