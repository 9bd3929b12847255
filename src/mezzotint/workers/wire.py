"""Every message between the API process and a worker, both ways. Must not import torch or pickle.

Each side knows the other's exact version: `Hello` carries it first. A frame's blob is a finished picture, or the state
of unfinished ones, which nobody but a worker reads.
"""

import socket

import msgspec

from mezzotint import frames
from mezzotint.errors import ErrorInfo
from mezzotint.frames import HEAD_BYTES as HEAD_BYTES
from mezzotint.frames import WireError as WireError
from mezzotint.request import Request
from mezzotint.session import Usage

VERSION = 13
MAX_MESSAGE_BYTES = 8 << 20

BETWEEN = "the work between phases"
MAX_ROWS = 16  # of a step, as long as no fewer are learned to be enough


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", forbid_unknown_fields=True):
    pass


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of work that costs the same each time, as far as can be told."""

    what: str  # load, encode (a text), pictures (a caller's), step (a model call), decode (a picture), file (of it)
    model: str  # digest; of a load that of the adapter, when it is one
    executor: str = "torch"
    dtype: str = "float32"
    height: int = 0  # of the latents
    width: int = 0
    windows: int = 0  # of the text
    rows: int = 1
    nets: int = 0  # ControlNets at work, on the row that has most
    loras: bool = False


# ---- API process -> worker


class ModelRef(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model, or what goes with one, lies, what it is and what is to run it; the worker opens nothing else but
    a session's inputs."""

    id: str
    kind: str
    family: str
    path: str
    bytes: int
    sha256: str
    executor: str = "torch"
    dtype: str = "float32"
    graphs: str = ""  # folder, for an executor that needs converted ones
    vae: str = ""  # path of another autoencoder than its own; `sha256` counts it in
    parameters: int = 0  # of a checkpoint: how many numbers its weights are
    tensors_sha256: str = ""  # of a LoRA: of its file without the header
    vae_sha256: str = ""  # of the weights at `vae`, where they are one file


def load_of(ref: ModelRef) -> Work:
    """The piece of work that loading it is."""
    return Work(what="load", model=ref.sha256, executor=ref.executor, dtype=ref.dtype)


class Submit(_Message, frozen=True, kw_only=True, tag="submit"):
    """Run a session. The blob holds the states of `states`, one behind the other."""

    session_id: str
    attempt: int
    request: Request
    model: ModelRef
    controlnets: tuple[ModelRef, ...] = ()  # in the order of the request's
    loras: tuple[ModelRef, ...] = ()
    embeddings: tuple[ModelRef, ...] = ()
    inputs: dict[str, str] = {}  # a picture's field, such as "controlnets[0].image" -> its normalised PNG
    done: tuple[int, ...] = ()  # images that are stored already
    states: tuple[tuple[int, int], ...] = ()  # image and length of its state: it goes on from there


class Cancel(_Message, frozen=True, kw_only=True, tag="cancel"):
    session_id: str
    attempt: int


class Pause(_Message, frozen=True, kw_only=True, tag="pause"):
    """Let go of a session at the next boundary, with the state of each of its images told before."""

    session_id: str
    attempt: int


class Load(_Message, frozen=True, kw_only=True, tag="load"):
    """Load a model now, in place of the same one under another executor."""

    model: ModelRef
    asked: str = ""  # a token to answer with; empty: nobody waits
    ahead: bool = False  # only if nothing has to go for it


class Keep(_Message, frozen=True, kw_only=True, tag="keep"):
    """What to hold on to when room is short: ids of models and adapters, the most wanted first; others go sooner."""

    names: tuple[str, ...]


class Practise(_Message, frozen=True, kw_only=True, tag="practise"):
    """Draw this and tell nobody, so that the next like it finds everything in place. Sent to a spare."""

    submit: Submit


class Race(_Message, frozen=True, kw_only=True, tag="race"):
    """Measure how fast the device multiplies, and answer with Speed. Sent to an idle worker."""


class Unload(_Message, frozen=True, kw_only=True, tag="unload"):
    """Let go of a model, unless a session in the worker uses it."""

    model_id: str
    asked: str = ""


class Thing(msgspec.Struct, frozen=True, kw_only=True):
    """What an earlier worker has found out of one piece of work."""

    work: Work
    seconds: float | None
    calls: int
    held: bool
    has_memory: bool


class Known(_Message, frozen=True, kw_only=True, tag="known"):
    """After Hello: what need not be found out again on this device."""

    things: tuple[Thing, ...]


class Stop(_Message, frozen=True, kw_only=True, tag="stop"):
    """Leave now; running sessions are somebody else's from here on."""


# ---- worker -> API process


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    kind: str
    name: str
    memory_total_bytes: int
    memory_budget_bytes: int  # what its worker may take; calls beyond it fail of memory
    dtypes: tuple[str, ...]
    driver: str | None
    threads: int
    base_bytes: int  # in use before anything is loaded


class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    """The worker's first message: imports are done, it can take sessions."""

    version: int
    pid: int
    network: str  # `none`, or `guarded`: what of one `limit_myself` left it
    device: DeviceFacts


class Heartbeat(_Message, frozen=True, kw_only=True, tag="heartbeat"):
    """Each second, from a thread of its own, whatever the loop does."""

    phase: str | None  # what the loop is in, None: idle; BETWEEN: at work, and in none of its phases
    since_s: float  # how long it has been in `work`, or between phases; else since its last step
    memory_bytes: int  # of its device's memory: what the process holds, on a GPU what torch has reserved
    weights_bytes: int  # of what is resident, adapters too
    prompt_hits: int  # encodings that were there already, and those that were not, since it began
    prompt_misses: int
    resident: tuple[str, ...]
    loaded: tuple[Work, ...]  # the loads that these were, one of each executor and dtype that a model is there in
    refused: dict[str, str] = {}  # resident models that torch float32 serves though another was wanted: why
    work: Work | None = None  # what the loop is in, if it is measured; not of a spare, which makes way for others
    loading: Work | None = None  # what a thread beside the loop loads, and for how long it has
    loading_s: float = 0.0


class Phase(_Message, frozen=True, kw_only=True, tag="phase"):
    """A session enters a phase. Time up to `at_s`, on this machine's monotonic clock, belonged to the one before."""

    session_id: str
    attempt: int
    phase: str
    at_s: float


class Progress(_Message, frozen=True, kw_only=True, tag="progress"):
    """After a step. Steps are requested steps of the lowest unfinished image; done and total count all images."""

    session_id: str
    attempt: int
    image_index: int
    step: int
    steps: int
    done: int
    total: int
    call: int  # which of the worker's model calls it was, from 1; sessions of one call shared it


class Checkpoint(_Message, frozen=True, kw_only=True, tag="checkpoint"):
    """The state of one image, in the blob. `usage` is that of the attempt so far."""

    session_id: str
    attempt: int
    index: int
    step: int  # requested steps of this image that are done
    usage: Usage


class Preview(_Message, frozen=True, kw_only=True, tag="preview"):
    """An image on its way, as it looks after `step`; the frame's blob is its file, in the format of the output."""

    session_id: str
    attempt: int
    image_index: int
    step: int
    steps: int
    width: int
    height: int


class ImageDone(_Message, frozen=True, kw_only=True, tag="image"):
    """One finished picture; the frame's blob is its file and then its thumbnail, a WebP, of so many bytes. `usage` is
    that of the attempt so far."""

    session_id: str
    attempt: int
    index: int
    seed: int
    width: int
    height: int
    format: str
    thumbnail_bytes: int
    usage: Usage


class Warned(_Message, frozen=True, kw_only=True, tag="warned"):
    session_id: str
    attempt: int
    code: str
    message: str
    field: str | None


class Ended(_Message, frozen=True, kw_only=True, tag="ended"):
    """The last message of an attempt. `outcome` is succeeded, failed or cancelled."""

    session_id: str
    attempt: int
    outcome: str
    usage: Usage
    error: ErrorInfo | None


class Paused(_Message, frozen=True, kw_only=True, tag="paused"):
    """The last message of an attempt that was to pause."""

    session_id: str
    attempt: int
    usage: Usage


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One piece of work as it went just now."""

    work: Work
    seconds: float | None = None  # None: not timed, since it was the first of its kind here or memory did not hold it
    extra_bytes: int | None = None  # most in use meanwhile beside what was there; of a load what stays; None: not seen
    held: bool = True  # False: memory did not hold it
    cap: int = 0  # of a step: rows that a call of its shape has at most from here on


class Findings(_Message, frozen=True, kw_only=True, tag="findings"):
    """What was measured since the last time, in order."""

    measured: tuple[Measured, ...]


class Speed(_Message, frozen=True, kw_only=True, tag="speed"):
    """Measured 1e9 operations a second by dtype, of matrix products; those that the device cannot do are not there."""

    gflops: dict[str, float]


class Loaded(_Message, frozen=True, kw_only=True, tag="loaded"):
    """The answer to Load or Unload: what is loaded now, and what went wrong."""

    asked: str
    resident: tuple[str, ...]
    loaded: tuple[Work, ...]
    error: ErrorInfo | None = None


class DeviceFailed(_Message, frozen=True, kw_only=True, tag="device_failed"):
    """The worker cannot go on and exits after this."""

    message: str


ToWorker = Submit | Cancel | Pause | Load | Keep | Unload | Practise | Race | Known | Stop
FromWorker = (
    Hello
    | Heartbeat
    | Phase
    | Progress
    | Preview
    | Checkpoint
    | ImageDone
    | Warned
    | Paused
    | Ended
    | Findings
    | Loaded
    | Speed
    | DeviceFailed
)

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def frame(message: ToWorker | FromWorker, blob: bytes = b"") -> bytes:
    return frames.head(_encoder.encode(message), blob) + blob


def lengths(head: bytes) -> tuple[int, int]:
    """Message and blob length of a frame. Raises WireError when either is over its cap."""
    return frames.lengths(head, MAX_MESSAGE_BYTES)


def decode_from_worker(body: bytes) -> FromWorker:
    message: FromWorker = frames.decode(_from_worker, body)
    return message


def receive_to_worker(connection: socket.socket) -> tuple[ToWorker, bytes] | None:
    """Block for the next message in a worker. None: the API process is gone."""
    received = frames.receive(connection, MAX_MESSAGE_BYTES)
    return None if received is None else (frames.decode(_to_worker, received[0]), received[1])


def states(submit: Submit, blob: bytes) -> dict[int, bytes]:
    """The states that came with a Submit, by image."""
    found, start = {}, 0
    for index, length in submit.states:
        found[index] = blob[start : start + length]
        start += length
    return found
