"""Models as workers are told of them: who needs a digest waits for it, and nobody else does."""

import asyncio
import shutil
from concurrent.futures import Future
from pathlib import Path

import pytest

from mezzotint.catalog import Catalog
from mezzotint.refs import Refs

pytestmark = pytest.mark.anyio


@pytest.fixture
def catalog(tmp_path: Path, random_sd: Path) -> Catalog:
    catalog = Catalog([random_sd], tmp_path / "cache")
    catalog.scan()
    return catalog


@pytest.fixture
def hash_later(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> Future[str]:
    """Hashing takes until the test sets this."""
    later: Future[str] = Future()
    monkeypatch.setattr(catalog, "hashing", lambda model: later)
    return later


async def test_only_who_needs_the_digest_waits_for_it(catalog: Catalog, hash_later: Future[str]) -> None:
    refs, told = Refs(catalog), asyncio.Event()
    refs.on_read = told.set
    assert not refs.is_read("tiny")
    assert refs.is_being_read("tiny")
    unread = await refs.at_once("tiny")
    assert unread is not None
    assert (unread.sha256, unread.bytes) == ("unread:tiny", catalog.models["tiny"].bytes)
    assert refs.known["tiny"] == unread
    waiting = [asyncio.create_task(refs.of("tiny")) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert not any(one.done() for one in waiting)
    hash_later.set_result("f" * 64)
    found, again = await asyncio.gather(*waiting)
    assert found == again == refs.known["tiny"]
    assert found is not None
    assert found.sha256 == "f" * 64
    assert told.is_set()
    assert refs.is_read("tiny")
    assert not refs.is_being_read("tiny")


async def test_one_that_has_changed_is_known_as_unread_until_it_is_hashed_anew(
    tmp_path: Path, random_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(random_sd, folder)
    catalog = Catalog([folder], tmp_path / "cache")
    catalog.scan()
    refs = Refs(catalog)
    await refs.of("tiny")
    (folder / "tiny" / "vae" / "diffusion_pytorch_model.safetensors").touch()
    catalog.scan()
    later: Future[str] = Future()
    monkeypatch.setattr(catalog, "hashing", lambda model: later)
    unread = await refs.at_once("tiny")
    assert unread is not None
    assert refs.known["tiny"] == unread
    assert refs.facts(unread) == catalog.models["tiny"]
    later.set_result("f" * 64)
    assert await refs.of("tiny") == refs.known["tiny"]


async def test_what_was_hashed_before_is_known_at_once_though_another_model_is_being_hashed(
    catalog: Catalog, hash_later: Future[str]
) -> None:
    sha256 = Catalog.hashing(catalog, catalog.models["tiny"]).result()
    known = await Refs(catalog).at_once("tiny")
    assert known is not None
    assert known.sha256 == sha256
    assert not hash_later.done()


@pytest.mark.parametrize("damaged", [b"\xff" * 64, b"", b"g" * 64, b"a" * 65])
async def test_a_digest_whose_note_is_damaged_is_hashed_anew(catalog: Catalog, tmp_path: Path, damaged: bytes) -> None:
    sha256 = catalog.digest(catalog.models["tiny"])
    for note in (tmp_path / "cache" / "catalog").iterdir():
        note.write_bytes(damaged)
    found = await Refs(catalog).of("tiny")
    assert found is not None
    assert found.sha256 == sha256


async def test_a_model_whose_hashing_broke_off_is_hashed_when_it_is_next_asked_for(
    catalog: Catalog, hash_later: Future[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = Refs(catalog)
    hash_later.set_exception(RuntimeError("nobody foresaw it"))
    with pytest.raises(RuntimeError):
        await refs.of("tiny")
    assert not refs.is_being_read("tiny")
    monkeypatch.undo()
    assert await refs.of("tiny") is not None


async def test_many_that_ask_at_once_look_at_its_files_once(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = catalog.digest(catalog.models["tiny"])
    looks: list[str] = []
    known_digest = catalog.known_digest

    def look(model_id: str) -> str | None:
        looks.append(model_id)
        return known_digest(model_id)

    monkeypatch.setattr(catalog, "known_digest", look)
    refs = Refs(catalog)
    found = await asyncio.gather(*(refs.at_once("tiny") for _ in range(50)))
    assert {one.sha256 for one in found if one is not None} == {sha256}
    assert looks == ["tiny"]


async def test_one_that_cannot_be_read_is_none_and_one_that_has_changed_is_hashed_anew(
    tmp_path: Path, random_sd: Path
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(random_sd, folder)
    catalog = Catalog([folder], tmp_path / "cache")
    catalog.scan()
    refs = Refs(catalog)
    first = await refs.of("tiny")
    weights = folder / "tiny" / "vae" / "diffusion_pytorch_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    catalog.scan()
    second = await refs.of("tiny")
    assert first is not None
    assert second is not None
    assert first.sha256 != second.sha256
    shutil.rmtree(folder / "tiny")
    assert await Refs(catalog).of("tiny") is None
    assert await refs.of("nothing") is None
    assert refs.is_read("nothing")


async def test_one_whose_autoencoder_was_replaced_under_its_name_is_hashed_anew(
    tmp_path: Path, random_sd: Path
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(random_sd, folder)
    shutil.copytree(folder / "tiny" / "vae", folder / "clear")
    (folder / "tiny" / "mezzotint.json").write_text('{"defaults": {"vae": "clear"}}')
    catalog = Catalog([folder], tmp_path / "cache")
    catalog.scan()
    refs = Refs(catalog)
    first = await refs.of("tiny")
    weights = folder / "clear" / "diffusion_pytorch_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    catalog.scan()
    assert refs.now("tiny") is None
    second = await refs.of("tiny")
    assert first is not None
    assert second is not None
    assert first.sha256 != second.sha256


def test_a_file_is_not_hashed_to_its_end_once_the_catalog_is_closed(catalog: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"x")
    catalog.close()
    with pytest.raises(InterruptedError):
        catalog._hash(file)
