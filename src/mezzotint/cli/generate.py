"""`mezzotint generate`: every field of a request as a flag. Must not hold a rule of requests."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli import draw, fields, progress
from mezzotint.cli.flags import Json, Models, Server
from mezzotint.errors import CallerError

_CONTROLNET_HELP = 'JSON object, such as {"model": "edges", "image": "file.png"}; may be given several times'


def generate(
    prompt: Annotated[str | None, typer.Argument(help="what to draw")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="file; its suffix sets the format")] = None,
    from_picture: Annotated[Path | None, typer.Option("--from", help="file to repeat; flags change it")] = None,
    model: Annotated[str | None, typer.Option(help="catalog id")] = None,
    type: Annotated[str | None, typer.Option(help="inferred when absent")] = None,  # noqa: A002  the contract's word
    negative_prompt: Annotated[str | None, typer.Option(help="what to keep out")] = None,
    prompt_syntax: Annotated[str | None, typer.Option(help="plain, weighted")] = None,
    width: Annotated[int | None, typer.Option(help="px")] = None,
    height: Annotated[int | None, typer.Option(help="px")] = None,
    num_inference_steps: Annotated[int | None, typer.Option("--num-inference-steps", "--steps")] = None,
    guidance_scale: Annotated[float | None, typer.Option("--guidance-scale", "--cfg-scale")] = None,
    scheduler: Annotated[str | None, typer.Option("--scheduler", "--sampler")] = None,
    scheduler_options: Annotated[str | None, typer.Option(help="JSON object")] = None,
    eta: Annotated[float | None, typer.Option(help="noise of ddim")] = None,
    variation: Annotated[str | None, typer.Option(help='JSON object: {"seed": 1, "strength": 0.2}')] = None,
    hires: Annotated[str | None, typer.Option(help='JSON object, a second pass: {"scale": 2, "strength": 0.7}')] = None,
    seed: Annotated[int | None, typer.Option(help="drawn when absent; image i uses seed+i")] = None,
    num_images: Annotated[int | None, typer.Option("--num-images", "-n")] = None,
    clip_skip: Annotated[int | None, typer.Option(help="text encoder layers to skip")] = None,
    image: Annotated[Path | None, typer.Option(help="file to begin at")] = None,
    mask: Annotated[Path | None, typer.Option(help="file of the image's size; white is drawn anew")] = None,
    strength: Annotated[float | None, typer.Option(help="how far from the image, 0..1")] = None,
    mask_blur: Annotated[int | None, typer.Option(help="px, softens the edge of the mask")] = None,
    mask_fill: Annotated[str | None, typer.Option(help="original, fill")] = None,
    padding_mask_crop: Annotated[int | None, typer.Option(help="px around the masked area")] = None,
    resize_mode: Annotated[str | None, typer.Option(help="stretch, crop, pad, original")] = None,
    controlnets: Annotated[list[str] | None, typer.Option(help=_CONTROLNET_HELP)] = None,
    loras: Annotated[list[str] | None, typer.Option(help="NAME or NAME:SCALE; may be given several times")] = None,
    embeddings: Annotated[
        list[str] | None, typer.Option(help="that the prompts may name; default: all that they name")
    ] = None,
    quality: Annotated[int | None, typer.Option(help="of jpeg and webp")] = None,
    embed_metadata: Annotated[bool | None, typer.Option(help="write the parameters into the file")] = None,
    priority: Annotated[int | None, typer.Option(help="0..9, higher first")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="running longer fails")] = None,
    expires_s: Annotated[float | None, typer.Option(help="not started by then: expired")] = None,
    device: Annotated[str | None, typer.Option(help="pin to a device id")] = None,
    deterministic: Annotated[bool, typer.Option(help="bit-equal anywhere")] = True,
    preview: Annotated[str | None, typer.Option(help="JSON object: every_steps, at_steps, max_px")] = None,
    webhook: Annotated[str | None, typer.Option(help="JSON object: url, events")] = None,
    metadata: Annotated[str | None, typer.Option(help="JSON object, returned as sent")] = None,
    models: Models = None,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Draw a picture. Runs by itself; with --server, on that server."""
    given = {name: value for name, value in locals().items() if name not in _NOT_FIELDS and value is not None}
    objects = {
        "metadata": metadata,
        "scheduler_options": scheduler_options,
        "variation": variation,
        "hires": hires,
        "preview": preview,
        "webhook": webhook,
    }
    for name, text in objects.items():
        if text is not None:
            given[name] = fields.json_object(name, text)
    for name, file in (("image", image), ("mask", mask)):
        if file is not None:
            given[name] = fields.picture(name, file)
    if loras:
        given["loras"] = [fields.lora(text) for text in loras]
    if controlnets:
        given["controlnets"] = [fields.controlnet(text) for text in controlnets]
    options = {"format": fields.image_format(output), "quality": quality, "embed_metadata": embed_metadata}
    given["output"] = {name: value for name, value in options.items() if value is not None}
    if from_picture is not None:
        from mezzotint.cli import repeat

        made = repeat.fields_of(from_picture, given.keys(), server, models or [])
        given = made | given | {"output": made.get("output", {}) | given["output"]}
    elif prompt is None:
        raise CallerError("give a prompt, or a picture with --from", code="missing_field", field="prompt")
    with progress.bar(quiet=as_json) as show:
        if server is not None:
            session, files = draw.on_server(server, given, output, show)
        else:
            session, files = draw.alone(given, output, models or [], show)
    if as_json:
        typer.echo(json.dumps({"session": session, "files": [str(file) for file in files]}))
        return
    took = f"{session['timing']['total_s'] - session['timing']['queued_s']:.2f} s"
    for file, picture in zip(files, session["images"], strict=True):
        typer.echo(f"{file}  seed {picture['seed']}  {took}")


_NOT_FIELDS = frozenset({"output", "from_picture", "models", "server", "as_json", "quality", "embed_metadata"})
