"""A model in one file of the original layout draws what its diffusers folder draws, diffusers being the oracle."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from mezzotint.catalog import Catalog, Model
from mezzotint.families.sd import StableDiffusion
from mezzotint.families.sdxl import StableDiffusionXL
from mezzotint.request import ControlNetUse
from tests import single_files
from tests.parity.rig import Asked, Rig, assert_equal, difference
from tests.pictures import encoded, picture
from tests.requests import request

STYLES: dict[str, dict[str, Any]] = {
    "sd1": {},
    "sd2": {"prediction_type": "v_prediction"},
    "sdxl": {},
}


def scan(root: Path) -> dict[str, Model]:
    catalog = Catalog([root], root.parent / "cache")
    catalog.scan()
    return dict(catalog.models)


def single_rig(folder: Path, file: Path) -> Rig:
    """The oracle runs the folder, we run the file."""
    rig = Rig(folder)
    family = StableDiffusionXL if rig.is_xl else StableDiffusion
    rig.family = family(file, torch.device("cpu"), torch.float32)
    rig.family.pack()
    return rig


@pytest.mark.parametrize("style", list(STYLES))
def test_a_single_file_draws_what_its_folder_draws(tmp_path: Path, style: str) -> None:
    folder = single_files.build_folder(tmp_path / "folder", style, **STYLES[style])
    root = tmp_path / "models"
    root.mkdir()
    file = single_files.write_single(root / "one.safetensors", folder, style)
    model = scan(root)["one"]
    assert (model.state, model.reason) == ("ready", None)
    assert model.prediction_type == STYLES[style].get("prediction_type", "epsilon")
    rig = single_rig(folder, file)
    asked = request(prompt="A Photograph, of 3 naïve cats!", negative_prompt="fog", scheduler="ddim")
    expected = rig.oracle(asked)
    assert_equal(rig.draw([asked])[0][0], expected)
    assert difference(rig.oracle(request(scheduler="ddim", seed=8)), expected) > 5, "any picture would pass"


def test_a_controlnet_in_one_file_guides_as_its_folder_does(tmp_path: Path) -> None:
    folder = single_files.build_folder(tmp_path / "folder", "sd1", factor=8)  # what its reader of pictures goes down by
    net = single_files.build_controlnet(tmp_path / "net", folder)
    root = tmp_path / "models"
    root.mkdir()
    single_files.write_single(root / "one.safetensors", folder, "sd1")
    file = single_files.write_single_controlnet(root / "one-canny.safetensors", net)
    found = scan(root)["one-canny"]
    assert (found.kind, found.state, found.control_type) == ("controlnet", "ready", "canny")
    assert found.shape == scan(root)["one"].shape
    image = tmp_path / "image.png"
    image.write_bytes(encoded(picture(size=(64, 64))))
    use = ControlNetUse(
        model="one-canny", image="asset:x", preprocessor="none", options={}, scale=1.0, start=0.0, end=1.0,
        resize_mode="stretch", control_mode="balanced",
    )  # fmt: skip
    what = request(controlnets=(use,), scheduler="ddim", width=64, height=64)
    files = {"controlnets[0].image": image}
    rig = Rig(folder)
    drawn = rig.draw([Asked(request=what, files=files, nets=(file,))])[0][0]
    assert_equal(drawn, rig.oracle(Asked(request=what, files=files, nets=(net,))))


def test_another_autoencoder_decodes_as_it_does_in_diffusers(tmp_path: Path) -> None:
    folder = single_files.build_folder(tmp_path / "models" / "one", "sd1")
    vae = single_files.build_vae(seed=9, scaling_factor=0.18215)
    file = tmp_path / "models" / "clear.safetensors"
    save_file(single_files.vae_names(vae.state_dict()), file)
    (folder / "mezzotint.json").write_text('{"defaults": {"vae": "clear"}}')
    found = scan(tmp_path / "models")
    assert (found["clear"].kind, found["clear"].state, found["one"].vae_path) == ("vae", "ready", str(file))
    rig = Rig(folder)
    asked = request(scheduler="ddim")
    own = rig.oracle(asked)
    rig.family = StableDiffusion(folder, torch.device("cpu"), torch.float32, Path(found["one"].vae_path))
    rig.pipeline.vae = diffusers.AutoencoderKL.from_config(vae.config)
    rig.pipeline.vae.load_state_dict(vae.state_dict())
    assert_equal(rig.draw([asked])[0][0], rig.oracle(asked))
    assert difference(own, rig.oracle(asked)) > 5, "the other autoencoder changes nothing"


def test_an_inpainting_file_and_what_metadata_say_are_told_by_the_header(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    folder = single_files.build_folder(tmp_path / "folder", "sd2", inpaints=True)
    single_files.write_single(root / "painter.safetensors", folder, "sd2")
    plain = single_files.build_folder(tmp_path / "plain", "sd2")
    said = {"modelspec.prediction_type": "epsilon", "modelspec.resolution": "512x512"}
    single_files.write_single(root / "base.safetensors", plain, "sd2", metadata=said)
    velocity = single_files.build_folder(tmp_path / "xl", "sdxl")
    single_files.write_single(root / "v.safetensors", velocity, "sdxl", v_pred=torch.zeros(1))
    single_files.write_single(root / "told.safetensors", velocity, "sdxl")
    (root / "told.json").write_text('{"prediction_type": "v_prediction", "defaults": {"width": 512}}')
    found = scan(root)
    assert found["painter"].types == ("inpainting",)
    assert (found["base"].prediction_type, found["base"].width) == ("epsilon", 128)
    assert found["v"].prediction_type == "v_prediction"
    assert (found["told"].prediction_type, found["told"].width, found["told"].family) == ("v_prediction", 512, "sdxl")


def test_a_file_whose_unet_takes_the_guidance_is_refused_rather_than_drawn_without(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    folder = single_files.build_folder(tmp_path / "folder", "sd1")
    more = {"model.diffusion_model.time_embed.cond_proj.weight": torch.zeros(32, 256)}
    single_files.write_single(root / "lcm.safetensors", folder, "sd1", metadata=None, **more)
    assert "guidance as an input" in str(scan(root)["lcm"].reason)
