"""Writes the trained parts as the folder that the server ships: fp16 safetensors in diffusers' layout. Trains nothing.

Run `python -m training.package`. The folder appears whole or not at all.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer

from training import data, text, unet, vae, words
from training.pipeline import GUIDANCE, STEPS, TARGET, assemble

LARGEST_BYTES = 60_000_000
CARD = ("README.md", "LICENSE", "NOTICE")  # kept in training/card/


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    training = unet.restored(seed=0)
    taught = words.folder(training.step)
    encoder = taught if taught.exists() else text.folder() / "text_encoder"
    pipeline = assemble(
        vae=AutoencoderKL.from_pretrained(vae.folder(), torch_dtype=torch.float32),
        encoder=CLIPTextModel.from_pretrained(encoder, dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(text.folder() / "tokenizer"),
        unet=training.averaged(),
    )
    fresh = data.work_folder() / "icons.new"
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(fresh, safe_serialization=True)
    defaults = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    (fresh / "mezzotint.json").write_text(json.dumps({"defaults": defaults}, indent=2) + "\n", encoding="utf-8")
    for name in CARD:
        shutil.copy(data.HERE / "card" / name, fresh / name)
    size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
    assert size <= LARGEST_BYTES, f"{size} bytes are more than {LARGEST_BYTES}"
    drop_names(fresh)
    replace_folder(fresh, arguments.target)
    print(f"{arguments.target.name}: {size / 1e6:.1f} MB, after {training.step} steps")


def drop_names(folder: Path) -> None:
    """Take the path of this machine out of the configurations, and let everybody read the weights."""
    for path in folder.rglob("config.json"):
        kept = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k != "_name_or_path"}
        path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def replace_folder(fresh: Path, target: Path) -> None:
    """Put `fresh` where `target` is. Both must lie on one file system."""
    old = fresh.with_name("icons.old")
    shutil.rmtree(old, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    main()
