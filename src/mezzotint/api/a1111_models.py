"""Models as AUTOMATIC1111 lists and names them, and the lists that never change. Must not show a path of the server."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from mezzotint import a1111_names
from mezzotint.catalog import Model, fitting
from mezzotint.families.table import SCHEDULER_OPTIONS

Digests = Mapping[str, str | None]

UPSCALERS = ("None", "Lanczos", "Nearest")
SCRIPTS = ["controlnet", "controlnet m2m"]


def file_name(model: Model) -> str:
    return PurePath(model.path).name


def title(model: Model, digest: str | None) -> str:
    return f"{file_name(model)} [{digest[:10]}]" if digest else file_name(model)


def usable(models: Mapping[str, Model], kind: str) -> list[Model]:
    return [one for one in models.values() if one.kind == kind and one.state == "ready"]


def find(name: str, models: Mapping[str, Model], digests: Digests) -> Model | None:
    """A checkpoint by id, title with or without hash, file name, stem, or hash of 10 or 64 digits."""
    plain = name.rpartition(" [")[0] or name
    for model in usable(models, "checkpoint"):
        digest = digests.get(model.id)
        names = {model.id, title(model, digest), file_name(model), PurePath(file_name(model)).stem}
        if digest is not None:
            names |= {digest, digest[:10]}
        if name in names or plain in names:
            return model
    return None


def checkpoints(models: Mapping[str, Model], digests: Digests) -> list[dict[str, Any]]:
    return [
        {
            "title": title(model, digests.get(model.id)),
            "model_name": model.id,
            "hash": (digests.get(model.id) or "")[:10] or None,
            "sha256": digests.get(model.id),
            "filename": file_name(model),
            "config": None,
        }
        for model in usable(models, "checkpoint")
    ]


def named_loras(name: str, models: Mapping[str, Model]) -> list[str]:
    """Ids of the LoRAs that a name means: one of that id, else all trained under it; letter case as second try."""
    there = usable(models, "lora")
    folded = name.lower()
    by_id = [one.id for one in there if one.id == name] or [one.id for one in there if one.id.lower() == folded]
    trained = {one.id: one.trained_as for one in there if one.trained_as}
    exactly = [model_id for model_id, other in trained.items() if other == name]
    return by_id[:1] or exactly or [model_id for model_id, other in trained.items() if other.lower() == folded]


def loras(models: Mapping[str, Model]) -> list[dict[str, Any]]:
    """`alias` is a name that a tag may use."""
    return [
        {
            "name": model.id,
            "alias": model.trained_as if named_loras(model.trained_as, models) == [model.id] else model.id,
            "path": file_name(model),
            "metadata": {},
        }
        for model in usable(models, "lora")
    ]


def embeddings(models: Mapping[str, Model], checkpoint: str) -> dict[str, Any]:
    """By whether they fit a checkpoint. `shape` is the channels of a vector, `vectors` how many there are."""
    told: dict[str, Any] = {"loaded": {}, "skipped": {}}
    for model in usable(models, "embedding"):
        fits = checkpoint in fitting(model, models.values())
        told["loaded" if fits else "skipped"][model.id] = {
            "step": None,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            "shape": model.text_width,
            "vectors": model.tokens,
        }
    return told


def samplers() -> list[dict[str, Any]]:
    return [{"name": one.name, "aliases": list(one.aliases), "options": {}} for one in a1111_names.SAMPLERS]


def schedulers() -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "label": one.label,
            "aliases": list(one.aliases) or None,
            "default_rho": 7.0 if one.name == "karras" else -1,
            "need_inner_model": False,
        }
        for one in a1111_names.SCHEDULES
    ]


def upscalers() -> list[dict[str, Any]]:
    empty: dict[str, Any] = {"model_name": None, "model_path": None, "model_url": None}
    return [{"name": name, **empty, "scale": 4.0} for name in UPSCALERS]


def script_info() -> list[dict[str, Any]]:
    return [
        {"name": name, "is_alwayson": name == "controlnet", "is_img2img": is_img2img, "args": []}
        for name in SCRIPTS
        for is_img2img in (False, True)
    ]


assert {one.scheduler for one in a1111_names.SAMPLERS} == set(SCHEDULER_OPTIONS)  # noqa: S101  invariant: none unnamed
