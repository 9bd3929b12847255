"""What a model takes once it is loaded, by its files and as it is, and what is let go with an adapter."""

import gc
import weakref
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mezzotint.families.lora import Adapted, Factors, Lora
from mezzotint.families.sd import StableDiffusion
from mezzotint.families.weights import loaded_bytes
from tests.models import build_sd


def test_weights_of_half_the_precision_count_as_what_they_become(tmp_path: Path) -> None:
    path = build_sd(tmp_path / "tiny")
    files = sorted(path.glob("*/*.safetensors"))
    whole = loaded_bytes(path, torch.float32)
    assert whole <= sum(file.stat().st_size for file in files) < 1.2 * whole
    for file in files:
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    assert loaded_bytes(path, torch.float32) == whole
    assert loaded_bytes(path, torch.float16) == whole // 2
    assert StableDiffusion(path, torch.device("cpu"), torch.float32).bytes == whole


def test_weights_that_cannot_be_read_count_nothing_until_their_loading_says_why(tmp_path: Path) -> None:
    path = build_sd(tmp_path / "tiny")
    next(path.glob("unet/*.safetensors")).write_bytes(b"overwritten since it was listed")
    assert loaded_bytes(path, torch.float32) == 0


def test_the_packed_copies_of_weights_count_as_memory_too(tmp_path: Path) -> None:
    path = build_sd(tmp_path / "tiny")
    plain = StableDiffusion(path, torch.device("cpu"), torch.float32)
    loaded = plain.bytes
    plain.pack()
    assert loaded < plain.bytes <= 2 * loaded


def test_in_half_precision_only_the_texts_are_as_large(tmp_path: Path) -> None:
    path = build_sd(tmp_path / "tiny")
    plain, half = (StableDiffusion(path, torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16))
    texts = sum(p.nbytes for p in plain.text_encoder.parameters())
    assert half.bytes == (plain.bytes - texts) // 2 + texts
    half.pack()
    assert half.bytes <= (plain.bytes - texts) // 2 + 2 * texts


def test_what_was_made_of_an_adapter_goes_with_it() -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    adapted = Adapted(module, "unet")
    lora = Lora(parts={"unet": {"0": Factors(torch.ones(2, 4), torch.ones(4, 2))}})
    inputs = torch.ones(1, 4)
    plain = module(inputs)
    for _ in range(2):
        with adapted.using([((lora, 1.0),)]):
            assert not torch.equal(module(inputs), plain)
    assert torch.equal(module(inputs), plain)
    assert adapted._company._made
    gone = weakref.ref(lora)
    del lora
    gc.collect()
    assert gone() is None
    assert not adapted._company._made
