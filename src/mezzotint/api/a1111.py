"""AUTOMATIC1111's API: pictures, progress, options. Turns words into `Operations` and back; must not hold a rule."""

import asyncio
import contextlib
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Query, Request
from fastapi.responses import JSONResponse

from mezzotint.api import (
    a1111_answer,
    a1111_errors,
    a1111_fields,
    a1111_options,
    a1111_pictures,
    a1111_progress,
    foreign,
    foreign_bodies,
)
from mezzotint.api.a1111_reading import Fields
from mezzotint.api.a1111_tasks import Task, Tasks, caller, owner
from mezzotint.api.inference import Ops, leaving
from mezzotint.api.reading import IdempotencyKey, read_json
from mezzotint.errors import CallerError, Conflict, InvalidRequest, MezzotintError, NotFound
from mezzotint.operations import Foreign, Operations
from mezzotint.session import Session, State

router = APIRouter(tags=["AUTOMATIC1111"])

TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"


async def body(request: Request) -> dict[str, Any]:
    """The JSON object that was sent; none is an empty one, for some clients send nothing. Raises CallerError."""
    raw = await request.body()
    sent = read_json(raw) if raw else {}
    if not isinstance(sent, dict):
        raise CallerError("the body must be a JSON object", code="invalid_value")
    return sent


async def tasks(request: Request) -> Tasks:
    found: Tasks = request.app.state.tasks
    return found


Body = Annotated[dict[str, Any], Depends(body)]
Known = Annotated[Tasks, Depends(tasks)]


@router.post(TXT2IMG, openapi_extra=foreign_bodies.TXT2IMG)
async def txt2img(
    request: Request, ops: Ops, sent: Body, known: Known, idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    return await _draw(request, ops, sent, known, idempotency_key, TXT2IMG)


@router.post(IMG2IMG, openapi_extra=foreign_bodies.IMG2IMG)
async def img2img(
    request: Request, ops: Ops, sent: Body, known: Known, idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    return await _draw(request, ops, sent, known, idempotency_key, IMG2IMG)


@router.get("/sdapi/v1/progress")
async def progress(
    request: Request,
    ops: Ops,
    known: Known,
    id_task: Annotated[str | None, Query(max_length=128)] = None,
    skip_current_image: bool = False,
) -> dict[str, Any]:
    """Of the session named, else of the caller's own that runs, with its image on its way."""
    task, session = await _chosen(request, ops, known, id_task)
    preview = None if session is None or skip_current_image else await ops.preview(session.id)
    return a1111_progress.progress(session, task.name if task else "", preview)


@router.post("/sdapi/v1/interrupt", openapi_extra=foreign_bodies.INTERRUPT)
async def interrupt(
    request: Request, ops: Ops, sent: Body, known: Known, id_task: Annotated[str | None, Query(max_length=128)] = None
) -> dict[str, Any]:
    """Stop it within one step. Its waiting call answers with what was done by then."""
    fields = Fields(sent)
    named = fields.text("id_task", "") or id_task
    if fields.faults:
        raise InvalidRequest(fields.faults)
    _, session = await _chosen(request, ops, known, named)
    if session is not None:
        with contextlib.suppress(Conflict):  # it ended meanwhile
            await ops.cancel(session.id)
    return {}


@router.post("/sdapi/v1/skip")
async def skip(request: Request) -> dict[str, Any]:
    """Taken, and nothing is skipped: every picture of a session is drawn at once."""
    request.state.headers = foreign.ignored(["skip"])
    return {}


@router.post("/internal/progress", openapi_extra=foreign_bodies.PROGRESS)
async def internal_progress(request: Request, ops: Ops, sent: Body, known: Known) -> dict[str, Any]:
    named = sent.get("id_task")
    task = known.named(named, caller(request)) if isinstance(named, str) else None
    session = await _session(ops, known, task.session_id) if task else None
    shows = session is not None and sent.get("live_preview", True) is not False
    preview = await ops.preview(session.id) if session is not None and shows else None
    shown = sent.get("id_live_preview")
    return a1111_progress.internal(session, preview, shown if isinstance(shown, int) else -1)


@router.get("/internal/pending-tasks")
async def pending(request: Request, ops: Ops, known: Known) -> dict[str, Any]:
    names = [task.name for task, _ in await _active(request, ops, known)]
    return {"size": len(names), "tasks": names}


@router.get("/sdapi/v1/options")
async def options(ops: Ops) -> dict[str, Any]:
    kept = await ops.options(owner())
    return a1111_options.shown(kept, ops.checkpoint(None), ops.facts(), await ops.digests())


@router.post("/sdapi/v1/options", openapi_extra=foreign_bodies.OPTIONS)
async def set_options(request: Request, ops: Ops, sent: Body, behind: BackgroundTasks) -> None:
    """Any subset, or the whole object back. What is not used here is not kept.

    Another checkpoint begins to load when this has answered.
    """
    settings = a1111_options.read(sent, ops.facts(), await ops.digests())
    if settings.faults:
        raise InvalidRequest(settings.faults)
    request.state.headers = foreign.ignored(settings.ignored)
    before = (await ops.options(owner())).get("sd_model_checkpoint", ops.default_model)
    if settings.kept:
        await ops.keep_options(owner(), settings.kept)
    chosen = settings.kept.get("sd_model_checkpoint", before)
    if chosen != before:
        behind.add_task(_load, ops, chosen)


async def _load(ops: Operations, model_id: str) -> None:
    """What cannot be loaded is told to who asks for a picture of it."""
    with contextlib.suppress(MezzotintError):
        if not ops.model(model_id)["resident_on"]:
            await ops.load_model(model_id)


async def _draw(
    request: Request, ops: Operations, sent: dict[str, Any], known: Tasks, key: str | None, route: str
) -> JSONResponse:
    models, digests = ops.facts(), await ops.digests()
    asked = a1111_fields.read(sent, models, has_image=route == IMG2IMG)
    kept = a1111_options.read(await ops.options(owner()), models, digests)
    given = a1111_options.read(asked.settings, models, digests, "override_settings.")
    if asked.faults or given.faults:
        raise InvalidRequest([*asked.faults, *given.faults])
    output = kept.body.get("output", {}) | given.body.get("output", {})
    settings = kept.body | given.body | ({"output": output} if output else {})
    pictures = await a1111_pictures.keep(ops, asked)
    noted = Foreign(
        route=route,
        compared=foreign.without_nulls(sent),
        ignored=(*asked.ignored, *given.ignored),
        warnings=asked.warnings,
        added=("preview",),
    )
    try:
        session = await foreign.accept(request, ops, asked.body | settings | pictures, noted, key)
    except InvalidRequest as error:
        faults = [replace(one, field=a1111_errors.sent_as(one.field, asked)) for one in error.faults]
        raise InvalidRequest(faults) from None
    known.add(session.id, caller(request), asked.task_id)
    if asked.stores_settings and given.kept:
        await ops.keep_options(owner(), given.kept)
    with leaving(request) as left:
        session = await ops.wait(session, leaving=left)
    if not session.ended:
        known.leave(session.id)
        return JSONResponse(None)  # to nobody
    known.end(session.id)
    if not session.images and session.state is not State.CANCELLED:
        raise foreign.failure(session)
    images = []
    for image in session.images if asked.sends_images else ():
        _, path = await ops.image(session.id, image.index)
        images.append(a1111_pictures.encoded(await asyncio.to_thread(path.read_bytes)))
    model = models.get(session.request.model)
    digest = (await ops.digests()).get(session.request.model)
    answer = {
        "images": images,
        "parameters": a1111_answer.echo(sent, with_pictures=asked.echoes_images),
        "info": a1111_answer.info(session, asked, model, digest, await ops.hashes(session), await ops.vae(session)),
    }
    return JSONResponse(answer, headers={"Cache-Control": "no-store"})


async def _chosen(
    request: Request, ops: Operations, known: Tasks, name: str | None
) -> tuple[Task | None, Session | None]:
    """The one named; else of the caller's own the oldest that runs, else the oldest that waits. Raises NotFound."""
    if name:
        task = known.named(name, caller(request))
        if task is None:
            raise NotFound(f"task {name[:64]!r} is not here", code="session_not_found")
        return task, await _session(ops, known, task.session_id)
    active = await _active(request, ops, known)
    running = [one for one in active if one[1].state is State.RUNNING]
    return next(iter([*running, *active]), (None, None))


async def _active(request: Request, ops: Operations, known: Tasks) -> list[tuple[Task, Session]]:
    found = [(task, await _session(ops, known, task.session_id)) for task in known.active(caller(request))]
    return [(task, session) for task, session in found if session is not None and not session.ended]


async def _session(ops: Operations, known: Tasks, session_id: str) -> Session | None:
    """None when it was deleted."""
    try:
        session = await ops.get(session_id)
    except NotFound:
        known.end(session_id)
        return None
    if session.ended:
        known.end(session_id)
    return session
