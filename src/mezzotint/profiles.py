"""What was measured of a model on a device, and which executor and dtype follow from it. Must not import torch.

One JSON file per model and device, with the ranking as it was measured; deleting it costs a new measurement.
"""

import functools
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from mezzotint.disk import draft_of

# Mean absolute difference from torch float32, of 255, over the probe pictures, that a candidate may show.
MAX_DIFFERENCE = {"float32": 0.5, "bfloat16": 4.0, "float16": 4.0}

CANDIDATES = {
    # those beside torch float32 first: a large model is not held in two dtypes at once
    "cpu": (("torch", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"), ("torch", "bfloat16")),
    "cuda": (("torch", "float32"), ("torch", "bfloat16"), ("torch", "float16")),
}

# Of the graphs' own form; 2: what ControlNets add is an input; 3: the decoder's doubling is folded; 4: so is what a
# family's UNet takes beside the text; 5: convolutions with fewer products; 6: what is made of the texts is an input;
# 7: what goes around those products is in bfloat16, too, where that is asked for; 8: LoRAs' factors are inputs;
# 9: fewer products behind a doubling, too, gates in two layers, and a picture's rows share what comes before texts
GRAPHS = 9
ADAPTED_FROM = 1 << 28  # parameters; in a smaller model's step these inputs would be felt (decision 003)

NOT_MEASURED = "not measured yet; an idle server does it, and so does `mezzotint models tune`"


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured: one model on one device. Crosses to the measuring process."""

    id: str
    family: str
    path: str
    sha256: str
    device: str
    threads: int
    cache: str
    width: int  # px
    height: int
    steps: int
    guidance_scale: float
    scheduler: str
    vae: str = ""  # path of another autoencoder than its own


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One executor and dtype as measured. What could not run has no times, and the reason."""

    executor: str
    dtype: str
    ms_per_step: float | None = None  # one image with guidance, alone in its call
    ms_per_step_at_4: float | None = None  # the same, one of four in the call; None too where one fills the cores
    ms_per_image: float | None = None  # one of four (or alone), all steps and the decoding: what ranks
    difference: float | None = None
    reason: str | None = None  # why it is not among those to choose from

    @property
    def is_close(self) -> bool:
        return self.difference is not None and self.difference <= MAX_DIFFERENCE[self.dtype]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Measured on one machine with one set of versions. `ranking` has the fastest that is close enough first."""

    model: str  # digest
    device: str
    machine: str
    threads: int
    versions: dict[str, str]
    ranking: tuple[Candidate, ...]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What a model runs with on a device. `basis` is tuned (measured here), or default."""

    executor: str = "torch"
    dtype: str = "float32"
    basis: str = "default"
    ms_per_step: float | None = None
    ms_per_step_at_4: float | None = None
    difference: float | None = None
    reason: str | None = NOT_MEASURED


def rank(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Those that are close enough by time of an image, then the others in the same order, then what did not run."""
    return tuple(sorted(candidates, key=lambda one: (not one.is_close, one.ms_per_image or float("inf"))))


def choose(profile: Profile | None, executor: str = "auto", dtype: str = "auto") -> Choice:
    """The fastest of what the settings allow. A dtype that was asked for by name needs no likeness to float32."""
    measured = profile.ranking if profile is not None else ()
    allowed = [one for one in measured if executor in ("auto", one.executor) and dtype in ("auto", one.dtype)]
    for one in sorted(allowed, key=lambda one: one.ms_per_image or float("inf")):
        if one.ms_per_image is not None and (one.is_close or dtype != "auto"):
            return Choice(
                executor=one.executor,
                dtype=one.dtype,
                basis="tuned",
                ms_per_step=one.ms_per_step,
                ms_per_step_at_4=one.ms_per_step_at_4,
                difference=one.difference,
                reason=None,
            )
    reason = next((one.reason for one in allowed if one.reason is not None), None)
    if profile is None and needs_measuring(executor, dtype):
        reason = NOT_MEASURED
    return Choice(dtype="float32" if dtype == "auto" else dtype, reason=reason)


def needs_measuring(executor: str, dtype: str) -> bool:
    """Whether the settings leave anything open, or ask for what has to be made first."""
    return executor != "torch" or dtype == "auto"


def file_of(cache: Path, sha256: str, device: str) -> Path:
    return cache / "profiles" / f"{sha256}.{device.replace(':', '-')}.json"


def read(cache: Path, sha256: str, device: str, threads: int) -> Profile | None:
    """None when there is none that was measured on this machine with these versions, or it cannot be read."""
    try:
        found = msgspec.json.decode(file_of(cache, sha256, device).read_bytes(), type=Profile)
    except (OSError, msgspec.MsgspecError):
        return None
    same = (found.model, found.device, found.machine, found.threads) == (sha256, device, machine(), threads)
    return found if same and found.versions == versions() else None


def write(cache: Path, profile: Profile) -> None:
    file = file_of(cache, profile.model, profile.device)
    file.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(file) as draft:
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=2))


def graphs_of(cache: Path, sha256: str) -> Path:
    """Where a model's converted graphs lie: made once for each version of OpenVINO and of what they take."""
    return cache / "openvino" / f"{sha256}-{versions()['openvino']}-{GRAPHS}"


@functools.cache
def versions() -> dict[str, str]:
    return {name: _version(name) for name in ("mezzotint", "torch", "diffusers", "openvino")}


@functools.cache
def machine() -> str:
    return f"{cpu_name()}, {platform.machine()}"


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def built(value: Choice | Profile) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(value)
    return body


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"
