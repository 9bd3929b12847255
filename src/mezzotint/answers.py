"""What a server answers, typed: the JSON bodies of the public contract as a client reads them. Nothing runs here.

Times are RFC 3339 in UTC, sizes in bytes, durations in seconds. None is not known or not there; where `unknown` stands
beside it, that says why.
"""

from typing import Any, Literal, NamedTuple, NotRequired

from typing_extensions import TypedDict

State = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled", "expired"]
Phase = Literal["loading", "encoding", "denoising", "decoding", "storing"]
Basis = Literal["measured", "extrapolated", "unknown"]


class Note(TypedDict):
    """A warning, a fault or a recommendation: the field that it is about, or None."""

    field: str | None
    code: str
    message: str


class Progress(TypedDict):
    phase: Phase | None
    step: int
    steps: int
    fraction: float
    eta_s: float | None
    image_index: int
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
    phase: Phase | None
    retryable: bool


class ControlNetUse(TypedDict):
    model: str
    image: str | None
    preprocessor: str
    options: dict[str, Any]
    scale: float
    start: float
    end: float
    resize_mode: str
    control_mode: str


class LoraUse(TypedDict):
    name: str
    scale: float


class Output(TypedDict):
    format: str
    quality: int
    embed_metadata: bool


class Request(TypedDict):
    """What was asked, complete: nothing is left to a default."""

    model: str
    type: str
    prompt: str
    negative_prompt: str
    prompt_syntax: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    scheduler_options: dict[str, Any]
    eta: float
    seed: int | None
    num_images: int
    clip_skip: int | None
    image: str | None
    mask: str | None
    strength: float | None
    mask_blur: int
    mask_fill: str
    padding_mask_crop: int | None
    resize_mode: str
    controlnets: list[ControlNetUse]
    loras: list[LoraUse]
    embeddings: list[str]
    output: Output
    priority: int
    timeout_s: float | None
    expires_s: float | None
    device: str | None
    deterministic: bool
    variation: dict[str, Any] | None
    hires: dict[str, Any] | None
    webhook: dict[str, Any] | None
    preview: dict[str, Any] | None
    cancel_on_disconnect: bool


class Session(TypedDict):
    id: str
    state: State
    type: str
    model: str
    device: str | None
    attempt: int
    priority: int
    queue_position: int | None
    batch_id: str | None
    request: Request
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


class Sessions(TypedDict):
    sessions: list[Session]
    next_cursor: str | None


class Preview(TypedDict):
    """Of an image as it was at a step."""

    image_index: int
    step: int
    format: str
    b64_json: str


class Event(NamedTuple):
    """Of a session. `data` is a session (state, end), progress, preview, image or warning, by `kind`."""

    id: int
    kind: str
    data: dict[str, Any]


class BatchItem(TypedDict):
    index: int
    session_id: str | None
    state: State | None
    error: SessionError | None


class BatchProgress(TypedDict):
    done: int
    total: int
    fraction: float


class Batch(TypedDict):
    id: str
    state: str | None
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
    basis: Basis
    unknown: dict[str, str]


class Resolved(Request):
    """The request as it would be run. What is drawn or kept only at acceptance is None, and `unknown` says so."""

    metadata: dict[str, Any]


class Validation(TypedDict):
    valid: bool
    errors: list[Note]
    warnings: list[Note]
    recommendations: list[Note]
    resolved: Resolved | None
    estimate: Estimate | None
    unknown: dict[str, str]
    validation_time_s: float


class Attempt(TypedDict):
    number: int
    device: str | None
    steps_resumed: int | None
    started_at: str
    ended_at: str | None
    ended_as: State | None
    cause: str | None


class Trace(TypedDict):
    id: str
    state: State
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


class AvailableDevice(TypedDict):
    id: str
    kind: str
    state: str
    reason: str | None
    name: str | None
    memory: Memory
    utilization: float | None
    temperature_c: float | None
    dtypes: list[Dtype] | None
    threads: int | None
    driver: str | None
    worker: str | None
    unknown: dict[str, str]


class Device(AvailableDevice):
    sessions: list[str]
    queue_depth: int


class Devices(TypedDict):
    devices: list[Device]


class Worker(TypedDict):
    id: str | None
    pid: int | None
    # none: the system gave it none; guarded: Python refuses it one; null while it starts
    network: Literal["none", "guarded"] | None
    device: str
    state: str
    resident_models: list[str]
    sessions: list[str]
    restarts: int
    uptime_s: float | None
    last_exit: str | None


class Workers(TypedDict):
    workers: list[Worker]


class Defaults(TypedDict):
    """What a request gets that says nothing itself."""

    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    vae: str | None


class LoraDefaults(TypedDict):
    """What a request with the LoRA gets that says nothing itself; null: what the model says."""

    num_inference_steps: int | None
    guidance_scale: float | None
    scheduler: str | None


class Model(TypedDict):
    """A file or folder that the catalog found; of an invalid one only what is required here."""

    id: str
    kind: str
    state: str
    reason: str | None
    bytes: NotRequired[int]
    resident_on: NotRequired[list[str]]
    trigger_words: NotRequired[list[str]]
    thumbnail: NotRequired[str | None]
    # of ControlNets, LoRAs, VAEs, embeddings: the checkpoints that they can go with
    fits: NotRequired[list[str]]
    tokens: NotRequired[int]  # of embeddings
    control_type: NotRequired[str | None]
    lora_defaults: NotRequired[LoraDefaults]
    # of checkpoints
    family: NotRequired[str]
    types: NotRequired[list[str]]
    executors: NotRequired[dict[str, dict[str, Any]]]
    width: NotRequired[int]
    height: NotRequired[int]
    size_multiple: NotRequired[int]
    min_size: NotRequired[int]
    prediction_type: NotRequired[str]
    defaults: NotRequired[Defaults]
    settings: NotRequired[dict[str, Any]]


class Models(TypedDict):
    models: list[Model]


class SupportedType(TypedDict):
    type: str
    models: list[str]
    needs: list[str]


class UnsupportedType(TypedDict):
    type: str
    needs: list[str]


class SupportedTypes(TypedDict):
    types: list[SupportedType]
    unsupported: list[UnsupportedType]


class Option(TypedDict):
    """Of a preprocessor."""

    name: str
    default: float
    min: float
    max: float
    whole: bool


class Preprocessor(TypedDict):
    name: str
    makes: str | None
    options: list[Option]


class Scheduler(TypedDict):
    name: str
    options: list[str]
    max_steps: int


class AvailableControlNet(TypedDict):
    id: str
    control_type: str | None
    fits: list[str]


class AvailableLora(TypedDict):
    id: str
    fits: list[str]
    trigger_words: list[str]
    lora_defaults: LoraDefaults


class FamilyLoras(TypedDict):
    family: str | None
    loras: list[AvailableLora]


class AvailableEmbedding(TypedDict):
    id: str
    fits: list[str]
    tokens: int  # that it stands for


class Dialect(TypedDict):
    name: str
    prefix: str


class Capabilities(TypedDict):
    devices: list[AvailableDevice]
    types: list[SupportedType]
    unsupported: list[UnsupportedType]
    models: list[dict[str, Any]]
    default_model: str | None
    schedulers: list[Scheduler]
    controlnets: list[AvailableControlNet]
    preprocessors: list[Preprocessor]
    loras: list[FamilyLoras]
    embeddings: list[AvailableEmbedding]
    limits: dict[str, int]
    batching: dict[str, Any]
    dialects: list[Dialect]
    version: str


class Summary(TypedDict):
    """Of sessions that ended. Percentiles by name, p50 to p99; None of none."""

    sessions: int
    states: dict[str, int]
    errors: dict[str, int]
    total_s: dict[str, float] | None
    spans: dict[str, dict[str, float] | None]
    steps_per_s: float | None
    peak_memory_bytes: dict[str, float] | None
    unknown: dict[str, str]


class Group(Summary):
    model: str
    type: str


class Analytics(TypedDict):
    window_s: float
    truncated: bool
    all: Summary
    groups: list[Group]


class Asset(TypedDict):
    id: str
    width: int
    height: int
    bytes: int
    sha256: str


class Problem(TypedDict):
    """Of every error, with its HTTP status: RFC 9457, and `error` for clients of OpenAI's API."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None
    request_id: str
    errors: NotRequired[list[Note]]
    error: dict[str, Any]


class Envelope(TypedDict):
    """What an operation answers: `data`, or `error` when it did not succeed."""

    success: bool
    data: NotRequired[dict[str, Any]]
    error: NotRequired[dict[str, Any]]
    request_id: str | None
