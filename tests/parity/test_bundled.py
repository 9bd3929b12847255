"""The model that ships, against diffusers' pipeline over the same folder."""

from pathlib import Path

import pytest

from mezzotint.catalog import BUNDLED, BUNDLED_MODEL
from mezzotint.families.base import Prompt
from tests.parity.rig import Rig, assert_equal
from tests.requests import request


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig(Path(BUNDLED) / BUNDLED_MODEL)


def test_its_pictures_equal_the_pipelines(rig: Rig) -> None:
    texts = [("a slice of pizza", ""), ("a red apple, noto style", "fluent style")]
    asked = [
        request(prompt=prompt, negative_prompt=negative, seed=seed, width=128, height=128, num_inference_steps=4)
        for seed, (prompt, negative) in enumerate(texts)
    ]
    for one, drawn in zip(asked, rig.draw(asked), strict=True):
        assert_equal(drawn[0], rig.oracle(one))


def test_a_prompt_takes_the_windows_that_its_words_fill(rig: Rig) -> None:
    for words, windows in ((0, 1), (30, 1), (31, 2), (240, 8)):
        assert rig.family.windows(Prompt(text="apple " * words, syntax="plain", clip_skip=None)) == windows
