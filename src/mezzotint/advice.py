"""What a caller should know of a request that is valid: what of it has no effect, and what would serve better.

Pure rules over facts. Must not refuse anything: what is wrong is a fault, in resolving.py.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from mezzotint.catalog import Model, fitting
from mezzotint.families import mentions
from mezzotint.families.table import at_work, calls
from mezzotint.request import ControlNetUse, Request
from mezzotint.schema import OutputInput, RequestInput

Note = dict[str, Any]

# Of both prompts in UTF-16, of both as JSON, of the two together: beside so much the rest of the metadata has room.
MAX_JPEG_TEXT_BYTES, MAX_PNG_RECORD_BYTES, MAX_EXIF_BYTES = 50_000, 60_000, 56_000

# A picture of more than so many times the pixels that a model was trained at, or fewer than the inverse, suffers.
FAR = 4


def warnings(sent: RequestInput, request: Request, model: Model, models: Mapping[str, Model]) -> Iterator[Note]:
    """What will not be as a caller may expect. `model`: as it is on disk, without what was set for it."""
    if _is_far(request, model):
        message = (
            f"{request.width}x{request.height} is far from the {model.width}x{model.height} that {model.id!r} was "
            "trained at; expect repeated or broken subjects"
        )
        yield _note("size_far_from_native", message, "width")
    for one, field in zip(request.passes, ("strength", "hires.strength"), strict=False):
        if one.strength is not None and int(one.num_inference_steps * one.strength) < 1:
            message = f"{field} {one.strength:g} leaves nothing of {one.num_inference_steps} steps; one is run"
            yield _note("strength_too_small", message, field)
    if request.negative_prompt and request.guidance_scale <= 1:
        message = f"guidance_scale {request.guidance_scale:g} means no guidance, and negative_prompt works only with it"
        yield _note("no_effect", message, "negative_prompt")
    if request.eta > 0 and request.scheduler != "ddim":
        yield _note("no_effect", f"eta is for scheduler 'ddim'; {request.scheduler!r} does not use it", "eta")
    if request.resize_mode != RequestInput.model_fields["resize_mode"].default and request.image is None:
        yield _note("no_effect", "resize_mode says how an image is fitted, and there is none", "resize_mode")
    if request.output.quality != OutputInput.model_fields["quality"].default and request.output.format == "png":
        yield _note("no_effect", "png is lossless; quality is for jpeg and webp", "output.quality")
    if request.output.embed_metadata:
        yield from _unwritten(request)
    for index, net in enumerate(request.controlnets):
        if net.scale == 0:
            yield _note("no_effect", "a ControlNet of scale 0 changes nothing", f"controlnets[{index}].scale")
        elif not any(_is_at_work(net, one) for one in request.passes):
            message = f"no whole step lies between start {net.start:g} and end {net.end:g}: it is never at work"
            yield _note("no_effect", message, f"controlnets[{index}].start")
    for index, lora in enumerate(request.loras):
        if lora.scale == 0:
            yield _note("no_effect", "a LoRA of scale 0 changes nothing", f"loras[{index}].scale")
    for index, name in enumerate(sent.embeddings or []):
        if name not in request.embeddings:
            yield _note("no_effect", f"no prompt names the embedding {name!r}", f"embeddings[{index}]")
    for index, step in enumerate(request.preview.at_steps if request.preview is not None else ()):
        if step >= request.steps:
            message = f"{request.steps} steps run, and after the last one comes the picture itself; {step} shows none"
            yield _note("no_effect", message, f"preview.at_steps[{index}]")
    if request.preview is not None and request.preview.every_steps >= max(request.steps, 2):  # 1: as many as there are
        every = request.preview.every_steps
        message = (
            f"{request.steps} steps run, and after the last one comes the picture itself; every {every} shows none"
        )
        yield _note("no_effect", message, "preview.every_steps")
    yield from _unused_embeddings(sent, request, model, models)


def alone(request: Request) -> Iterator[Note]:
    """What of a request has no effect since it is in no batch."""
    if request.webhook is not None and "batch.ended" in request.webhook.events:
        yield _note("no_effect", "batch.ended is of batches, and this request is in none", "webhook.events")


def _unwritten(request: Request) -> Iterator[Note]:
    """Of prompts so long that the picture's file may not hold how it was made."""
    texts = [request.prompt, request.negative_prompt]
    text, record = len("".join(texts).encode("utf-16-be")), len(json.dumps(texts))  # as images.py writes them
    if request.output.format == "jpeg" and text > MAX_JPEG_TEXT_BYTES:
        message = "the prompts may leave no room for a jpeg's metadata, which is then left out; png and webp hold it"
        yield _note("metadata_too_long", message, "output.format")
    elif record > MAX_PNG_RECORD_BYTES if request.output.format == "png" else text + record > MAX_EXIF_BYTES:
        message = "the prompts may leave no room for Mezzotint's own record; AUTOMATIC1111's text alone is then written"
        yield _note("metadata_too_long", message, "prompt")


def _unused_embeddings(
    sent: RequestInput, request: Request, model: Model, models: Mapping[str, Model]
) -> Iterator[Note]:
    """Of those that cannot be used, and whose names the prompts hold all the same."""
    if sent.embeddings is not None:
        return
    unfit = [one for one in models.values() if one.kind == "embedding" and not fitting(one, [model])]
    names = mentions.names((one.id, one.trained_as) for one in unfit)
    for field in ("prompt", "negative_prompt"):
        for name in mentions.ids([getattr(request, field)], names):
            why = models[name].reason or f"it is made for another architecture than {model.id!r}"
            yield _note("embedding_not_used", f"embedding {name!r} is read as words: {why}", field)


def recommendations(
    request: Request, model: Model, models: Mapping[str, Model], resident: frozenset[str]
) -> Iterator[Note]:
    """What would serve a valid request better. `model`: as it is on disk, without what was set for it. `resident`:
    models that are loaded where it may run.
    """
    if _is_far(request, model):
        message = f"{model.id!r} draws best near {model.width}x{model.height}; draw that and enlarge it"
        yield _note("use_native_size", message, "width")
    prompt = request.prompt.lower()
    for index, lora in enumerate(request.loras):
        words = models[lora.name].trigger_words
        if words and not any(word.lower() in prompt for word in words):
            message = f"LoRA {lora.name!r} was trained on {', '.join(words)}; put one of them into the prompt"
            yield _note("use_trigger_word", message, f"loras[{index}].name")
        for field, wanted in asdict(models[lora.name].lora_defaults).items():
            if wanted is not None and lora.scale and getattr(request, field) != wanted:
                yield _note("use_lora_defaults", f"LoRA {lora.name!r} is made for {field} {wanted}", field)
    if request.deterministic:
        message = "deterministic runs alone in its model calls; without it, it shares them and takes less of the device"
        yield _note("share_calls", message, "deterministic")
    if model.id not in resident:
        message = f"{model.id!r} is not loaded where this would run; the first session waits for that"
        yield _note("model_not_loaded", message, "model")


def _is_far(request: Request, model: Model) -> bool:
    return not 1 / FAR <= request.width * request.height / (model.width * model.height) <= FAR


def _is_at_work(net: ControlNetUse, request: Request) -> bool:
    """In any model call of a pass."""
    total = calls(request.scheduler, request.steps, request.num_inference_steps)
    return any(at_work(call, total, net.start, net.end) for call in range(total))


def _note(code: str, message: str, field: str) -> Note:
    return {"code": code, "message": message, "field": field}
