"""The command line as a person uses it, without a server and with one."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mezzotint.cli import draw
from mezzotint.client import Client
from tests.process.conftest import BIN, RunningServer, picture, wait_for

Done = subprocess.CompletedProcess[str]


def run(*args: str | bytes | Path, cwd: Path, timeout_s: float = 120) -> Done:
    return subprocess.run([BIN, *args], cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)


def test_generate_draws_a_picture_and_twice_the_same(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        done = run("generate", "a slice of pizza", "--seed", "7", "-o", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{name}  seed 7  ")
        assert done.stderr == ""
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    drawn = picture(tmp_path / "a.png")
    assert (drawn.format, drawn.size) == ("PNG", (128, 128))
    assert drawn.info["parameters"].startswith("a slice of pizza\nSteps: ")


def test_a_server_draws_the_same_bytes_as_the_command_alone(tmp_path: Path, server: RunningServer) -> None:
    flags = ("generate", "a boat", "--seed", "9", "--steps", "4")
    alone = run(*flags, "-o", "alone.png", cwd=tmp_path)
    served = run(*flags, "-o", "served.png", "--server", server.url, cwd=tmp_path)
    assert (alone.returncode, served.returncode) == (0, 0), alone.stderr + served.stderr
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "served.png").read_bytes()


def test_a_picture_is_repeated_from_its_file_and_flags_change_it(tmp_path: Path, server: RunningServer) -> None:
    for name, flags in (("one.png", ()), ("one.webp", ("--loras", "blob:0.5", "--negative-prompt", "red"))):
        asked = ("--seed", "11", "--steps", "3", *flags, "-o", name, "--server", server.url)
        made = run("generate", "a (boat)", *asked, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        for at in ((), ("--server", server.url))[name.endswith("webp") :]:
            again = run("generate", "--from", name, "-o", f"again-{name}", *at, cwd=tmp_path)
            assert again.returncode == 0, again.stderr
            assert again.stderr == ""
            assert (tmp_path / f"again-{name}").read_bytes() == (tmp_path / name).read_bytes()
    other = run("generate", "--from", "one.png", "--seed", "12", "--server", server.url, "--json", cwd=tmp_path)
    told = json.loads(other.stdout)["session"]["request"]
    assert (told["prompt"], told["seed"], told["num_inference_steps"]) == ("a (boat)", 12, 3)
    assert (tmp_path / "mezzotint-12.png").read_bytes() != (tmp_path / "one.png").read_bytes()


@pytest.mark.parametrize("dialect", ["/v1/images/generations", "/sdapi/v1/txt2img"])
def test_a_picture_of_any_dialect_is_repeated_from_its_file(
    dialect: str, tmp_path: Path, server: RunningServer
) -> None:
    asked = {"prompt": "a (red:1.3) boat", "steps": 3, "seed": 5, "width": 64, "height": 64}
    answer = httpx2.post(server.url + dialect, json=asked, timeout=60).raise_for_status().json()
    encoded = answer["data"][0]["b64_json"] if "data" in answer else answer["images"][0]
    (tmp_path / "made.png").write_bytes(base64.b64decode(encoded))
    again = run("generate", "--from", "made.png", "-o", "again.png", "--server", server.url, cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert picture(tmp_path / "again.png").tobytes() == picture(tmp_path / "made.png").tobytes()


def test_a_picture_that_others_went_into_is_repeated_with_them_or_not_at_all(
    tmp_path: Path, server: RunningServer
) -> None:
    at = ("--server", server.url)
    assert run("generate", "a boat", "--steps", "3", "-o", "boat.png", *at, cwd=tmp_path).returncode == 0
    canny = '{"model": "icons-canny", "image": "boat.png", "preprocessor": "canny"}'
    for flags, word in ((("--image", "boat.png"), "--image"), (("--controlnets", canny), "--controlnets")):
        made = run("generate", "a ship", "--steps", "4", *flags, "-o", "ship.png", *at, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        refused = run("generate", "--from", "ship.png", "-o", "no.png", *at, cwd=tmp_path)
        assert (refused.returncode, (tmp_path / "no.png").exists()) == (2, False)
        assert refused.stderr.endswith(f"was made with a picture that it does not hold; give it with {word}\n")
        again = run("generate", "--from", "ship.png", *flags, "-o", "again.png", *at, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert (tmp_path / "again.png").read_bytes() == (tmp_path / "ship.png").read_bytes()


def test_a_picture_whose_prompt_cannot_be_read_is_not_drawn_without_one(tmp_path: Path, server: RunningServer) -> None:
    made = PngInfo()
    inputs = {"seed": 1, "steps": 2, "positive": ["2", 0]}
    graph = {"1": {"class_type": "KSampler", "inputs": inputs}, "2": {"class_type": "Mystery", "inputs": {}}}
    made.add_text("prompt", json.dumps(graph))
    Image.new("RGB", (8, 8)).save(tmp_path / "comfy.png", pnginfo=made)
    asked = ("generate", "--from", "comfy.png", "--server", server.url, "-o", "again.png")
    refused = run(*asked, cwd=tmp_path)
    assert (refused.returncode, "prompt" in refused.stderr) == (2, True)
    assert run(*asked, "a boat", cwd=tmp_path).returncode == 0


def test_names_and_formats_follow_the_flags(tmp_path: Path, server: RunningServer) -> None:
    at = ("--server", server.url, "--steps", "1")
    assert run("generate", "x", "--seed", "5", "-n", "2", *at, cwd=tmp_path).returncode == 0
    assert run("generate", "x", "--seed", "6", *at, cwd=tmp_path).returncode == 0
    assert run("generate", "x", "-o", "y.jpg", *at, cwd=tmp_path).returncode == 0
    found = {path.name: picture(path).format for path in tmp_path.iterdir()}
    expected = {"mezzotint-5-0.png": "PNG", "mezzotint-5-1.png": "PNG", "mezzotint-6.png": "PNG", "y.jpg": "JPEG"}
    assert found == expected


def test_what_a_command_prints_with_json_can_be_read_by_programs(tmp_path: Path, server: RunningServer) -> None:
    done = run("generate", "x", "--steps", "1", "--json", "--server", server.url, cwd=tmp_path)
    told = json.loads(done.stdout)
    assert told["session"]["state"] == "succeeded"
    assert (tmp_path / told["files"][0]).exists()
    assert json.loads(run("devices", "--json", "--server", server.url, cwd=tmp_path).stdout)[0]["id"] == "cpu:0"
    for at in ((), ("--server", server.url)):
        assert json.loads(run("models", "show", "quick", "--json", *at, cwd=tmp_path).stdout)["id"] == "quick"
    listed = json.loads(run("models", "list", "--json", cwd=tmp_path).stdout)
    assert [one["id"] for one in listed] == ["blob", "icons", "icons-canny", "monochrome", "quick"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["generate", "x", "--steps", "-3"], 2, "num_inference_steps must be a whole number from 1 to 1000; got -3"),
        (["generate", "x", "--stpes", "3"], 2, "--stpes is not a flag; did you mean --steps?"),
        (["generate", "x", "--steps", "many"], 2, "--steps"),
        (["generate"], 2, "prompt"),
        (["generate", "--from", "no.png"], 2, "--from no.png cannot be read"),
        (["generate", "--from", __file__], 2, "does not say how it was made"),
        (["generate", "x", "--width", "65"], 2, "try 64x128"),
        (["generate", "x", "--model", "icnos"], 2, "the nearest is 'icons'"),
        (["generate", "x", "-o", "x.gif"], 2, ".png"),
        (["generate", "x", "-o", "no/such/x.png"], 2, "does not exist"),
        (["generate", "x", "--metadata", "{"], 2, "--metadata"),
        (["generate", "x", "--metadata", '{"x": NaN}'], 2, "--metadata is not JSON"),
        (["generate", "x", "--metadata", '{"x": 1, "x": 2}'], 2, "--metadata is not JSON: the name 'x' comes twice"),
        (["generate", "x", "--metadata", "[" * 100_000], 2, "--metadata is not JSON"),
        (["generate", b"\xff", "--server", "http://127.0.0.1:9"], 2, "written as JSON"),
        (["generate", "x", "--server", "http://127.0.0.1:9"], 3, "mezzotint serve"),
        (["generate", "x", "--server", "http://[::1"], 2, "http://HOST:PORT; got 'http://[::1'"),
        (["sessions", "list", "--server", "http://"], 2, "http://HOST:PORT; got 'http://'"),
        (["generate", "x", "-o", "/tmp/."], 2, "is a folder"),
        (["serve", "--device", "gpu:7"], 2, "setting devices"),
        (["keys", "create", "--data", "k", "--expires-days", "0"], 2, "above 0 and at most 36500; got 0"),
        (["keys", "create", "--data", "k", "--expires-days", "nan"], 2, "got nan"),
        (["keys", "create", "--data", "k", "a\nb"], 2, "one line of printable text"),
        (["nope"], 2, "nope"),
    ],
)
def test_bad_use_is_one_line_and_writes_nothing(tmp_path: Path, args: list[str | bytes], code: int, words: str) -> None:
    done = run(*args, cwd=tmp_path)
    assert done.returncode == code
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_opens_nothing_is_told_with_where_it_comes_from() -> None:
    asked = [str(BIN), "devices", "--server", "http://127.0.0.1:9"]
    wrong = os.environ | {"MEZZOTINT_API_KEY": "a b"}
    done = subprocess.run(asked, env=wrong, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.endswith("; commands take it from MEZZOTINT_API_KEY\n")) == (2, True)


def test_an_answer_that_the_disk_does_not_take_is_one_line_and_a_failure(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([BIN, "models", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "mezzotint: the output cannot be written or read: No space left on device\n",
    )


def test_ctrl_c_cancels_the_session_on_the_server(tmp_path: Path, server: RunningServer) -> None:
    process = subprocess.Popen(
        [BIN, "generate", "long", "--steps", "1000", "--server", server.url], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    while not (active := list(server.client.sessions(active=True))):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert server.client.wait(active[0]["id"])["state"] == "cancelled"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_cancels_what_a_bench_still_draws_on_the_server(tmp_path: Path, server: RunningServer) -> None:
    process = subprocess.Popen(
        [BIN, "bench", "--steps", "20", "-n", "100", "--server", server.url], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(list(server.client.sessions(active=True))) > 20, 60)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    wait_for(lambda: not list(server.client.sessions(active=True)), 5)


def test_ctrl_c_before_the_answer_cancels_what_was_accepted(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, accepted = Client.submit, []

    def interrupted(client: Client, **asked: Any) -> Any:
        accepted.append(submit(client, **asked)["id"])
        if len(accepted) == 1:
            raise KeyboardInterrupt
        return server.client.session(accepted[-1])

    monkeypatch.setattr(Client, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw.on_server(server.url, {"prompt": "long", "steps": 1000}, None, None)
    assert accepted[0] == accepted[1]
    assert server.client.wait(accepted[0])["state"] == "cancelled"


def test_ctrl_c_without_a_server_leaves_no_process(tmp_path: Path) -> None:
    process = subprocess.Popen([BIN, "generate", "long", "--steps", "1000"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (children := _children(process.pid)) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert children
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_a_command_still_reads_its_source_is_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "mezzotint", "doctor", "--data", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        next(line for line in running.stderr if "typer" in line)  # each is told once it was read
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
    assert running.returncode == 130
    assert "Traceback" not in rest


def test_devices_and_doctor_say_what_is_here(tmp_path: Path) -> None:
    done = run("devices", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cpu:0  ")
    done = run("doctor", "--data", tmp_path / "data", cwd=tmp_path)
    assert done.returncode == 0
    assert "ok   model icons: sd" in done.stdout
    assert "ok   model quick: lora" in done.stdout
    wrong = {"MEZZOTINT_MODELS": str(tmp_path / "nowhere"), "MEZZOTINT_DEFAULT_MODEL": "icnos"}
    done = subprocess.run([BIN, "doctor"], env=os.environ | wrong, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"BAD  models folder {tmp_path / 'nowhere'}: is no folder" in done.stdout
    assert "BAD  default model: 'icnos' is no checkpoint here" in done.stdout
    assert done.stdout.endswith("there are: icons\n")
    done = run("doctor", "--models", tmp_path / "nowhere", cwd=tmp_path)
    assert f"BAD  models folder {tmp_path / 'nowhere'}: is no folder" in done.stdout
    lora = os.environ | {"MEZZOTINT_DEFAULT_MODEL": "quick"}
    done = subprocess.run([BIN, "doctor"], env=lora, capture_output=True, text=True, check=False)
    assert "BAD  default model: 'quick' is no checkpoint here" in done.stdout
    other = os.environ | {"MEZZOTINT_DEVICES": "cpu:0,cuda:63"}
    done = subprocess.run([BIN, "doctor"], env=other, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"BAD  devices: cpu:0, cuda:63; torch \S+ sees \d+ CUDA devices: install a torch", done.stdout)
    assert not (tmp_path / "data").exists()


def test_a_model_that_cannot_be_used_is_listed_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "models" / "broken"
    broken.mkdir(parents=True)
    (broken / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    done = run("models", "list", "--models", tmp_path / "models", cwd=tmp_path)
    assert "broken  checkpoint  invalid: its pipeline 'FluxPipeline'" in done.stdout
    assert "icons  checkpoint  sd  128x128" in done.stdout
    done = run("generate", "x", "--model", "broken", "--models", tmp_path / "models", cwd=tmp_path)
    assert (done.returncode, "cannot be used" in done.stderr) == (2, True)


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "mezzotint", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mezzotint 0.")


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert os.path.isdir(f"/proc/{pid}")
    return [int(child) for child in found]


def test_a_request_is_checked_without_being_run(tmp_path: Path, server: RunningServer) -> None:
    (tmp_path / "good.json").write_text(json.dumps({"prompt": "a boat", "GuidanceScale": 3, "quality": 1}))
    (tmp_path / "bad.json").write_text(json.dumps({"prompt": "a boat", "steps": 0, "width": 63}))
    (tmp_path / "odd.json").write_text(json.dumps({"prompt": "a boat", "self": 1}))
    (tmp_path / "right.json").write_text(json.dumps({"prompt": "a boat", "steps": 2}))
    for at in ((), ("--server", server.url)):
        bad = run("validate", "bad.json", *at, cwd=tmp_path)
        assert bad.returncode == 2
        assert bad.stdout.startswith("not valid: 2 faults\n")
        assert "num_inference_steps must be a whole number from 1 to 1000" in bad.stdout
        assert "width 63" in bad.stdout
        assert "self is not a field of a request" in run("validate", "odd.json", *at, cwd=tmp_path).stdout
        right = run("validate", "right.json", "--json", *at, cwd=tmp_path)
        assert right.returncode == 0, right.stderr
        told = json.loads(right.stdout)
        assert (told["valid"], told["resolved"]["num_inference_steps"]) == (True, 2)
    assert "quality is not a field" in run("validate", "good.json", "--server", server.url, cwd=tmp_path).stdout
    piped = subprocess.run(
        [BIN, "validate", "-", "--server", server.url], input='{"prompt": "x"}', capture_output=True, text=True
    )
    assert (piped.returncode, piped.stdout.splitlines()[0]) == (0, "valid")
    for name, text in (
        ("none.json", None),
        ("list.json", "[]"),
        ("half.json", "{"),
        ("twice.json", '{"prompt": "x", "prompt": "y"}'),
        ("deep.json", '{"prompt": "x", "metadata": ' + "[" * 40 + "]" * 40 + "}"),
        ("deeper.json", "[" * 100_000),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        refused = run("validate", name, cwd=tmp_path)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
        assert name in refused.stderr


def test_bench_tells_what_it_measured(tmp_path: Path, server: RunningServer) -> None:
    done = run("bench", "--steps", "2", "-n", "4", "--server", server.url, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["model"], told["width"], told["steps"], told["images"]) == ("icons", 128, 2, 4)
    assert 0 < told["alone_s"] < told["together_s"] * 4
    assert told["pictures_per_minute"] == pytest.approx(60 * 4 / told["together_s"], rel=0.01)
    alone = run("bench", "--steps", "1", "-n", "2", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert "2 at once" in alone.stdout


def test_the_shell_completes_commands(tmp_path: Path) -> None:
    asked = {"_MEZZOTINT_COMPLETE": "complete_bash", "COMP_WORDS": "mezzotint se", "COMP_CWORD": "1"}
    done = subprocess.run([BIN], env=os.environ | asked, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == {"serve", "sessions"}
