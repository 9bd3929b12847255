"""Small files of a model that ask for much, or that no list could show: refused with the reason, at little cost."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

from mezzotint import facts
from mezzotint.facts import Model
from mezzotint.headers import Unusable, read_header
from tests.models import build_lora


@pytest.fixture
def root(random_sd: Path, tmp_path: Path) -> Path:
    """A models folder of one good model, to be broken."""
    shutil.copytree(random_sd, tmp_path / "models")
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("file", "name", "value", "words"),
    [
        ("unet/config.json", "transformer_layers_per_block", [[10_000_000]], "at most 256"),
        ("unet/config.json", "layers_per_block", -1, "'layers_per_block' to -1"),
        ("text_encoder/config.json", "max_position_embeddings", 10**12, "at most 4096"),
        ("vae/config.json", "block_out_channels", [8] * 70, "at most 8 levels"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 200_000_000, "num_train_timesteps is 200000000"),
        ("scheduler/scheduler_config.json", "solver_order", 10**9, "solver_order is 1000000000"),
    ],
)
def test_a_config_that_asks_for_more_than_any_model_has_is_refused(
    root: Path, file: str, name: str, value: object, words: str
) -> None:
    config = root / "tiny" / file
    config.write_text(json.dumps(json.loads(config.read_text()) | {name: value}))
    model = facts.read(root / "tiny", root)
    assert model.state == "invalid"
    assert words in str(model.reason)


def test_text_that_is_no_unicode_makes_no_list_fail(root: Path) -> None:
    shutil.copytree(root / "tiny", root / "words")
    (root / "words" / "mezzotint.json").write_text('{"trigger_words": ["\\ud800"]}')
    for name, text in (("name", b"\\ud800"), ("raw", b"\xed\xa0\x80")):
        build_lora(root / f"{name}.safetensors", root / "tiny")
        rename_lora(root / f"{name}.safetensors", text)
    (root / "tiny" / os.fsdecode(b"\xff.bin")).touch()
    found: list[Model] = [facts.read(path, root) for path in root.iterdir()]
    assert [model.state for model in found] == ["invalid"] * 4
    json.dumps([model.reason for model in found], ensure_ascii=False).encode()


def rename_lora(path: Path, name: bytes) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = b'{"__metadata__":{"ss_output_name":"' + name + b'"},' + data[9 : 8 + length]
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


@pytest.mark.parametrize("piece", [b'{},"', b'[],"', b'0,"', b"[" + b"300," * 1000 + b'0],"'], ids=len)
def test_a_header_of_many_things_takes_little_memory(tmp_path: Path, piece: bytes) -> None:
    pieces = (b"%06d" % at + b'":' + piece for at in range((8 << 20) // (len(piece) + 9)))
    header = b'{"' + b"".join(pieces) + b'":0}'
    (tmp_path / "bomb.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    tracemalloc.start()
    with pytest.raises(Unusable, match="more than 20000 tensors"):
        read_header(tmp_path / "bomb.safetensors")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 32 << 20
