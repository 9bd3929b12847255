"""`mezzotint models add`: from a folder, a file, or a hub of this machine that speaks Hugging Face's protocol."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mezzotint.adding import add
from mezzotint.config import load_settings
from mezzotint.errors import InvalidRequest, SetupError
from tests.models import build_lora
from tests.process.hub import Hub, serving


@pytest.fixture
def hub(random_sd: Path, tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "lora").mkdir()
    build_lora(tmp_path / "lora" / "pencil.safetensors", random_sd / "tiny")
    (tmp_path / "lora" / "README.md").write_text("a LoRA")
    with serving({"ink/tiny": random_sd / "tiny", "ink/pencil": tmp_path / "lora"}) as server:
        yield server


def add_from(
    hub: Hub, source: str, root: Path, hosts: tuple[str, ...] = ("127.0.0.1",), name: str | None = None
) -> Any:
    return add(load_settings(models=(root,), hub=hub.url, hub_hosts=hosts), source, name=name)


def test_a_repository_and_one_file_are_fetched_whole_and_usable(hub: Hub, tmp_path: Path) -> None:
    (hub.repositories["ink/pencil"] / "run.py").write_text("raise SystemExit")
    root = tmp_path / "models"
    model = add_from(hub, "ink/tiny", root)
    assert (model.id, model.state, model.kind) == ("tiny", "ready", "checkpoint")
    origin = hub.repositories["ink/tiny"]
    weights = sorted(file.relative_to(origin) for file in origin.rglob("*.safetensors"))
    assert weights
    assert all((root / "tiny" / file).read_bytes() == (origin / file).read_bytes() for file in weights)
    assert add_from(hub, "ink/pencil", root).kind == "lora"
    assert (root / "pencil.safetensors").is_file()
    assert not any(path.endswith((".py", ".md")) for path in hub.asked)
    assert sorted(file.name for file in root.iterdir()) == ["pencil.safetensors", "tiny"]


def test_a_lora_of_pefts_comes_with_the_config_that_tells_its_strength(
    hub: Hub, random_sd: Path, tmp_path: Path
) -> None:
    folder, root = tmp_path / "trained", tmp_path / "models"
    build_lora(folder / "adapter_model.safetensors", random_sd / "tiny")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    (folder / "README.md").write_text("a LoRA")
    hub.repositories["ink/peft"] = folder
    settings = load_settings(models=(root,), hub=hub.url, hub_hosts=("127.0.0.1",))
    sources = (str(folder), str(folder / "adapter_model.safetensors"), "ink/peft", "ink/peft/adapter_model.safetensors")
    for number, source in enumerate(sources):
        model = add(settings, source, name=f"ink{number}")
        assert (model.id, model.kind, model.state) == (f"ink{number}", "lora", "ready")
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert (root / f"ink{number}" / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(file.name for file in root.iterdir()) == ["ink0", "ink1", "ink2", "ink3"]


def test_a_lora_comes_out_of_the_folder_of_its_training_alone(hub: Hub, random_sd: Path, tmp_path: Path) -> None:
    folder, root = tmp_path / "pokemon", tmp_path / "models"
    file = build_lora(folder / "pytorch_lora_weights.safetensors", random_sd / "tiny")
    build_lora(folder / "checkpoint-500" / "pytorch_lora_weights.safetensors", random_sd / "tiny", seed=1)
    (folder / "checkpoint-500" / "optimizer.bin").write_bytes(b"a pickle")
    hub.repositories["ink/pokemon"] = folder
    assert add_from(hub, "ink/pokemon", root).id == "pokemon"
    (folder / "mezzotint.json").write_text('{"trigger_words": ["pikachu"]}')
    shouting = file.rename(folder / "LOUD.SAFETENSORS")
    assert add_from(hub, str(shouting), root).id == "LOUD"
    shouting.rename(file)
    (root / "pokemon.safetensors").unlink()
    added = add_from(hub, str(folder), root)
    assert (added.id, added.trigger_words) == ("pokemon", ("pikachu",))
    assert (root / "pokemon.safetensors").read_bytes() == file.read_bytes()
    assert sorted(one.name for one in root.iterdir()) == ["LOUD.safetensors", "pokemon.json", "pokemon.safetensors"]


def test_an_embedding_comes_out_of_the_folder_of_its_training_unless_it_is_half_of_one(
    hub: Hub, tmp_path: Path
) -> None:
    folder, root = tmp_path / "cat", tmp_path / "models"
    folder.mkdir()
    for name in ("learned_embeds", "learned_embeds-steps-500"):
        save_file({"<cat>": torch.zeros(32)}, folder / f"{name}.safetensors")
    hub.repositories["ink/cat"] = folder
    for source, name in (("ink/cat", "far"), (str(folder), "near")):
        added = add_from(hub, source, root, name=name)
        assert (added.id, added.kind, added.trained_as) == (name, "embedding", "<cat>")
    save_file({"<cat>": torch.zeros(8)}, folder / "learned_embeds_2.safetensors")
    with pytest.raises(InvalidRequest, match="name one file of it"):
        add_from(hub, "ink/cat", root, name="half")
    with pytest.raises(InvalidRequest, match="clip_g"):
        add_from(hub, str(folder), root, name="half")


@pytest.mark.parametrize("elsewhere", ["http://127.0.0.2", "http://localhost"])
def test_a_redirect_to_a_host_that_is_not_allowed_ends_it_and_leaves_nothing(
    hub: Hub, tmp_path: Path, elsewhere: str
) -> None:
    hub.elsewhere = f"{elsewhere}:{hub.server_port}"
    with pytest.raises(SetupError, match="not among hub_hosts"):
        add_from(hub, "ink/tiny", tmp_path / "models")
    assert not any("/stored/" in path for path in hub.asked)
    assert list((tmp_path / "models").iterdir()) == []


def test_what_is_not_there_or_comes_changed_is_told_and_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="HF_TOKEN"):
        add_from(hub, "ink/nothing", tmp_path / "models")
    with pytest.raises(InvalidRequest, match=r"it has .*pencil\.safetensors"):
        add_from(hub, "ink/pencil/other.safetensors", tmp_path / "models")
    hub.wrong_digests = True
    with pytest.raises(SetupError, match="the hub says"):
        add_from(hub, "ink/tiny", tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_folder_or_file_is_copied_once_and_what_cannot_be_used_is_refused(random_sd: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    command = [sys.executable, "-m", "mezzotint", "models", "add", str(random_sd / "tiny"), "--models", str(root)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "ready"), done.stderr
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (again.returncode, "--name" in again.stderr) == (2, True)
    bundled = subprocess.run([*command, "--name", "icons"], capture_output=True, text=True, timeout=60)
    assert (bundled.returncode, "there is a model 'icons'" in bundled.stderr) == (2, True)
    settings = load_settings(models=(root,))
    assert add(settings, str(random_sd / "tiny"), name="second").id == "second"
    pickle = tmp_path / "old.ckpt"
    pickle.write_bytes(b"\x80\x04.")
    for source in (str(pickle), str(tmp_path), "no such thing"):
        with pytest.raises(InvalidRequest):
            add(settings, source)
    assert sorted(file.name for file in root.iterdir()) == ["second", "tiny"]
