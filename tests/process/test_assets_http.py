"""Uploads to a real server, as a caller sees them."""

import hashlib
import io
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests import pictures
from tests.pictures import encoded, exif, picture
from tests.process.conftest import RunningServer

ID = "ast_01JD2V5W8QZ3T4R6Y7N9M0K1HB"
PNG = encoded(picture())
LIMIT = 200_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEZZOTINT_MAX_UPLOAD_BYTES", str(LIMIT))
        with RunningServer(tmp_path_factory.mktemp("server") / "data") as running:
            yield running


def post(server: RunningServer, path: str = "/api/assets", **options: Any) -> httpx2.Response:
    return httpx2.post(server.url + path, **options)


def as_body(data: bytes | Iterator[bytes], kind: str = "image/png") -> dict[str, Any]:
    return {"content": data, "headers": {"Content-Type": kind}}


def test_a_picture_is_uploaded_as_form_or_body_and_comes_back_normalised(server: RunningServer) -> None:
    jpeg = encoded(picture(), "JPEG", exif=exif(6))
    forms = [
        post(server, files={"file": ("../../etc/passwd.gif", jpeg, "text/html")}),
        post(server, **as_body(jpeg, "image/jpeg")),
        post(server, **as_body(jpeg, "image/webp")),  # the first bytes say what it is
    ]
    for answer in forms:
        assert answer.status_code == 201, answer.text
        body = answer.json()
        assert set(body) == {"id", "width", "height", "bytes", "sha256"}
        assert (body["width"], body["height"]) == pictures.SIZE[::-1]
        got = httpx2.get(server.url + answer.headers["location"])
        assert got.status_code == 200
        assert got.headers["content-type"] == "image/png"
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["content-disposition"] == f'attachment; filename="{body["id"]}.png"'
        assert got.headers["etag"] == f'"{hashlib.sha256(got.content).hexdigest()}"' == f'"{body["sha256"]}"'
        assert len(got.content) == body["bytes"]
        assert Image.open(io.BytesIO(got.content)).size == (body["width"], body["height"])
        again = httpx2.get(server.url + answer.headers["location"], headers={"If-None-Match": got.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_the_role_is_a_query_or_a_field_of_the_form(server: RunningServer) -> None:
    made = [
        post(server, "/api/assets?role=mask", **as_body(PNG)),
        post(server, "/api/assets?role=mask", files={"file": ("a", PNG)}),
        post(server, files={"file": ("a", PNG)}, data={"role": "mask"}),
    ]
    for answer in made:
        content = httpx2.get(server.url + answer.headers["location"]).content
        assert Image.open(io.BytesIO(content)).mode == "L"


def test_what_is_wrong_with_an_upload_is_told(server: RunningServer) -> None:
    wrong: list[tuple[httpx2.Response, int, str, str | None]] = [
        (post(server, **as_body(encoded(picture(), "GIF"))), 422, "invalid_image", None),
        (post(server, files={"file": ("a.png", PNG[:50])}), 422, "invalid_image", None),
        (post(server), 422, "invalid_image", None),
        (post(server, "/api/assets?role=face", **as_body(PNG)), 422, "invalid_value", "role"),
        (post(server, files={"file": ("a", PNG)}, data={"role": "face"}), 422, "invalid_value", "role"),
        (post(server, files={"picture": ("a", PNG)}), 422, "invalid_request", "picture"),
        (post(server, files={"role": ("a", PNG)}), 422, "invalid_request", "file"),
        (post(server, files=[("file", ("a", PNG))] * 2), 400, "invalid_request", None),
        (post(server, **as_body(b"not a form", "multipart/form-data; boundary=x")), 400, "invalid_request", None),
        (post(server, **as_body(b"{}", "application/json")), 415, "unsupported_media_type", None),
        (post(server, **as_body(PNG, "image/svg+xml")), 415, "unsupported_media_type", None),
        (post(server, **as_body(PNG, "")), 415, "unsupported_media_type", None),
        (post(server, "/api/inference/sessions", **as_body(PNG)), 415, "unsupported_media_type", None),
        (httpx2.get(f"{server.url}/api/assets/{ID}"), 404, "asset_not_found", None),
        (httpx2.get(f"{server.url}/api/assets/..%2Fmezzotint.db"), 404, "unknown_url", None),
        (httpx2.get(f"{server.url}/api/assets/mezzotint.db"), 404, "asset_not_found", None),
    ]
    for answer, status, code, field in wrong:
        body = answer.json()
        assert (answer.status_code, body["code"], body["field"]) == (status, code, field), answer.text
        assert answer.headers["content-type"] == "application/problem+json"


def test_an_upload_over_the_cap_is_refused(server: RunningServer) -> None:
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    form = "multipart/form-data; boundary=x"
    answers = [
        post(server, **as_body(bytes(LIMIT + 1))),
        post(server, files={"file": ("a", bytes(LIMIT))}),
        post(server, **as_body(_pieces(bytes(LIMIT + 1)))),
        post(server, **as_body(_pieces(start + bytes(LIMIT)), form)),
    ]
    for answer in answers:
        assert answer.status_code == 413, answer.text
        assert answer.json()["code"] == "body_too_large"
        assert str(LIMIT) in answer.json()["detail"]
    others = post(server, "/api/inference/sessions/x/cancel", **as_body(bytes(2 << 20), "application/json"))
    assert (others.status_code, str(1 << 20) in others.json()["detail"]) == (413, True)
    assert post(server, **as_body(PNG)).status_code == 201


@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=x"])
def test_the_cap_holds_while_a_body_streams_without_an_end(server: RunningServer, kind: str) -> None:
    head = f"POST /api/assets HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(LIMIT + 1)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20) as connection:
        connection.sendall(head.encode() + b"%x\r\n%b\r\n" % (len(part), part))  # and no last chunk
        assert connection.recv(12) == b"HTTP/1.1 413"


def _pieces(data: bytes) -> Iterator[bytes]:
    """Sent in chunks, without a Content-Length."""
    for at in range(0, len(data), 1 << 14):
        yield data[at : at + (1 << 14)]
