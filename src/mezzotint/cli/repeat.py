"""A picture file as the fields of the request that drew it, with a model that is here. Must not draw."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import typer

from mezzotint import recipes
from mezzotint.cli import ask
from mezzotint.errors import CallerError


def fields_of(file: Path, given: Collection[str], server: str | None, models: list[Path]) -> dict[str, Any]:
    """What its text says; what it cannot say goes to the error output.

    `given`: fields that flags say. Raises CallerError `invalid_image` for a file that says nothing, `missing_field`
    when pictures went into it that neither it nor a flag has, or no prompt of it can be read.
    """
    try:
        recipe = recipes.of_picture(file.read_bytes())
    except OSError as error:
        message = f"--from {file} cannot be read: {error.strerror}"
        raise CallerError(message, code="invalid_image", field="from") from None
    if recipe is None:
        message = f"--from {file} does not say how it was made; give a prompt instead"
        raise CallerError(message, code="invalid_image", field="from")
    for name in recipe.needs:
        if name not in given:
            message = f"--from {file} was made with a picture that it does not hold; give it with --{name}"
            raise CallerError(message, code="missing_field", field=name)
    if "prompt" not in recipe.body and "prompt" not in given:
        message = f"--from {file} does not say its prompt in a way that can be read; give one"
        raise CallerError(message, code="missing_field", field="prompt")
    recipe = recipes.with_models(recipe, _checkpoints(server, models))
    for warning in recipe.warnings:
        typer.echo(f"mezzotint: {file}: {warning}", err=True)
    if {"prompt", "negative_prompt"} & set(given):  # which may name others
        return {name: value for name, value in recipe.body.items() if name != "embeddings"}
    return recipe.body


def _checkpoints(server: str | None, models: list[Path]) -> dict[str, str | None]:
    """Digests by id, None where not known: a server's list does not name them."""
    if server is None:
        from mezzotint.operations import offline_checkpoints

        return offline_checkpoints(ask.settings(models=tuple(models) or None))
    with ask.client(server) as client:
        found = [one for one in client.models() if one["kind"] == "checkpoint" and one["state"] == "ready"]
    return {one["id"]: None for one in found}
