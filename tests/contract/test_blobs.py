"""What every keeper of pictures promises. Must not look inside one but through its files."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from mezzotint.errors import TryLater
from mezzotint.store.blobs import Blobs

pytestmark = pytest.mark.anyio


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def blobs(root: Path) -> Blobs:
    return Blobs(root)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


async def test_what_is_put_is_found_under_its_digest(blobs: Blobs) -> None:
    data = bytes(range(256)) * 4000
    sha256 = await blobs.put("ses_1", data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert blobs.path("ses_1", sha256).read_bytes() == data


async def test_files_are_for_their_owner_only(blobs: Blobs) -> None:
    path = blobs.path("ses_1", await blobs.put("ses_1", b"a"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_putting_again_is_harmless_and_leaves_one_file(blobs: Blobs, root: Path) -> None:
    first = await blobs.put("ses_1", b"a")
    assert await blobs.put("ses_1", b"a") == first
    assert files(root) == {f"ses_1/{first}"}


async def test_delete_takes_one_session_only_and_may_repeat(blobs: Blobs, root: Path) -> None:
    await blobs.put("ses_1", b"a")
    kept = await blobs.put("ses_2", b"a")
    await blobs.delete("ses_1")
    await blobs.delete("ses_1")
    assert files(root) == {f"ses_2/{kept}"}
    assert not (root / "ses_1").exists()


async def test_sweep_removes_strays_and_nothing_else(blobs: Blobs, root: Path) -> None:
    assert blobs.sweep() == 0  # no folder yet
    kept = await blobs.put("ses_1", b"a")
    (root / "ses_1" / ".0123456789abcdef.tmp").write_bytes(b"half")
    (root / "ses_1" / "notes.tmp").write_bytes(b"not ours")
    assert blobs.sweep() == 1
    assert blobs.sweep() == 0
    assert files(root) == {f"ses_1/{kept}", "ses_1/notes.tmp"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_says_try_later_and_leaves_nothing(
    blobs: Blobs, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    await blobs.put("ses_1", b"before")
    before = files(root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TryLater) as caught:
            await blobs.put("ses_1", b"a")
    assert caught.value.code == "storage_full"
    assert caught.value.retry_after_s == 10
    assert files(root) == before
    assert await blobs.put("ses_1", b"a")  # and goes on by itself when there is room


async def test_a_broken_disk_is_not_called_a_full_one(
    blobs: Blobs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(TryLater, match="Input/output") as caught:
        await blobs.put("ses_1", b"a")
    assert caught.value.code == "not_ready"
    assert files(root) == set()


async def test_bytes_are_synced_before_the_name_and_the_name_before_the_answer(
    blobs: Blobs, disk_calls: list[str]
) -> None:
    await blobs.put("ses_1", b"a")
    assert disk_calls == ["fsync file", "rename", "fsync folder", "fsync folder"], "its own folder, and the one above"


@pytest.mark.parametrize(
    "bad",
    ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "a\n", "a\0", "ses 1", "é", "١", "a" * 65, "ses-1", "~", "a.b"],
)
async def test_an_id_that_is_not_one_never_becomes_a_path(blobs: Blobs, tmp_path: Path, bad: str) -> None:
    with pytest.raises(ValueError, match="not a session id"):
        await blobs.put(bad, b"a")
    with pytest.raises(ValueError, match="not a session id"):
        await blobs.delete(bad)
    with pytest.raises(ValueError, match="not a session id"):
        blobs.path(bad, "0" * 64)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("bad", ["", "..", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0" * 63 + "\n", "../" + "0" * 61])
async def test_a_digest_that_is_not_one_never_becomes_a_path(blobs: Blobs, bad: str) -> None:
    with pytest.raises(ValueError, match="not a SHA-256"):
        blobs.path("ses_1", bad)
