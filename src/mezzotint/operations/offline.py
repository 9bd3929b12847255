"""What can be asked of models without a server. Must not touch a data folder."""

from typing import Any

from mezzotint import adding, bodies, devices, profiles, tuning
from mezzotint.catalog import Catalog, Checked, Model, fitting
from mezzotint.config import Settings
from mezzotint.errors import ErrorInfo, Fault, InvalidRequest, RunFailure
from mezzotint.operations.models import no_model
from mezzotint.tuning import Choices


def offline_models(settings: Settings) -> list[dict[str, Any]]:
    """The models that a server with these settings would have, without one."""
    catalog = Catalog(settings.models, settings.cache)
    catalog.scan()
    there = catalog.models.values()
    return [bodies.model(model, [], fitting(model, there), {}) for model in there]


def offline_checkpoints(settings: Settings) -> dict[str, str | None]:
    """Their digests by id; None where one was not hashed yet."""
    catalog = Catalog(settings.models, settings.cache)
    catalog.scan()
    return {name: catalog.known_digest(name) for name in catalog.checkpoints}


def offline_model(settings: Settings, model_id: str) -> dict[str, Any]:
    """One of them. Raises NotFound."""
    catalog, model = find_model(settings, model_id)
    return bodies.model(model, [], fitting(model, catalog.models.values()), {})


def add_model(settings: Settings, source: str, name: str | None, revision: str | None) -> dict[str, Any]:
    """Put a model into the first model folder. Raises InvalidRequest, SetupError."""
    catalog = Catalog(settings.models, settings.cache)
    catalog.scan()
    return bodies.model(adding.add(settings, source, name, revision, others=catalog.models), [], [], {})


def find_model(settings: Settings, model_id: str) -> tuple[Catalog, Model]:
    """Raises NotFound."""
    catalog = Catalog(settings.models, settings.cache)
    catalog.scan()
    model = catalog.models.get(model_id)
    if model is None:
        raise no_model(model_id, catalog)
    return catalog, model


def verify(settings: Settings, model_id: str) -> tuple[Model, list[Checked]]:
    """Hash every file of a model anew. Raises NotFound, or RunFailure when one cannot be read."""
    catalog, model = find_model(settings, model_id)
    try:
        return model, catalog.verify(model)
    except OSError as error:
        message = f"a file of {model_id!r} cannot be read: {error.strerror}"
        raise RunFailure(ErrorInfo(code="model_invalid", message=message)) from error


async def tune(settings: Settings, model_id: str) -> list[profiles.Profile]:
    """Measure a model on every device of these settings, without a server; one that runs adopts it when it is idle.

    Raises InvalidRequest for a model that cannot be used, RunFailure when it cannot be measured.
    """
    catalog, model = find_model(settings, model_id)
    if model.state == "invalid":
        message = f"model {model_id!r} cannot be used: {model.reason}"
        raise InvalidRequest([Fault(field="model", code="model_invalid", message=message)])
    choices = Choices(settings.cache, settings.threads or devices.default_threads())
    sha256 = catalog.digest(model)
    measured: list[profiles.Profile] = []
    for device in settings.devices or devices.find():
        why = await tuning.measure(tuning.subject(catalog, model_id, sha256, device, choices))
        found = profiles.read(settings.cache, sha256, device, choices.threads)
        if why is not None or found is None:
            raise RunFailure(ErrorInfo(code="internal", message=f"{model_id} on {device}: {why}"))
        measured.append(found)
    return measured
