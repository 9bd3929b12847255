"""Pictures in: a real image child, real files. Uploads over HTTP are in test_assets_http.py."""

import asyncio
import contextlib
import errno
import hashlib
import io
import os
import re
import resource
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mezzotint import image_child
from mezzotint import image_wire as wire
from mezzotint.assets import UNUSED_S, Asset, Assets
from mezzotint.errors import STATUS, CallerError, InvalidRequest, TryLater
from mezzotint.image_handle import MAX_WAITING
from tests import pictures
from tests.pictures import encoded, exif, picture, png16

pytestmark = pytest.mark.anyio

ID = "ast_01JD2V5W8QZ3T4R6Y7N9M0K1HB"
PNG = encoded(picture())
HOSTILE = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Assets]:
    """For tests that leave the child as they found it."""
    assets = Assets(tmp_path_factory.mktemp("shared") / "assets")
    await assets.start()
    yield assets
    await assets.close()


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Assets]:
    assets = Assets(tmp_path / "assets", deadline_s=2.0)
    await assets.start()
    yield assets
    await assets.close()


def kept(assets: Assets, asset: Asset) -> Image.Image:
    image = Image.open(io.BytesIO(assets.path(asset.id).read_bytes()))
    image.load()
    return image


async def refusal(assets: Assets, data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        await assets.put(data, "image", field="image")
    assert (caught.value.code, caught.value.field) == ("invalid_image", "image")
    assert not re.search(r"0x[0-9a-f]{6,}|Traceback|object at|/\w+/|\.py", caught.value.message)
    return caught.value.message


def laid_over(image: Image.Image, level: int) -> Any:
    """The oracle of alpha: over a background, in floats."""
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    alpha = rgba[:, :, 3:] / 255
    return rgba[:, :, :3] * alpha + level * (1 - alpha)


# ---- what is taken, and what becomes of it


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "I;16", "RGB", "RGBA"])  # PA: a palette with alpha
async def test_a_png_of_every_mode_becomes_rgb(shared: Assets, mode: str) -> None:
    image = picture("RGBA").quantize(16, Image.Quantize.FASTOCTREE) if mode == "PA" else picture(mode)
    asset = await shared.put(encoded(image), "image")
    assert (asset.width, asset.height, asset.channels) == (*pictures.SIZE, 3)
    if mode == "I;16":
        expected = np.repeat(pictures.pixels()[:, :, :1], 3, axis=2)
    elif mode in ("LA", "PA", "RGBA"):
        expected = laid_over(Image.open(io.BytesIO(encoded(image))), 255)
    else:
        expected = np.asarray(image.convert("RGB"))
    assert np.abs(np.asarray(kept(shared, asset)).astype(float) - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 4])
async def test_16_bit_channels_keep_their_high_byte(shared: Assets, channels: int) -> None:
    wide = pictures.pixels(channels=channels)
    got = np.asarray(kept(shared, await shared.put(png16(channels), "image")))
    if channels == 4:
        wide[:, :, :3] = wide[:, :, 2::-1]  # OpenCV writes BGRA
        assert np.abs(got - laid_over(Image.fromarray(wide, "RGBA"), 255)).max() <= 1
    else:
        assert np.array_equal(got, np.repeat(wide, 3, axis=2) if channels == 1 else wide[:, :, ::-1])


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("MPO", "RGB", {"save_all": True}),  # what phones write: begins as a JPEG
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
async def test_jpeg_and_webp_become_the_pixels_that_pillow_sees(
    shared: Assets, form: str, mode: str, options: dict[str, Any]
) -> None:
    data = encoded(picture(mode), form, **options)
    asset = await shared.put(data, "image")
    assert np.array_equal(np.asarray(kept(shared, asset)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


async def test_webp_with_alpha_and_pngs_with_a_transparent_colour_lie_on_white(shared: Assets) -> None:
    made = [
        encoded(picture("RGBA"), "WEBP", lossless=True, exact=True),
        encoded(picture("P"), transparency=3),
        encoded(picture("L"), transparency=int(pictures.pixels().mean())),
        encoded(picture("RGB"), transparency=tuple(map(int, pictures.pixels()[0, 0]))),
    ]
    for data in made:
        asset = await shared.put(data, "image")
        expected = laid_over(Image.open(io.BytesIO(data)), 255)
        assert np.abs(np.asarray(kept(shared, asset)) - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
async def test_a_transparent_colour_of_16_bits_lies_on_white(shared: Assets, channels: int) -> None:
    wide = pictures.pixels(channels=channels)[:, :, ::-1]  # OpenCV writes BGR
    clear = tuple(int(level) * 256 + 77 for level in wide[0, 0])
    got = np.asarray(kept(shared, await shared.put(png16(channels, clear), "image")))
    expected = np.where((wide == wide[0, 0]).all(axis=2, keepdims=True), 255, wide)
    assert np.array_equal(got, np.broadcast_to(expected, got.shape))


async def test_a_mask_is_luminance_and_what_is_transparent_is_kept(shared: Assets) -> None:
    asset = await shared.put(encoded(picture("RGB")), "mask")
    assert asset.channels == 1
    assert np.array_equal(np.asarray(kept(shared, asset)), np.asarray(picture("RGB").convert("L")))
    strokes = np.zeros((16, 24, 4), np.uint8)
    strokes[4:8] = 255  # painted white on a transparent layer
    strokes[:, :, :3] = 255
    got = np.asarray(kept(shared, await shared.put(encoded(Image.fromarray(strokes, "RGBA")), "mask")))
    assert (got[4:8] == 255).all()
    assert got.sum() == 255 * 4 * 24


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_exif_turns_the_picture_as_pillow_does(shared: Assets, orientation: int) -> None:
    for form, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(picture(), form, exif=exif(orientation), **options)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        got = kept(shared, await shared.put(data, "image"))
        assert got.size == (pictures.SIZE if orientation < 5 else pictures.SIZE[::-1])
        assert np.array_equal(np.asarray(got), np.asarray(expected))


async def test_nothing_but_pixels_is_kept(shared: Assets) -> None:
    data = encoded(picture(), "JPEG", exif=exif(1), icc_profile=b"profile" * 30, comment="secret")
    asset = await shared.put(data, "image")
    assert kept(shared, asset).info == {}
    raw = shared.path(asset.id).read_bytes()
    assert b"secret" not in raw
    assert (asset.bytes, asset.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert shared.path(asset.id).stat().st_mode & 0o777 == 0o600
    assert Assets(shared.path(asset.id).parent).find(asset.id) == asset  # as after a restart


async def test_broken_exif_is_taken_upright(shared: Assets) -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert (await shared.put(data, "image")).width == pictures.SIZE[0]


async def test_of_an_animated_picture_the_first_frame_counts(shared: Assets) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("PNG", "WEBP"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
        got = kept(shared, await shared.put(data, "image"))
        assert got.getcolors() == [(64, (255, 0, 0))]


# ---- what is refused


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (encoded(picture(), "GIF"), "it is a GIF; send a PNG, JPEG or WebP"),
        (encoded(picture(), "TIFF"), "it is a TIFF"),
        (encoded(picture(), "BMP"), "it is a BMP"),
        (encoded(picture(), "PDF"), "it is a PDF"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "it is an SVG"),
        (b"#!/bin/sh", "of no picture known here"),
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "damaged or cut short"),
        (b"\xff\xd8\xff", "damaged or cut short"),
        (b"RIFF\0\0\0\0WEBP", "damaged or cut short"),
        (pictures.png_claiming(0, 5), "PNG is damaged|no pixels"),
        (pictures.png_claiming(60000, 60000), "60000 x 60000; at most 16777216 pixels"),
        (pictures.png_claiming(2**31 - 1, 2**31 - 1), "at most 16777216 pixels"),
        (pictures.jpeg_claiming(65000, 65000), "65000 x 65000; at most"),
        (pictures.webp_claiming(16384, 16384), "16384 x 16384; at most"),
        (pictures.png_claiming(4096, 4097), "4096 x 4097; at most"),
        (pictures.png_claiming(4096, 4096), "damaged or cut short"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
async def test_what_cannot_be_taken_is_refused_by_name(shared: Assets, data: bytes, says: str) -> None:
    before, started = await shared.child.pid(), time.monotonic()
    assert re.search(says, await refusal(shared, data))
    assert time.monotonic() - started < 2
    assert await shared.child.pid() == before
    assert not list(shared.path(ID).parent.glob(".*"))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
async def test_a_cut_file_is_refused_wherever_it_is_cut(shared: Assets, form: str) -> None:
    data = encoded(picture(size=(200, 150)), form)
    for part in range(1, 10):
        message = await refusal(shared, data[: len(data) * part // 10])
        assert "cut short" in message or "no picture known" in message


async def test_a_jpeg_of_a_thousand_empty_scans_is_refused_before_it_is_decoded(shared: Assets) -> None:
    data = encoded(picture(), "JPEG", progressive=True)
    empty = bytes.fromhex("ffda 0008 01 01 00 01 3f 00".replace(" ", ""))
    message = await refusal(shared, data.removesuffix(b"\xff\xd9") + empty * 1000 + b"\xff\xd9")
    assert "at most 100 scans" in message
    assert await shared.put(data + empty * 1000, "image"), "what comes after its end is none of it"


async def test_bombs_cost_the_child_no_memory(own: Assets) -> None:
    await own.put(PNG, "image")
    pid = await own.child.pid()
    before = _status_bytes(pid, "VmHWM")
    for data in (pictures.png_claiming(60000, 60000), pictures.webp_claiming(16384, 16384)):
        await refusal(own, data)
    assert _status_bytes(pid, "VmHWM") - before < 64 << 20


async def test_a_picture_over_the_byte_cap_never_reaches_the_child(tmp_path: Path) -> None:
    assets = Assets(tmp_path, max_bytes=100)
    assert f"has {len(PNG)} bytes; at most 100" in await refusal(assets, PNG)


@HOSTILE
@given(
    data=st.binary(max_size=200),
    magic=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF1234WEBPVP8X"]),
)
async def test_random_bytes_are_a_fault_and_the_child_lives(shared: Assets, data: bytes, magic: bytes) -> None:
    before = await shared.child.pid()
    await refusal(shared, magic + data)
    assert await shared.child.pid() == before


@HOSTILE
@given(
    form=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    where=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
async def test_a_picture_with_changed_bytes_is_kept_or_refused_and_the_child_lives(
    shared: Assets, form: str, where: list[tuple[float, int]]
) -> None:
    before, data = await shared.child.pid(), bytearray(encoded(picture("RGB"), form, exif=exif(6)))
    for place, value in where:
        data[int(place * len(data))] = value
    with contextlib.suppress(InvalidRequest):
        await shared.put(bytes(data), "image")
    assert await shared.child.pid() == before


# ---- the child may die


async def test_a_child_killed_while_idle_is_replaced_unnoticed(own: Assets) -> None:
    pid = await own.child.pid()
    for _ in range(3):
        os.kill(await own.child.pid(), signal.SIGKILL)
        await own.put(PNG, "image")
    assert await own.child.pid() != pid


async def test_a_child_killed_in_the_middle_costs_no_picture(shared: Assets) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)))
    pid = await shared.child.pid()
    putting = [asyncio.create_task(shared.put(one, "image")) for one in (data, PNG)]
    await asyncio.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    assert [asset.width for asset in await asyncio.gather(*putting)] == [2000, pictures.SIZE[0]]
    assert not list(shared.path(ID).parent.glob(".*"))


async def test_a_picture_that_kills_every_child_is_refused_and_its_neighbours_are_kept(shared: Assets) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (3000, 3000, 3), dtype=np.uint8)))
    putting = asyncio.create_task(refusal(shared, data))
    neighbours = [asyncio.create_task(shared.put(PNG, "image")) for _ in range(3)]
    for _ in range(2):
        pid = await shared.child.pid()
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.05)
    assert "the decoder ended on it" in await putting
    assert len(await asyncio.gather(*neighbours)) == 3
    assert not list(shared.path(ID).parent.glob(".*"))


async def test_a_child_that_hangs_is_killed_and_the_picture_refused(own: Assets) -> None:
    pid = await own.child.pid()
    os.kill(pid, signal.SIGSTOP)
    assert "took too long to decode" in await refusal(own, PNG)
    assert await own.put(PNG, "image")
    assert await own.child.pid() != pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_picture_that_needs_too_much_memory_is_refused(own: Assets) -> None:
    await own.put(PNG, "image")
    pid = await own.child.pid()
    assert resource.prlimit(pid, resource.RLIMIT_AS) == (image_child.MEMORY_BYTES,) * 2
    resource.prlimit(pid, resource.RLIMIT_AS, (_status_bytes(pid, "VmSize") + (8 << 20),) * 2)
    message = await refusal(own, encoded(Image.new("RGB", (4000, 4000), "red")))
    assert "memory" in message or "damaged" in message or "the decoder ended" in message
    assert await own.put(PNG, "image")


async def test_a_caller_who_leaves_disturbs_nobody(shared: Assets) -> None:
    leaving = asyncio.create_task(shared.put(encoded(picture(size=(1500, 1500))), "image"))
    staying = asyncio.create_task(shared.put(PNG, "image"))
    await asyncio.sleep(0.05)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert (await staying).width == pictures.SIZE[0]


async def test_twenty_at_once_are_each_their_own(shared: Assets) -> None:
    sizes = [(10 + i, 30 - i) for i in range(20)]
    made = [shared.put(encoded(picture(size=size)), "image") for size in sizes]
    assets = await asyncio.gather(*made, refusal(shared, PNG[:60]))
    assert [(asset.width, asset.height) for asset in assets[:-1] if isinstance(asset, Asset)] == sizes
    for asset, size in zip(assets, sizes, strict=False):
        assert isinstance(asset, Asset)
        assert np.array_equal(np.asarray(kept(shared, asset)), np.asarray(picture(size=size)))


async def test_when_too_many_wait_the_next_is_told_to_come_back(shared: Assets) -> None:
    answers = await asyncio.gather(*(shared.put(PNG, "image") for _ in range(MAX_WAITING + 1)), return_exceptions=True)
    (refused,) = [answer for answer in answers if isinstance(answer, BaseException)]
    assert isinstance(refused, TryLater)
    assert refused.code == "not_ready"
    assert await shared.put(PNG, "image")


async def test_a_closed_server_leaves_no_child_and_takes_no_picture(tmp_path: Path) -> None:
    assets = Assets(tmp_path)
    pid = await assets.child.pid()
    waiting = asyncio.create_task(assets.put(encoded(picture(size=(2000, 2000))), "image"))
    await asyncio.sleep(0.05)
    await assets.close()
    for refused in (waiting, assets.put(PNG, "image")):
        with pytest.raises(TryLater, match="stopping"):
            await refused
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_the_child_has_no_secrets_and_no_way_to_more(own: Assets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEZZOTINT_WEBHOOK_SECRETS", "canary")
    os.kill(await own.child.pid(), signal.SIGKILL)
    await own.put(PNG, "image")
    process = Path(f"/proc/{await own.child.pid()}")
    assert b"canary" not in (process / "environ").read_bytes()
    assert "NoNewPrivs:\t1" in (process / "status").read_text()
    assert "Max core file size        0                    0" in (process / "limits").read_text()
    assert "torch" not in (process / "maps").read_text()
    assert not any("socket:" in os.readlink(fd) for fd in (process / "fd").iterdir() if int(fd.name) < 3)


# ---- on the disk


def test_bytes_are_synced_before_the_name_and_the_name_before_the_answer(tmp_path: Path, disk_calls: list[str]) -> None:
    answer = image_child.answer(wire.Keep(asset_id=ID, role="image"), PNG, tmp_path)
    assert isinstance(answer, wire.Kept)
    assert disk_calls == ["fsync file", "rename", "fsync folder"]


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "storage_full"), (errno.EIO, "not_ready")])
def test_a_full_disk_is_told_apart_from_a_broken_one_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    answer = image_child.answer(wire.Keep(asset_id=ID, role="image"), PNG, tmp_path)
    assert isinstance(answer, wire.Refused)
    assert answer.code == code
    assert not list(tmp_path.iterdir())


async def test_a_session_keeps_what_it_links_when_the_asset_goes(own: Assets, tmp_path: Path) -> None:
    linked, unused, young = [await own.put(PNG, "image") for _ in range(3)]
    folder = tmp_path / "sessions" / "ses_1"
    for _ in range(2):  # repeating it is harmless
        target = await own.link(linked.id, folder, "image.png")
    assert target == folder / "image.png"
    assert [file.name for file in folder.iterdir()] == ["image.png"]
    old = time.time() - UNUSED_S - 60
    for asset in (linked, unused):
        os.utime(own.path(asset.id), (old, old))
    (own.path(ID).parent / f".{ID}.tmp").write_bytes(b"cut off")
    assert own.sweep() == 2
    assert [bool(own.find(asset.id)) for asset in (linked, unused, young)] == [True, False, True]
    own.path(linked.id).unlink()
    assert hashlib.sha256(target.read_bytes()).hexdigest() == linked.sha256
    with pytest.raises(CallerError) as caught:
        await own.link(unused.id, folder, "mask.png")
    assert caught.value.code == "asset_not_found"
    for asset_id, name in ((linked.id, "../x"), (linked.id, ""), ("../x", "image.png")):
        with pytest.raises(ValueError, match="is not"):
            await own.link(asset_id, folder, name)
    assert [file.name for file in folder.iterdir()] == ["image.png"]


async def test_a_disk_that_fails_is_no_callers_fault(own: Assets, tmp_path: Path) -> None:
    asset = await own.put(PNG, "image")
    folder = own.path(asset.id).parent
    folder.rename(tmp_path / "elsewhere")
    folder.touch()  # now nothing can be opened below it
    with pytest.raises(TryLater) as caught:
        await own.put(PNG, "image")
    assert (caught.value.code, STATUS[caught.value.code]) == ("not_ready", 503)
    folder.unlink()
    (tmp_path / "elsewhere").rename(folder)
    (tmp_path / "file").touch()
    with pytest.raises(TryLater) as caught:
        await own.link(asset.id, tmp_path / "file" / "ses_1", "image.png")
    assert caught.value.code == "not_ready"


async def test_across_filesystems_a_link_is_a_copy(
    own: Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", no_link)
    asset = await own.put(PNG, "image")
    target = await own.link(asset.id, tmp_path / "ses_1", "image.png")
    assert target.read_bytes() == own.path(asset.id).read_bytes()
    assert target.stat().st_nlink == own.path(asset.id).stat().st_nlink == 1
    assert len(list(target.parent.iterdir())) == 1


async def test_a_sweep_leaves_a_picture_that_is_being_written(shared: Assets) -> None:
    data = encoded(picture(size=(1200, 1200)))
    putting = [asyncio.create_task(shared.put(data, "image")) for _ in range(4)]
    while not all(task.done() for task in putting):
        shared.sweep()
        await asyncio.sleep(0.001)
    for task in putting:
        assert shared.find(task.result().id)


async def test_a_disk_that_fails_once_does_not_end_the_sweeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets, scandir, sweeps = Assets(tmp_path), os.scandir, []

    def failing_once(path: Path) -> Any:
        sweeps.append(path)
        if len(sweeps) == 1:
            raise OSError(errno.EIO, "Input/output error")
        return scandir(path)

    monkeypatch.setattr("mezzotint.assets.SWEEP_S", 0.01)
    monkeypatch.setattr(os, "scandir", failing_once)
    await assets.start()
    async with asyncio.timeout(10):
        while len(sweeps) < 3:
            await asyncio.sleep(0.01)
    await assets.close()


# ---- control maps


@pytest.mark.parametrize("options", [{}, {"low_threshold": 10, "high_threshold": 40}])
async def test_canny_is_opencvs_on_the_same_pixels(shared: Assets, options: dict[str, Any]) -> None:
    source = await shared.put(encoded(picture(size=(120, 90)), "JPEG", exif=exif(6)), "image")
    made = await shared.preprocess(source.id, "canny", options)
    pixels = np.asarray(kept(shared, source))
    edges = cv2.Canny(pixels, *((options or {"l": 100, "h": 200}).values()))
    assert np.array_equal(np.asarray(kept(shared, made)), np.repeat(edges[:, :, None], 3, axis=2))
    assert made.id != source.id
    if options:
        assert 0 < edges.mean() < 255


async def test_the_other_preprocessors_do_what_they_say(shared: Assets) -> None:
    source = await shared.put(PNG, "image")
    assert await shared.preprocess(source.id, "none") == source
    inverted = await shared.preprocess(source.id, "invert")
    assert np.array_equal(np.asarray(kept(shared, inverted)), 255 - np.asarray(picture()))
    blurred = await shared.preprocess(source.id, "blur_gaussian", {"sigma": 2})
    assert np.array_equal(np.asarray(kept(shared, blurred)), cv2.GaussianBlur(np.asarray(picture()), (0, 0), 2))


async def test_a_preprocessor_that_cannot_run_says_why(shared: Assets) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await shared.preprocess(ID, "cany", path="controlnets[0].")
    assert caught.value.field == "controlnets[0].preprocessor"
    with pytest.raises(CallerError) as gone:
        await shared.preprocess(ID, "canny")
    assert gone.value.code == "asset_not_found"


def _status_bytes(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024
