"""The unmodified openai client for Python against a real server."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from tests.pictures import encoded, picture
from tests.process.conftest import RunningServer

QUICK: dict[str, Any] = {"num_inference_steps": 2, "seed": 7}
SIZE = (128, 128)


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def opened(b64_json: str | None) -> Image.Image:
    assert b64_json is not None
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def pixels(b64_json: str | None) -> "np.ndarray[Any, Any]":
    return np.asarray(opened(b64_json).convert("RGB")).astype(int)


def test_models_are_the_checkpoints_that_can_be_used(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("icons", "model", "mezzotint")
    assert model.created > 1_500_000_000
    assert client.models.retrieve("icons") == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("dall-e-3")
    assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")
    assert (caught.value.request_id or "").startswith("req_")


def test_a_generation_is_the_picture_of_a_native_session(client: openai.OpenAI, server: RunningServer) -> None:
    answer = client.images.generate(prompt="a red apple", model="icons", n=2, size="128x128", extra_body=QUICK)
    assert answer.data is not None
    assert [datum.model_extra for datum in answer.data] == [
        {"seed": 7, "width": 128, "height": 128},
        {"seed": 8, "width": 128, "height": 128},
    ]
    assert (answer.size, answer.quality, answer.output_format, answer.background) == (
        "128x128",
        "medium",
        "png",
        "opaque",
    )
    assert answer.usage is None
    assert answer.model_extra is not None
    session = server.client.session(answer.model_extra["id"])
    native = server.client.wait(server.client.submit(prompt="a red apple", num_images=2, **QUICK)["id"])
    assert [one["sha256"] for one in session["images"]] == [one["sha256"] for one in native["images"]]
    for datum, image in zip(answer.data, session["images"], strict=True):
        assert len(base64.b64decode(datum.b64_json or "")) == image["bytes"]


def test_quality_sets_the_steps_and_the_format_is_the_one_asked_for(
    client: openai.OpenAI, server: RunningServer
) -> None:
    answer = client.images.generate(
        prompt="x", quality="low", output_format="webp", output_compression=50, user="u-1", extra_body={"seed": 1}
    )
    assert answer.data is not None
    assert opened(answer.data[0].b64_json).format == "WEBP"
    assert answer.model_extra is not None
    request = server.client.session(answer.model_extra["id"])["request"]
    own = next(one for one in server.client.models() if one["id"] == "icons")["defaults"]["num_inference_steps"]
    assert request["num_inference_steps"] == own // 2
    assert request["output"] == {"format": "webp", "quality": 50, "embed_metadata": True}
    assert (answer.quality, answer.to_dict()["safety_identifier"]) == ("low", "u-1")


def test_a_url_opens_without_a_header_and_only_as_it_was_given(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="x", response_format="url", extra_body=QUICK)
    assert answer.data is not None
    (datum,) = answer.data
    assert datum.b64_json is None
    assert datum.url is not None
    got = httpx2.get(datum.url)
    assert (got.status_code, got.headers["content-type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(got.content)).size == SIZE
    url = httpx2.URL(datum.url)
    for wrong in (datum.url.replace("/0?", "/1?"), str(url.copy_set_param("until", int(url.params["until"]) + 1))):
        assert httpx2.get(wrong).status_code == 404


def masked(hole: tuple[int, int, int, int]) -> tuple[bytes, bytes, "np.ndarray[Any, Any]"]:
    """A picture, OpenAI's mask of it, and where it may change."""
    image = picture(size=SIZE)
    where = np.zeros(SIZE[::-1], bool)
    left, top, right, bottom = hole
    where[top:bottom, left:right] = True
    alpha = np.where(where, 0, 255).astype(np.uint8)
    alpha[0, 0] = 128  # half transparent is kept
    mask = Image.new("RGBA", SIZE, (0, 0, 0, 255))
    mask.putalpha(Image.fromarray(alpha))
    return encoded(image), encoded(mask), where


def test_a_mask_repaints_what_is_transparent_in_it_and_nothing_else(client: openai.OpenAI) -> None:
    image, mask, where = masked((16, 16, 48, 40))
    answer = client.images.edit(
        image=("a.png", image), mask=("mask.png", mask), prompt="a red apple", extra_body={"seed": 3, "steps": 3}
    )
    assert answer.data is not None
    before = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int)
    changed = np.abs(pixels(answer.data[0].b64_json) - before).max(axis=2)
    assert changed[~where].max() == 0
    assert changed[where].mean() > 10


def test_edits_take_one_picture_under_any_name_and_nested_fields(client: openai.OpenAI, server: RunningServer) -> None:
    image = encoded(picture(size=SIZE))
    extra: dict[str, Any] = QUICK | {"metadata": {"a": "b"}, "scheduler_options": {"timestep_spacing": "trailing"}}
    one = client.images.edit(image=image, prompt="x", input_fidelity="high", extra_body=extra)
    listed = client.images.edit(image=[image], prompt="x", extra_body=QUICK | {"strength": 0.5})
    assert one.data is not None
    assert listed.data is not None
    assert one.model_extra is not None
    session = server.client.session(one.model_extra["id"])
    assert (session["metadata"], session["request"]["strength"]) == ({"a": "b"}, 0.5)
    assert session["request"]["scheduler_options"] == {"timestep_spacing": "trailing"}
    assert pixels(one.data[0].b64_json).shape == pixels(listed.data[0].b64_json).shape == (128, 128, 3)
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=[image, image], prompt="x")
    assert caught.value.param == "image"


def test_a_stream_brings_each_picture_as_it_is_done(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="x", n=2, stream=True, extra_body=QUICK))
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    answer = client.images.generate(prompt="x", n=2, extra_body=QUICK)
    assert answer.data is not None
    assert [event.b64_json for event in events] == [datum.b64_json for datum in answer.data]
    edited = list(client.images.edit(image=encoded(picture(size=SIZE)), prompt="x", stream=True, extra_body=QUICK))
    assert [event.type for event in edited] == ["image_edit.completed"]


def test_a_stream_shows_the_picture_on_its_way(client: openai.OpenAI) -> None:
    extra = {"num_inference_steps": 12, "seed": 7}
    events = list(
        client.images.generate(
            prompt="a slice of pizza",
            n=2,
            output_format="webp",
            size="128x128",
            stream=True,
            partial_images=3,
            extra_body=extra,
        )
    )
    partial, done = events[:3], events[3:]
    assert [one.type for one in partial] == ["image_generation.partial_image"] * 3
    assert [one.to_dict()["partial_image_index"] for one in partial] == [0, 1, 2]
    assert [one.type for one in done] == ["image_generation.completed"] * 2
    assert {(one.output_format, one.size) for one in events} == {("webp", "128x128")}
    shown = [pixels(one.b64_json) for one in events]
    assert {picture.shape for picture in shown} == {(128, 128, 3)}
    assert len({picture.tobytes() for picture in shown}) == 5
    far = [np.abs(picture - shown[3]).mean() for picture in shown[:3]]
    assert far == sorted(far, reverse=True), "nearer to the picture each time"


def test_a_session_that_cannot_end_well_raises_in_the_stream(client: openai.OpenAI) -> None:
    extra = {"num_inference_steps": 1000, "timeout_s": 0.2}
    with pytest.raises(openai.APIError) as caught:
        list(client.images.generate(prompt="x", stream=True, extra_body=extra))
    assert caught.value.code == "timeout"
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.images.generate(prompt="x", extra_body=extra)
    assert (refused.value.code, refused.value.response.headers["x-should-retry"]) == ("timeout", "false")
    assert refused.value.response.headers["x-session-id"].startswith("ses_")


@pytest.mark.parametrize(
    ("sent", "code", "param"),
    [
        ({"size": "501x64"}, "invalid_value", "size"),
        ({"size": "big"}, "invalid_value", "size"),
        ({"n": 11}, "invalid_value", "n"),
        ({"quality": "best"}, "invalid_value", "quality"),
        ({"output_format": "gif"}, "invalid_value", "output_format"),
        ({"background": "transparent"}, "unsupported_parameter", "background"),
        ({"extra_body": {"svg": {"model": "x"}}}, "unsupported_parameter", "svg"),
        ({"extra_body": {"guidance_scale": 99}}, "invalid_value", "guidance_scale"),
        ({"stream": True, "partial_images": 4}, "invalid_value", "partial_images"),
    ],
)
def test_a_wrong_value_is_a_400_that_names_it(
    client: openai.OpenAI, sent: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="x", **sent)
    assert (caught.value.code, caught.value.param, caught.value.type) == (code, param, "invalid_request_error")


def test_names_that_are_not_here_are_404(client: openai.OpenAI) -> None:
    for sent, code in [({"model": "dall-e-3"}, "model_not_found"), ({"loras": [{"name": "x"}]}, "lora_not_found")]:
        with pytest.raises(openai.NotFoundError) as caught:
            client.images.generate(prompt="x", extra_body=sent)
        assert caught.value.code == code
    with pytest.warns(DeprecationWarning, match="deprecated"), pytest.raises(openai.NotFoundError):
        client.images.create_variation(image=encoded(picture(size=SIZE)))


def test_pictures_that_cannot_be_read_or_do_not_fit_are_400(client: openai.OpenAI) -> None:
    image, opaque = encoded(picture(size=SIZE)), encoded(picture(size=SIZE))
    small = encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    for sent in ({"image": b"no picture"}, {"image": image, "mask": opaque}, {"image": image, "mask": small}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.edit(prompt="x", **sent)  # type: ignore[call-overload]
        assert caught.value.code == "invalid_image"


def test_an_unknown_field_is_named_and_changes_nothing(client: openai.OpenAI) -> None:
    raw = client.images.with_raw_response.generate(prompt="x", extra_body=QUICK | {"frobnicate": 1})
    assert raw.headers["x-mezzotint-ignored"] == "frobnicate"
    answer = raw.parse()
    assert answer.model_extra is not None
    assert [warning["field"] for warning in answer.model_extra["warnings"]] == ["frobnicate"]


def test_of_very_many_unknown_fields_some_are_named_and_the_rest_counted(client: openai.OpenAI) -> None:
    unknown = {f"frobnicate{i}": 1 for i in range(5000)}
    raw = client.images.with_raw_response.generate(prompt="x", extra_body=QUICK | unknown)
    assert raw.headers["x-mezzotint-ignored"].count("frobnicate") == 50
    assert "None" not in raw.headers["x-mezzotint-ignored"]
    extra = raw.parse().model_extra
    assert extra is not None
    assert [warning["field"] for warning in extra["warnings"]] == [*list(unknown)[:50], None]
    assert extra["warnings"][-1]["message"].startswith("4950 more")


def test_a_key_sent_twice_is_one_session(client: openai.OpenAI) -> None:
    headers = {"Idempotency-Key": "openai-1"}
    image = encoded(picture(size=SIZE))
    sent: dict[str, Any] = {"image": image, "prompt": "x", "extra_headers": headers}
    first = client.images.with_raw_response.edit(**sent, extra_body=QUICK)
    again = client.images.with_raw_response.edit(**sent, extra_body=QUICK)
    assert first.headers["x-session-id"] == again.headers["x-session-id"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.images.edit(**sent | {"image": encoded(picture("L", SIZE))}, extra_body=QUICK)
    assert caught.value.code == "idempotency_mismatch"


def test_forms_that_cannot_be_read_say_how(server: RunningServer) -> None:
    files: dict[str, Any] = {"image": ("blob", encoded(picture(size=SIZE)))}
    cases = {"loras": "[object Object]", "loras[][name]": "a", "strength": "much"}
    for name, value in cases.items():
        data: dict[str, Any] = {"prompt": "x", name: value}
        if name == "loras[][name]":
            data["loras[][scale]"] = ["1", "2"]
        answer = httpx2.post(f"{server.url}/v1/images/edits", data=data, files=files)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name.partition("[")[0])
    data = {"prompt": "x", "num_inference_steps": "2", "loras": json.dumps([{"name": "none such"}])}
    answer = httpx2.post(f"{server.url}/v1/images/edits", data=data, files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "lora_not_found")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cancels", [True, False])
def test_a_caller_who_leaves_cancels_if_that_was_asked(server: RunningServer, stream: bool, cancels: bool) -> None:
    body = {"prompt": "x", "stream": stream, "num_inference_steps": 1000, "cancel_on_disconnect": cancels}
    before = {one["id"] for one in server.client.sessions()}
    with (
        pytest.raises(httpx2.ReadTimeout),
        httpx2.stream("POST", f"{server.url}/v1/images/generations", json=body, timeout=1) as answer,
    ):
        answer.read()
    (left,) = [one["id"] for one in server.client.sessions() if one["id"] not in before]
    if cancels:
        assert server.client.wait(left)["state"] == "cancelled"
    else:
        assert server.client.cancel(left)["state"] == "running"
        server.client.wait(left)
