"""Fetches a model from a hub that speaks Hugging Face's protocol, from allowed hosts only, and checks every digest.

Must not decide what a model is: it takes the files that models are made of (headers.py), and no other.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from mezzotint.errors import Fault, InvalidRequest, SetupError
from mezzotint.headers import COMPONENT_SUFFIXES, OTHER_HALF, PEFT_CONFIG, PEFT_WEIGHTS, TRAINED, chosen_weights

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/.+\.safetensors)?")  # OWNER/NAME, or one file of it
_TOP = frozenset({"model_index.json", "config.json"})
_PEFT = (PEFT_CONFIG, PEFT_WEIGHTS)


def fetch(source: str, revision: str | None, into: Path, hub: str, hosts: Iterable[str]) -> Path:
    """Download a repository, or one file of it, below `into`; returns what was got. Blocks.

    Raises InvalidRequest for what is not there or is no model, SetupError when the hub or the network fails.
    """
    os.environ["HF_HUB_DISABLE_XET"] = "1"  # its own way of downloading would not ask us about hosts
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import httpx2
    import huggingface_hub
    from huggingface_hub import errors

    owner, name, *inside = source.split("/", 2)
    repository = f"{owner}/{name}"
    huggingface_hub.set_client_factory(lambda: _client(frozenset(hosts)))
    try:
        api = huggingface_hub.HfApi(endpoint=hub)
        told = api.model_info(repository, revision=revision, files_metadata=True)
        files = {one.rfilename: one for one in told.siblings or []}
        for file in _wanted(list(files), inside[0] if inside else None, source):
            huggingface_hub.hf_hub_download(repository, file, revision=told.sha, local_dir=into, endpoint=hub)
            if (lfs := files[file].lfs) is not None:
                _check(into / file, lfs.sha256)
    except errors.GatedRepoError as error:
        raise _fault(f"{repository} asks for consent; give it on {hub}/{repository} and set HF_TOKEN") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        at = f" at {revision!r}" if revision else ""
        raise _fault(f"{repository}{at} is not on {hub}, or needs the key of an account: set HF_TOKEN") from error
    except (errors.HfHubHTTPError, httpx2.HTTPError, errors.LocalEntryNotFoundError) as error:
        raise SetupError(f"{source} cannot be fetched from {hub}: {_reason(error)}") from error
    finally:
        huggingface_hub.close_session()
    shutil.rmtree(into / ".cache", ignore_errors=True)  # the library's notes of what it fetched
    got = into / inside[0] if inside else _whole(into)
    return got.parent if got.name == PEFT_WEIGHTS and got.with_name(PEFT_CONFIG).exists() else got


def _client(hosts: frozenset[str]) -> Any:
    """What the library asks with: it follows a redirect only to an allowed host."""
    import httpx2

    def allow(request: Any) -> None:
        host = urlsplit(str(request.url)).hostname or ""
        if not any(host == one or host.endswith(f".{one}") for one in hosts):
            message = f"{host} is not among hub_hosts ({', '.join(sorted(hosts))})"
            raise httpx2.RequestError(message, request=request)

    return httpx2.Client(event_hooks={"request": [allow]}, follow_redirects=True, timeout=60)


def _wanted(files: list[str], one: str | None, source: str) -> list[str]:
    """The files to download. Raises InvalidRequest when there is no telling."""
    if one is not None:
        if one not in files:
            raise _fault(f"{source} is not there; it has {_some(files)}")
        told = str(PurePosixPath(one).with_name(PEFT_CONFIG))
        return [told, one] if PurePosixPath(one).name == PEFT_WEIGHTS and told in files else [one]
    if not _TOP.intersection(files) and set(_PEFT).issubset(files):
        return list(_PEFT)
    if not _TOP.intersection(files) and OTHER_HALF not in files and (found := [one for one in TRAINED if one in files]):
        return found[:1]
    if not _TOP.intersection(files):
        single = [file for file in files if file.endswith(".safetensors")]
        if len(single) != 1:
            raise _fault(f"{source} is no folder of diffusers; name one file of it: {_some(single or files)}")
        return single
    top = {"model_index.json"} if "model_index.json" in files else {"config.json"}
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(str(PurePosixPath(file).parent), []).append(PurePosixPath(file).name)
    wanted = []
    for folder, names in folders.items():
        weights = {*chosen_weights(names)} if folder != "." or "config.json" in top else set()
        for name in names:
            kept = name in weights or (PurePosixPath(name).suffix in COMPONENT_SUFFIXES - {".safetensors"})
            if kept and (folder != "." or name in top | weights):
                wanted.append(name if folder == "." else f"{folder}/{name}")
    return sorted(wanted)


def _whole(into: Path) -> Path:
    """The one file that was got, or the folder."""
    found = list(into.iterdir())
    return found[0] if len(found) == 1 and found[0].is_file() else into


def _check(file: Path, sha256: str) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise SetupError(f"{file.name} came as {found}, where the hub says {sha256}; try again")


def _some(files: list[str]) -> str:
    return ", ".join(sorted(files)[:8]) + (", ..." if len(files) > 8 else "") or "no file"


def _reason(error: BaseException) -> str:
    """The cause at the bottom, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200] or type(error).__name__


def _fault(message: str) -> InvalidRequest:
    return InvalidRequest([Fault(field="source", code="invalid_value", message=message)])
