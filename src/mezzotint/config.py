"""Every setting, in one frozen value: from the command line, the environment (MEZZOTINT_...), or its default.

Must not read the disk or choose a device: it only says what was asked for.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mezzotint.catalog import BUNDLED_MODEL
from mezzotint.errors import BadSetting
from mezzotint.rules import DEVICE, HUB, LOG_LEVEL, broken
from mezzotint.schema import nearest
from mezzotint.webhook_rules import Policy, policy

PREFIX = "MEZZOTINT_"

# Variables of ours that are not settings of the server.
_OTHERS = frozenset({"MEZZOTINT_SERVER", "MEZZOTINT_API_KEY", "MEZZOTINT_TRAINING", "MEZZOTINT_FAILPOINTS"})


def _data_folder() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "mezzotint"


class Settings(BaseSettings):
    """How this server runs. docs/settings.md is checked against it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    host: Annotated[str, Field(description="address to listen on; other than loopback needs an API key")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="0 takes a free port")] = 7801
    hosts: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="names that this server answers to beside localhost and an address it listens on"),
    ] = ()
    insecure_no_auth: Annotated[
        bool, Field(description="ask nobody for an API key, wherever it listens; anyone who reaches it may use it")
    ] = False
    data: Annotated[Path, Field(description="folder of database, pictures, caches")] = Field(
        default_factory=_data_folder
    )
    database: Annotated[
        SecretStr | None,
        Field(description="postgresql://USER:PASSWORD@HOST/NAME; default: mezzotint.db in the data folder"),
    ] = None
    models: Annotated[
        tuple[Path, ...], NoDecode, Field(description="folders of models; the bundled one is always there")
    ] = ()
    default_model: Annotated[str, Field(description="model of requests that name none")] = BUNDLED_MODEL
    devices: Annotated[
        tuple[Annotated[str, Field(pattern=DEVICE)], ...],
        NoDecode,
        Field(description="devices to use, such as cpu:0; default: every CUDA device, else cpu:0"),
    ] = ()
    threads: Annotated[int | None, Field(ge=1, le=1024, description="CPU threads of a worker; default: all cores")] = (
        None
    )
    memory_bytes: Annotated[
        int | None, Field(ge=1 << 29, description="memory that a CPU worker may take; default: 70 % of what is free")
    ] = None
    spare: Annotated[
        bool,
        Field(description="keep a second CPU worker ready that takes over when one is lost; none below 4 GiB a worker"),
    ] = True
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="auto: the fastest that keeps pictures alike"),
    ] = "auto"
    executor: Annotated[
        Literal["auto", "torch", "openvino"], Field(description="what runs models; auto: the fastest, as measured")
    ] = "auto"
    queue_size: Annotated[int, Field(ge=1, le=1_000_000, description="sessions that may wait; more are refused")] = (
        10_000
    )
    retention_days: Annotated[
        float | None,
        Field(gt=0, le=36_500, description="days after their end that sessions are kept; default: until deleted"),
    ] = None
    max_pixels: Annotated[int, Field(ge=4096, le=67_108_864, description="largest picture, width x height")] = 4_194_304
    max_upload_bytes: Annotated[
        int, Field(ge=65_536, le=268_435_456, description="largest body of an upload; one picture is never larger")
    ] = 33_554_432
    webhook_hosts: Annotated[
        tuple[str, ...], NoDecode, Field(description="hosts that webhooks may call, such as *.example.com; none: off")
    ] = ()
    webhook_networks: Annotated[
        tuple[str, ...], NoDecode, Field(description="private networks that webhooks may call, such as 10.0.0.0/8")
    ] = ()
    webhook_secrets: Annotated[
        SecretStr | None,
        Field(description="whsec_ and base64 of 32 random bytes, which signs webhooks; two while one rotates"),
    ] = None
    hub: Annotated[str, Field(pattern=HUB, description="where `models add OWNER/NAME` looks")] = (
        "https://huggingface.co"
    )
    hub_hosts: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            min_length=1, description="hosts that `models add` may ask, and all below them; a redirect elsewhere fails"
        ),
    ] = ("huggingface.co", "hf.co")
    drain_s: Annotated[float, Field(ge=0, le=3600, description="time that running sessions get at a stop")] = 30.0
    log_level: Annotated[str, Field(pattern=LOG_LEVEL, description="least severe line to log")] = "info"

    @property
    def on_loopback(self) -> bool:
        return self.host in ("127.0.0.1", "localhost", "::1")

    @property
    def database_url(self) -> str:
        """May hold a password: for the store only."""
        if self.database is None:
            return f"sqlite:///{self.data / 'mezzotint.db'}"
        return self.database.get_secret_value()

    @property
    def webhooks(self) -> Policy:
        """Holds the secrets. Raises BadSetting."""
        secrets = self.webhook_secrets.get_secret_value().split(",") if self.webhook_secrets is not None else ()
        return policy(self.webhook_hosts, self.webhook_networks, secrets)

    @property
    def cache(self) -> Path:
        """Learned and derived files; may be shared and deleted."""
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return Path(base) / "mezzotint"


def load_settings(**given: Any) -> Settings:
    """Settings with what was given on top of the environment. Raises BadSetting naming the setting and the way out."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known | _OTHERS:
            near = nearest(name, known)
            hint = f"; did you mean {near}?" if near else f"; settings: {', '.join(sorted(known))}"
            raise BadSetting(f"{name} is not a setting{hint}")
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("models", "devices", "hosts", "webhook_hosts", "webhook_networks", "hub_hosts"):
        if name not in given and (listed := os.environ.get(f"{PREFIX}{name.upper()}")):
            given[name] = tuple(
                part for part in map(str.strip, listed.split(os.pathsep if name == "models" else ",")) if part
            )
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise BadSetting(f"setting {name} {broken(first, Settings.model_fields[name])}") from error
