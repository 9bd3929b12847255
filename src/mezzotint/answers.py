"""What a server answers, typed: the JSON bodies of the public contract as a client reads them. Nothing runs here.

Times are RFC 3339 in UTC, sizes in bytes, durations in seconds. None is not known or not there; where `unknown` stands
beside it, that says why.
"""

from typing import Any, NamedTuple

from typing_extensions import TypedDict


class Note(TypedDict):
    """A warning, a fault or a recommendation: the field that it is about, or None."""

    field: str | None
    code: str
    message: str


class Progress(TypedDict):
    phase: str | None  # loading, encoding, denoising, decoding, storing
    step: int | None
    steps: int | None
    fraction: float
    eta_s: float | None
    image_index: int | None
    call: int | None


class Timing(TypedDict):
    created_at: str
    started_at: str | None
    ended_at: str | None
    queued_s: float
    loading_s: float
    encoding_s: float
    denoising_s: float
    decoding_s: float
    storing_s: float
    paused_s: float
    total_s: float


class Usage(TypedDict):
    peak_memory_bytes: int | None
    device_s: float | None
    steps_run: int
    steps_resumed: int
    batch_rows: dict[str, int]
    executor: str | None
    dtype: str | None
    unknown: dict[str, str]


class Image(TypedDict):
    index: int
    seed: int
    width: int
    height: int
    format: str
    bytes: int
    sha256: str
    url: str


class SessionError(TypedDict):
    code: str
    message: str
    field: str | None
    phase: str | None
    retryable: bool


class Session(TypedDict):
    id: str
    state: str
    type: str
    model: str
    device: str | None
    attempt: int
    priority: int
    queue_position: int | None
    batch_id: str | None
    request: dict[str, Any]
    progress: Progress
    timing: Timing
    usage: Usage
    images: list[Image]
    error: SessionError | None
    warnings: list[Note]
    cancel_requested: bool
    pause_requested: bool
    metadata: dict[str, Any]
    links: dict[str, str]


class Event(NamedTuple):
    """Of a session. `data` is a session (state, end), progress, preview, image or warning, by `kind`."""

    id: int
    kind: str
    data: dict[str, Any]


class BatchItem(TypedDict):
    index: int
    session_id: str | None
    state: str | None
    error: dict[str, Any] | None


class BatchProgress(TypedDict):
    done: int
    total: int
    fraction: float


class Batch(TypedDict):
    id: str
    state: str
    counts: dict[str, int]
    progress: BatchProgress
    created_at: str
    stop_on_first_error: bool
    items: list[BatchItem]
    metadata: dict[str, Any]
    links: dict[str, str]


class Estimate(TypedDict):
    device: str
    peak_memory_bytes: int | None
    duration_s: float | None
    queue_s: float | None
    basis: str  # measured, extrapolated, unknown
    unknown: dict[str, str]


class Validation(TypedDict):
    valid: bool
    errors: list[Note]
    warnings: list[Note]
    recommendations: list[Note]
    resolved: dict[str, Any] | None
    estimate: Estimate | None
    unknown: dict[str, str]
    validation_time_s: float


class Attempt(TypedDict):
    number: int
    device: str
    steps_resumed: int
    started_at: str
    ended_at: str | None
    ended_as: str | None
    cause: str | None


class Trace(TypedDict):
    id: str
    state: str
    spans: dict[str, float]
    attempts: list[Attempt]
    batch_rows: dict[str, int] | None
    executor: str | None
    dtype: str | None
    device_s: float | None
    unknown: dict[str, str]


class Memory(TypedDict):
    total_bytes: int | None
    available_bytes: int | None
    used_by_mezzotint_bytes: int | None


class Dtype(TypedDict):
    name: str
    measured_gflops: float | None


class Device(TypedDict):
    id: str
    kind: str
    state: str
    reason: str | None
    name: str | None
    memory: Memory
    utilization: float | None
    temperature_c: float | None
    dtypes: list[Dtype]
    threads: int | None
    driver: str | None
    worker: str | None
    sessions: list[str]
    queue_depth: int
    unknown: dict[str, str]


class Worker(TypedDict):
    id: str
    pid: int
    device: str
    state: str
    resident_models: list[str]
    sessions: list[str]
    restarts: int
    uptime_s: float
    last_exit: str | None


class SupportedType(TypedDict):
    type: str
    models: list[str]
    needs: list[str]


class SupportedTypes(TypedDict):
    types: list[SupportedType]
    unsupported: list[dict[str, Any]]


class Asset(TypedDict):
    id: str
    width: int
    height: int
    bytes: int
    sha256: str
