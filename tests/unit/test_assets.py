import base64
import contextlib
import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from mezzotint import image_child, preprocessors
from mezzotint.assets import Assets, new_id
from mezzotint.errors import InvalidRequest
from tests.pictures import encoded, picture

ID = "ast_01JD2V5W8QZ3T4R6Y7N9M0K1HB"
PNG = encoded(picture())
JPEG = encoded(picture(), "JPEG")


@pytest.fixture
def assets(tmp_path: Path) -> Assets:
    return Assets(tmp_path, max_bytes=4096)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("data", [PNG, JPEG], ids=["png", "jpeg"])
def test_base64_and_data_urls_become_bytes(assets: Assets, data: bytes) -> None:
    assert assets.read_source(text(data)) == data
    assert assets.read_source("\n".join(["", text(data)[:60], text(data)[60:], ""])) == data
    for header in ("data:image/png;base64,", "data:;base64,", "DATA:image/webp;name=a.webp;base64,"):
        assert assets.read_source(header + text(data)) == data


def test_the_id_of_an_asset_cannot_be_told_from_that_of_another() -> None:
    ids = sorted(int(ULID.from_str(new_id().removeprefix("ast_"))) for _ in range(1000))
    assert min(after - before for before, after in pairwise(ids)) > 1 << 32


def test_an_asset_is_named_by_its_id(assets: Assets) -> None:
    assert assets.read_source(f"asset:{ID}") == ID


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("https://example.com/a.png", "URLs are not fetched; upload the picture to /api/assets"),
        ("HTTP://169.254.169.254/", "URLs are not fetched"),
        ("file:///etc/passwd", "URLs are not fetched"),
        ("/etc/passwd", "looks like a file path"),
        ("/etc/ssl/private", "looks like a file path"),
        ("../../cat.png", "looks like a file path"),
        ("~/cat", "looks like a file path"),
        ("C:\\cat", "looks like a file path"),
        ("asset:../../etc/passwd", "is not asset:ast_"),
        (f"asset:{ID}/../x", "is not asset:ast_"),
        (f"asset:{ID}\n", None),  # white space around is nobody's fault
        ("asset:", "is not asset:ast_"),
        ("data:image/png,raw", "a data URL must be"),
        ("data:image/png;base64," + "!" * 8, "not base64"),
        ("", "empty"),
        ("data:image/png;base64,", "empty"),
        ("abcde", "not base64"),
        ("дом", "not base64"),
        ("\0\0\0\0", "not base64"),
        ("A" * 8192, "over 4096 bytes"),
    ],
)
def test_what_is_not_a_picture_value_is_refused_with_the_way_out(assets: Assets, value: str, says: str | None) -> None:
    if says is None:
        assets.read_source(value)
        return
    with pytest.raises(InvalidRequest, match=says.replace("(", r"\(")) as caught:
        assets.read_source(value, "controlnets[0].image")
    (fault,) = caught.value.faults
    assert (fault.code, fault.field) == ("invalid_image", "controlnets[0].image")


@given(st.text())
def test_no_text_does_anything_but_give_bytes_an_id_or_a_fault(value: str) -> None:
    with contextlib.suppress(InvalidRequest):
        assert Assets(Path("/nonexistent")).read_source(value)


def test_the_cap_holds_before_decoding_and_a_picture_of_just_that_size_passes(assets: Assets) -> None:
    assert assets.read_source(text(bytes(4096))) == bytes(4096)
    with pytest.raises(InvalidRequest, match="over 4096 bytes"):
        assets.read_source(text(bytes(4099)))


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_facts_of_an_asset_are_read_from_its_header(assets: Assets, tmp_path: Path, mode: str, channels: int) -> None:
    data = encoded(picture(mode, (30, 20)))
    (tmp_path / f"{ID}.png").write_bytes(data)
    found = assets.find(ID)
    assert found is not None
    assert (found.id, found.width, found.height, found.channels, found.bytes) == (ID, 30, 20, channels, len(data))
    (tmp_path / f"{ID}.png").unlink()
    assert assets.find(ID) is None  # what it remembers of it does not bring it back


@pytest.mark.parametrize(
    "data", [b"", PNG[:25], JPEG, encoded(picture("RGBA")), encoded(picture("P"))], ids=lambda data: str(len(data))
)
def test_a_file_that_the_image_child_did_not_write_is_no_asset(assets: Assets, tmp_path: Path, data: bytes) -> None:
    (tmp_path / f"{ID}.png").write_bytes(data)
    assert assets.find(ID) is None


def test_a_link_is_not_followed(assets: Assets, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(PNG)
    (tmp_path / f"{ID}.png").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        assets.find(ID)


@pytest.mark.parametrize(
    "bad", ["", "ast_", ID.lower(), ID + "\n", ID + "0", f"../{ID}", "ast_" + "8" * 26, "ses" + ID[3:]]
)
def test_what_is_not_an_id_never_becomes_a_path(assets: Assets, bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", None)
    assert assets.find(bad) is None
    with pytest.raises(ValueError, match="not an asset id"):
        assets.path(bad)


def test_every_preprocessor_has_its_function_and_fitting_defaults() -> None:
    assert set(preprocessors.PREPROCESSORS) == {"none", *image_child.PREPROCESSORS}
    for name, known in preprocessors.PREPROCESSORS.items():
        defaults = preprocessors.complete(name, {})
        assert set(defaults) == set(known.options) - {"resolution"}  # as the picture is
        assert preprocessors.faults(name, defaults) == []


def test_options_given_win_over_defaults() -> None:
    assert preprocessors.complete("canny", {"low_threshold": 7}) == {"low_threshold": 7, "high_threshold": 200}


@pytest.mark.parametrize(
    "bad",
    [-1, 256, 1.5, True, None, "100", math.nan, math.inf, 10**5000],
    ids=lambda bad: str(bad)[:9] if not isinstance(bad, int) else "",
)
def test_a_threshold_that_cannot_be_is_a_fault(bad: Any) -> None:
    (fault,) = preprocessors.faults("canny", {"low_threshold": bad}, "controlnets[1].")
    assert (fault.code, fault.field) == ("invalid_value", "controlnets[1].options.low_threshold")
    assert "a whole number from 0 to 255" in fault.message


def test_all_faults_of_a_preprocessor_are_told_at_once() -> None:
    found = preprocessors.faults("blur_gaussian", {"sigma": math.nan, "sigme": 1})
    assert [(fault.code, fault.field) for fault in found] == [
        ("invalid_value", "options.sigma"),
        ("unknown_field", "options.sigme"),
    ]
    (fault,) = preprocessors.faults("depth", {"a": 1})
    assert "none, canny, invert, blur_gaussian" in fault.message
