"""The stored choice: what ranks first, what the settings allow, when a measurement counts no more."""

from pathlib import Path

import msgspec
import pytest

from mezzotint import profiles
from mezzotint.profiles import Candidate, Choice, Profile
from mezzotint.tuning import Choices
from mezzotint.workers import wire
from mezzotint.workers.base import Seat

MODEL = wire.ModelRef(id="tiny", kind="checkpoint", family="sd", path="", bytes=1, sha256="a" * 64)


def candidate(executor: str, dtype: str, ms: float | None, difference: float | None = 0.0) -> Candidate:
    return Candidate(
        executor=executor,
        dtype=dtype,
        ms_per_step=ms,
        ms_per_step_at_4=ms,
        ms_per_image=ms,
        difference=difference,
        reason=None if ms is not None else "openvino cannot be imported",
    )


TORCH, OPENVINO = candidate("torch", "float32", 40), candidate("openvino", "float32", 20)
CLOSE, FAR = candidate("openvino", "bfloat16", 10, 3.9), candidate("openvino", "bfloat16", 10, 4.1)
TORCH_BF16 = candidate("torch", "bfloat16", 30, 0.3)
ABSENT = candidate("openvino", "float32", None, None)


def profile(*candidates: Candidate) -> Profile:
    return Profile(
        model=MODEL.sha256,
        device="cpu:0",
        machine=profiles.machine(),
        threads=2,
        versions=profiles.versions(),
        ranking=profiles.rank(candidates),
    )


def chosen(choice: Choice) -> tuple[str, str, str]:
    return choice.executor, choice.dtype, choice.basis


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ((TORCH, OPENVINO), OPENVINO),
        ((TORCH, OPENVINO, CLOSE), CLOSE),
        ((TORCH, OPENVINO, FAR), OPENVINO),
        ((TORCH, ABSENT), TORCH),
    ],
)
def test_the_fastest_that_keeps_pictures_alike_is_chosen(
    candidates: tuple[Candidate, ...], expected: Candidate
) -> None:
    made = profile(*candidates)
    assert made.ranking[0] == expected
    assert chosen(profiles.choose(made)) == (expected.executor, expected.dtype, "tuned")


@pytest.mark.parametrize(
    ("executor", "dtype", "expected"),
    [
        ("torch", "auto", ("torch", "bfloat16", "tuned")),
        ("auto", "float32", ("openvino", "float32", "tuned")),
        ("openvino", "bfloat16", ("openvino", "bfloat16", "tuned")),  # asked for by name: likeness is not a condition
        ("auto", "float16", ("torch", "float16", "default")),
    ],
)
def test_settings_narrow_the_choice(executor: str, dtype: str, expected: tuple[str, str, str]) -> None:
    assert chosen(profiles.choose(profile(TORCH, OPENVINO, FAR, TORCH_BF16), executor, dtype)) == expected


def test_what_cannot_run_is_explained() -> None:
    choice = profiles.choose(profile(TORCH, ABSENT), "openvino", "float32")
    assert chosen(choice) == ("torch", "float32", "default")
    assert choice.reason == "openvino cannot be imported"


def test_before_any_measurement_torch_float32_serves() -> None:
    assert profiles.choose(None) == Choice(reason=profiles.NOT_MEASURED)
    assert profiles.choose(None, "torch", "float32").reason is None
    assert not profiles.needs_measuring("torch", "float32")


def test_a_stored_profile_comes_back_as_written(tmp_path: Path) -> None:
    made = profile(TORCH, OPENVINO, ABSENT)
    profiles.write(tmp_path, made)
    assert profiles.read(tmp_path, MODEL.sha256, "cpu:0", 2) == made
    assert [file.suffix for file in (tmp_path / "profiles").iterdir()] == [".json"]
    assert profiles.read(tmp_path, MODEL.sha256, "cpu:0", 3) is None, "measured with two threads"
    assert profiles.read(tmp_path, MODEL.sha256, "cuda:0", 2) is None


@pytest.mark.parametrize(
    "changes", [{"versions": {"torch": "1.0"}}, {"machine": "another"}, {"model": "b" * 64}], ids=str
)
def test_a_measurement_from_elsewhere_does_not_count(tmp_path: Path, changes: dict[str, object]) -> None:
    profiles.write(tmp_path, profile(TORCH, OPENVINO))
    file = profiles.file_of(tmp_path, MODEL.sha256, "cpu:0")
    file.write_bytes(msgspec.json.encode(msgspec.to_builtins(profile(TORCH, OPENVINO)) | changes))
    assert profiles.read(tmp_path, MODEL.sha256, "cpu:0", 2) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ranking": 3}'])
def test_a_file_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    profiles.write(tmp_path, profile(TORCH))
    profiles.file_of(tmp_path, MODEL.sha256, "cpu:0").write_text(text)
    assert profiles.read(tmp_path, MODEL.sha256, "cpu:0", 2) is None


def test_a_choice_is_adopted_only_when_told_so(tmp_path: Path) -> None:
    choices = Choices(tmp_path, 2)
    assert choices.ref(MODEL, "cpu:0") == MODEL
    profiles.write(tmp_path, profile(TORCH, OPENVINO))
    assert choices.ref(MODEL, "cpu:0") == MODEL, "it is loaded as it was"
    assert choices.adopt(MODEL, "cpu:0")
    assert not choices.adopt(MODEL, "cpu:0")
    adopted = choices.ref(MODEL, "cpu:0")
    assert (adopted.executor, adopted.dtype) == ("openvino", "float32")
    assert Path(adopted.graphs).is_relative_to(tmp_path / "openvino")
    assert choices.of("tiny", MODEL.sha256, "cpu:0").ms_per_step == 20


def test_a_session_that_began_in_one_dtype_stays_in_it(tmp_path: Path) -> None:
    profiles.write(tmp_path, profile(TORCH, CLOSE))
    choices = Choices(tmp_path, 2)
    assert choices.ref(MODEL, "cpu:0").dtype == "bfloat16"
    again = choices.ref(MODEL, "cpu:0", dtype="float32")
    assert (again.executor, again.dtype) == ("torch", "float32")


def test_a_deterministic_session_asks_for_float32_of_torch_and_leaves_openvino_to_its_twin(tmp_path: Path) -> None:
    for ranking, executor, dtype in ((TORCH_BF16, "torch", "float32"), (OPENVINO, "openvino", "float32")):
        profiles.write(tmp_path, profile(TORCH, ranking))
        asked = Choices(tmp_path, 2).ref(MODEL, "cpu:0", deterministic=True)
        assert (asked.executor, asked.dtype) == (executor, dtype)


def seat(kind: str, budget_bytes: int, dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> Seat:
    facts = wire.DeviceFacts(
        id=f"{kind}:0",
        kind=kind,
        name="x",
        memory_total_bytes=budget_bytes,
        memory_budget_bytes=budget_bytes,
        dtypes=dtypes,
        driver=None,
        threads=2,
        base_bytes=0,
    )
    return Seat(device=f"{kind}:0", facts=facts)


@pytest.mark.parametrize(
    ("there", "dtype"),
    [
        (seat("cpu", 32 << 30), "float32"),
        (seat("cpu", 12 << 30), "bfloat16"),
        (seat("cuda", 80 << 30), "float32"),  # until it is measured, for which there is room
        (seat("cuda", 24 << 30), "bfloat16"),
        (seat("cuda", 24 << 30, ("float32", "float16")), "float16"),
    ],
)
def test_a_model_too_large_for_float32_runs_in_half_precision(tmp_path: Path, there: Seat, dtype: str) -> None:
    large, device = msgspec.structs.replace(MODEL, parameters=7 << 29), there.device
    choices = Choices(tmp_path, 2, devices={device: there})
    assert choices.ref(large, device).dtype == dtype
    assert ("too much memory" in (choices.of(large.id, large.sha256, device).reason or "")) == (dtype != "float32")
    assert choices.ref(large, device, deterministic=True).dtype == dtype
    assert Choices(tmp_path, 2, dtype="float32", devices={device: there}).ref(large, device).dtype == "float32"


def test_what_fits_a_device_is_decided_when_its_worker_has_told(tmp_path: Path) -> None:
    large, there = msgspec.structs.replace(MODEL, parameters=7 << 29), Seat(device="cuda:0")
    choices = Choices(tmp_path, 2, devices={"cuda:0": there})
    assert choices.ref(large, "cuda:0").dtype == "float32"
    there.facts = seat("cuda", 24 << 30).facts
    assert choices.ref(large, "cuda:0").dtype == "bfloat16"


def test_what_is_chosen_before_a_model_is_hashed_is_not_adopted(tmp_path: Path) -> None:
    choices = Choices(tmp_path, 2)
    unread = msgspec.structs.replace(MODEL, sha256=f"unread:{MODEL.id}")
    assert choices.ref(unread, "cpu:0").executor == "torch"
    profiles.write(tmp_path, profile(TORCH, OPENVINO))
    assert choices.ref(MODEL, "cpu:0").executor == "openvino"


def test_what_was_measured_of_weights_says_nothing_of_others_that_come_in_their_place(tmp_path: Path) -> None:
    profiles.write(tmp_path, profile(TORCH, OPENVINO))
    choices = Choices(tmp_path, 2)
    assert choices.ref(MODEL, "cpu:0").executor == "openvino"
    replaced = msgspec.structs.replace(MODEL, sha256="e" * 64)
    assert choices.ref(replaced, "cpu:0") == replaced
    choices.distrust(MODEL, "cpu:0", "a worker was lost")
    assert choices.of(replaced.id, replaced.sha256, "cpu:0").reason == profiles.NOT_MEASURED


def test_what_a_worker_died_of_is_not_tried_again(tmp_path: Path) -> None:
    profiles.write(tmp_path, profile(TORCH, OPENVINO))
    choices = Choices(tmp_path, 2)
    assert choices.ref(MODEL, "cpu:0").executor == "openvino"
    choices.distrust(MODEL, "cpu:0", "a worker was lost")
    assert choices.ref(MODEL, "cpu:0") == MODEL
    assert choices.of("tiny", MODEL.sha256, "cpu:0").reason == "a worker was lost"
