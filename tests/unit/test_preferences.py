"""Settings of single models: checked against the model, kept across restarts, laid over its facts."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mezzotint.catalog import BUNDLED, BUNDLED_MODEL, Catalog
from mezzotint.errors import InvalidRequest, SetupError, TryLater
from mezzotint.preferences import Preferences, check


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    found = Catalog([], tmp_path_factory.mktemp("cache"))
    found.scan()
    return found


@pytest.mark.parametrize(
    "body",
    [
        {"width": 63}, {"width": True}, {"width": 8}, {"height": "64"}, {"num_inference_steps": 0},
        {"guidance_scale": 51}, {"guidance_scale": float("nan")}, {"scheduler": "fast"}, {"dtype": "float8"},
        {"vae": "none"}, {"width": 4096, "height": 4096}, {"widht": 64}, {"width": 64, "Width": 64}, [],
        {"scheduler": "lcm", "num_inference_steps": 51}, {"scheduler": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_no_request_could_have_is_refused(catalog: Catalog, body: Any) -> None:
    with pytest.raises(InvalidRequest):
        check(body, catalog.models[BUNDLED_MODEL], {}, catalog.models.values(), 1 << 22)


def test_a_setting_is_not_taken_back_where_the_others_do_not_go_with_the_models_own(catalog: Catalog) -> None:
    own = replace(catalog.models[BUNDLED_MODEL], num_inference_steps=60)
    before = {"scheduler": "lcm", "num_inference_steps": 8}
    with pytest.raises(InvalidRequest, match="lcm"):
        check({"num_inference_steps": None}, own, before, [own], 1 << 22)
    both = dict.fromkeys(before)
    assert check(both, own, before, [own], 1 << 22) == both


def test_a_setting_that_is_none_names_those_there_are(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check({"colour": 1, "width": 64, "Width": 64}, catalog.models[BUNDLED_MODEL], {}, [], 1 << 22)
    assert [fault.message for fault in caught.value.faults] == [
        "'colour' is not a setting of models; settings: width, height, num_inference_steps, guidance_scale, scheduler, "
        "dtype, vae",
        "width is given twice, in two spellings; send one",
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"icons": 1}', '{"icons": {"widht": 64}}'])
def test_a_file_that_is_not_ours_is_named_and_can_be_mended(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_settings.json").write_text(text)
    with pytest.raises(SetupError, match=r"model_settings\.json .*mend or remove it"):
        Preferences(tmp_path / "model_settings.json")


def test_settings_of_a_model_are_read_in_any_spelling(catalog: Catalog) -> None:
    model = catalog.models[BUNDLED_MODEL]
    found = check({"NumInferenceSteps": 5, "guidanceScale": 3}, model, {}, [model], 1 << 22)
    assert found == {"num_inference_steps": 5, "guidance_scale": 3}


def test_settings_of_a_model_outlive_a_restart_and_null_takes_them_back(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    catalog = Catalog([], tmp_path / "cache", Preferences(file))
    catalog.scan()
    own = catalog.models[BUNDLED_MODEL].num_inference_steps
    catalog.prefer(BUNDLED_MODEL, {"num_inference_steps": own + 1})
    again = Catalog([], tmp_path / "cache", Preferences(file))
    again.scan()
    assert again.models[BUNDLED_MODEL].num_inference_steps == own + 1
    again.prefer(BUNDLED_MODEL, {"num_inference_steps": None})
    assert again.models[BUNDLED_MODEL].num_inference_steps == own
    assert Preferences(file).of(BUNDLED_MODEL) == {}


def test_a_setting_that_the_disk_does_not_take_is_not_in_force(tmp_path: Path) -> None:
    kept = Preferences(tmp_path / "gone" / "settings.json")
    with pytest.raises(TryLater, match="settings of models"):
        kept.set("tiny", {"width": 64})
    assert kept.of("tiny") == {}
    (tmp_path / "gone").mkdir()
    kept.set("tiny", {"width": 64})
    assert kept.of("tiny") == {"width": 64}


def test_settings_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    kept = Preferences(file)
    names = [f"model-{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda name: kept.set(name, {"width": 64}), names))
    assert [Preferences(file).of(name) for name in names] == [{"width": 64}] * 40


def test_verifying_finds_a_byte_that_changed_behind_the_clock(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLED / BUNDLED_MODEL, tmp_path / "models" / "copy"))
    catalog = Catalog([tmp_path / "models"], tmp_path / "cache")
    catalog.scan()
    model = catalog.models["copy"]
    catalog.digest(model)
    assert all(one.ok and one.before for one in catalog.verify(model))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    stat = weights.stat()
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        byte = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert [one.file for one in catalog.verify(model) if not one.ok] == ["vae/diffusion_pytorch_model.safetensors"]


def test_a_set_size_that_a_model_cannot_draw_is_kept_and_not_applied(tmp_path: Path) -> None:
    catalog = Catalog([], tmp_path / "cache")
    catalog.scan()
    own = catalog.models[BUNDLED_MODEL]
    set_before = {"width": own.width + own.size_multiple // 2, "height": own.height + own.size_multiple}
    catalog.prefer(BUNDLED_MODEL, set_before)  # as for another model that had its id
    now = catalog.models[BUNDLED_MODEL]
    assert (now.width, now.height) == (own.width, set_before["height"])
    assert catalog.preferred(BUNDLED_MODEL) == set_before


@pytest.mark.parametrize(
    ("set_before", "told"),
    [
        ({"num_inference_steps": 60}, {"scheduler": "lcm", "num_inference_steps": 8}),
        ({"scheduler": "lcm"}, {"num_inference_steps": 80}),
    ],
    ids=str,
)
def test_set_steps_that_a_models_scheduler_cannot_do_are_kept_and_not_applied(
    tmp_path: Path, random_sd: Path, set_before: dict[str, Any], told: dict[str, Any]
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(random_sd, folder)
    catalog = Catalog([folder], tmp_path / "cache")
    catalog.scan()
    catalog.prefer("tiny", set_before)
    (folder / "tiny" / "mezzotint.json").write_text(json.dumps({"defaults": told}))  # as of another one in its place
    catalog.scan()
    own, now = catalog.own["tiny"], catalog.models["tiny"]
    assert (now.scheduler, now.num_inference_steps) == (own.scheduler, own.num_inference_steps)
    assert catalog.preferred("tiny") == set_before
