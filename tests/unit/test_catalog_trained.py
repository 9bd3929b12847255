"""What diffusers' training scripts leave in a folder: one file of it is a model, known by the folder's name."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mezzotint.catalog import Catalog, fitting
from tests.models import build_lora


@pytest.fixture
def root(random_sd: Path, tmp_path: Path) -> Path:
    shutil.copytree(random_sd, tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def catalog(root: Path) -> Catalog:
    """That has seen the folder before anything was trained."""
    catalog = Catalog([root], root.parent / "cache")
    catalog.scan()
    return catalog


def test_a_lora_is_found_in_the_folder_that_its_training_left_and_nothing_else_there_is_read(
    root: Path, catalog: Catalog
) -> None:
    before = len(catalog.models)
    file = build_lora(root / "pokemon" / "pytorch_lora_weights.safetensors", root / "tiny")
    build_lora(root / "pokemon" / "checkpoint-500" / "pytorch_lora_weights.safetensors", root / "tiny", seed=1)
    (root / "pokemon" / "checkpoint-500" / "optimizer.bin").write_bytes(b"a pickle")
    (root / "pokemon" / "logs" / "train").mkdir(parents=True)
    (root / "pokemon" / "logs" / "train" / "events.out.tfevents.1").write_bytes(b"losses")
    (root / "pokemon" / "mezzotint.json").write_text('{"trigger_words": ["pikachu"]}')
    build_lora(root / "pytorch_lora_weights.safetensors", root / "tiny", seed=2)
    catalog.scan()
    model = catalog.models["pokemon"]
    assert (model.kind, model.state, model.path, model.trigger_words) == ("lora", "ready", str(file), ("pikachu",))
    assert "tiny" in fitting(model, catalog.models.values())
    assert (catalog.models["pytorch_lora_weights"].kind, len(catalog.models)) == ("lora", before + 2)
    (root / "pokemon" / "mezzotint.json").unlink()
    assert catalog.scan()
    assert catalog.models["pokemon"].trigger_words == ()
    assert catalog.digest(catalog.models["pokemon"]) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_an_embedding_is_found_in_the_folder_that_its_training_left_unless_it_is_half_of_one(
    root: Path, catalog: Catalog
) -> None:
    folder = root / "cat"
    (folder / "logs").mkdir(parents=True)
    before = len(catalog.models)
    for name in ("learned_embeds", "learned_embeds-steps-500"):
        save_file({"<cat>": torch.zeros(32)}, folder / f"{name}.safetensors")
    catalog.scan()
    found = catalog.models
    assert (found["cat"].kind, found["cat"].state, found["cat"].trained_as) == ("embedding", "ready", "<cat>")
    assert (found["cat"].path, len(found)) == (str(folder / "learned_embeds.safetensors"), before + 1)
    assert fitting(found["cat"], found.values()) == ["tiny"]
    save_file({"<cat>": torch.zeros(8)}, folder / "learned_embeds_2.safetensors")
    assert catalog.scan(), "the same catalog sees what has come"
    assert "learned_embeds_2.safetensors's as clip_g" in str(catalog.models["cat"].reason)
