"""From a caller's body to an accepted session: read, checked, its pictures kept, its row committed.

Every rule is in schema.py and resolving.py; this only brings them the pictures and the facts.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from ulid import ULID

from mezzotint import advice
from mezzotint.assets import Asset
from mezzotint.batches import Batch
from mezzotint.callers import asking
from mezzotint.errors import Fault, InvalidRequest, MezzotintError
from mezzotint.operations import forecast
from mezzotint.operations.parts import Parts
from mezzotint.request import Request, Resolved, input_name
from mezzotint.resolving import Picture, World, resolve
from mezzotint.schema import RequestInput, Source, parse, sources
from mezzotint.session import Session
from mezzotint.store.rows import Once

MAX_IGNORED = 50  # fields of one request that are named in its warnings: these are stored


@dataclass(frozen=True, kw_only=True, slots=True)
class Foreign:
    """What a foreign dialect knows of a request beside the body that it put into our words."""

    route: str  # idempotency keys count by route
    compared: Any  # two calls with one key must agree on this: the fields as sent, with digests of their pictures
    ignored: tuple[str, ...] = ()  # fields that it does not know
    warnings: tuple[dict[str, Any], ...] = ()
    added: tuple[str, ...] = ()  # fields of the body that its caller cannot have sent: nothing is warned of them


async def read(
    parts: Parts,
    body: Any,
    foreign: Foreign | None = None,
    *,
    keeps: bool = True,
    in_batch: bool = False,
    beside: Sequence[Fault] = (),
) -> Resolved:
    """The complete request that a body asks for. Raises InvalidRequest with every fault, those `beside` it first.

    Its pictures are kept; without `keeps` they are looked at and dropped. Fields that nobody knows are a fault in a
    body of our own, and a warning in a foreign one.
    """
    sent, faults = parse(body)
    warnings: list[dict[str, Any]] = []
    if foreign is not None:
        unknown = [fault.field for fault in faults if fault.code == "unknown_field"]
        faults = [fault for fault in faults if fault.code != "unknown_field"]
        names = [name for name in (*foreign.ignored, *unknown) if name]
        warnings += [*foreign.warnings, *map(_ignored, names[:MAX_IGNORED])]
        if more := len(names[MAX_IGNORED:]):
            message = f"{more} more fields are not known here and change nothing"
            warnings.append({"code": "ignored_field", "message": message, "field": None})
    faults = [*beside, *faults]
    pictures = await _take(parts, sent, faults, keeps)
    resolved = resolve(sent, faults, pictures, world(parts), lambda: secrets.randbelow(2**32))
    added = () if foreign is None else foreign.added
    own = [one for one in resolved.warnings if str(one["field"]).partition(".")[0] not in added]
    if not in_batch:
        warnings += advice.alone(resolved.request)
    await forecast.check(parts, resolved.request)
    return replace(resolved, warnings=(*own, *warnings))


def _ignored(name: str) -> dict[str, Any]:
    return {
        "code": "ignored_field",
        "message": f"{name[:64]} is not known here and changes nothing",
        "field": name[:64],
    }


async def accept(parts: Parts, resolved: Resolved, known: Once | None = None) -> Session:
    """A session of it, durable when this returns. Raises TryLater, or Conflict for a key that meant another body."""
    session_id, caller = f"ses_{ULID()}", asking.get()
    promised = await forecast.promise(parts, resolved.request)
    await _lay_out(parts, {session_id: resolved})
    try:
        async with parts.quotas.room_for(caller, [resolved.request]):
            session = await parts.dispatcher.accept(session_id, resolved, known, caller.key)
    except MezzotintError:
        await parts.blobs.delete(session_id)
        raise
    if session.id != session_id:  # the key stands for an earlier one, which came while this one was read
        await parts.blobs.delete(session_id)
        return session
    parts.metrics.accepted(session_id, resolved.request.type, promised)
    return session


async def accept_batch(
    parts: Parts, batch: Batch, accepted: Mapping[str, Resolved], known: Once | None = None
) -> Batch:
    """A batch of these sessions, by id; durable when this returns. Raises TryLater and Conflict, with nothing kept."""
    await _lay_out(parts, accepted)
    try:
        async with parts.quotas.room_for(asking.get(), [resolved.request for resolved in accepted.values()]):
            stored = await parts.dispatcher.accept_batch(batch, accepted, known)
    except MezzotintError:
        await _forget(parts, accepted)
        raise
    if stored.id != batch.id:  # the key stands for an earlier one, which came while this one was read
        await _forget(parts, accepted)
        return stored
    for session_id, resolved in accepted.items():
        parts.metrics.accepted(session_id, resolved.request.type)
    if batch.stop_on_first_error:
        parts.batch_watch.watch(batch.id)
    return stored


def once(body: Any, key: str | None, route: str = "") -> Once | None:
    """A caller's idempotency key with what it came with. It counts by caller and by route; none: our own sessions."""
    if key is None:
        return None
    fingerprint = hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()
    return Once(scope=f"{asking.get().name} {route}".rstrip(), key=key, fingerprint=fingerprint)


async def _forget(parts: Parts, session_ids: Iterable[str]) -> None:
    for session_id in session_ids:
        await parts.blobs.delete(session_id)


def world(parts: Parts) -> World:
    """The facts that requests are checked against, as they are now."""
    return World(
        models=parts.catalog.models,
        default_model=parts.settings.default_model,
        devices=frozenset(parts.supervisor.seats),
        max_pixels=parts.settings.max_pixels,
        own=parts.catalog.own,
        webhooks=parts.webhooks,
    )


async def _take(parts: Parts, sent: RequestInput, faults: list[Fault], keeps: bool) -> dict[str, Picture]:
    """The request's pictures by field. What is wrong with one is a fault beside the others."""
    taken: dict[str, Picture] = {}
    for source in sources(sent):
        try:
            asset = await _picture(parts, source, keeps)
        except InvalidRequest as error:
            faults += error.faults
        else:
            taken[source.field] = Picture(id=asset.id, width=asset.width, height=asset.height)
    return taken


async def _picture(parts: Parts, source: Source, keeps: bool) -> Asset:
    data = parts.assets.read_source(source.text, source.field)
    if isinstance(data, bytes):
        take = parts.assets.put if keeps else parts.assets.look
        return await take(data, source.role, field=source.field)
    asset = await asyncio.to_thread(parts.assets.find, data)
    if asset is None:
        message = f"asset {data!r} is not here; upload the picture to /api/assets, or send it as base64"
        raise InvalidRequest([Fault(field=source.field, code="asset_not_found", message=message)])
    return asset


async def _lay_out(parts: Parts, accepted: Mapping[str, Resolved]) -> None:
    """Link the pictures that each session needs into its own folder; however one fails, no folder is left."""
    try:
        for session_id, resolved in accepted.items():
            await _lay_out_one(parts, session_id, resolved.request)
    except Exception:
        await _forget(parts, accepted)
        raise


async def _lay_out_one(parts: Parts, session_id: str, request: Request) -> None:
    """The same for one session, control maps made."""
    ids = {field: asset_id for field, asset_id in (("image", request.image), ("mask", request.mask)) if asset_id}
    for index, use in enumerate(request.controlnets):
        source = use.image.removeprefix("asset:")
        field = f"controlnets[{index}]."
        made = await parts.assets.preprocess(source, use.preprocessor, use.options, path=field)
        ids[f"{field}image"] = made.id
    for field, asset_id in ids.items():
        folder = parts.blobs.folder(session_id)
        await parts.assets.link(asset_id.removeprefix("asset:"), folder, input_name(field))
