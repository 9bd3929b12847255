"""`mezzotint sessions` as a person uses it, against a real server."""

import json
from pathlib import Path

from tests.process.conftest import RunningServer, wait_for
from tests.process.test_cli import run


def test_sessions_are_listed_shown_watched_and_cancelled(tmp_path: Path, server: RunningServer) -> None:
    at = ("--server", server.url)
    short = server.client.submit(prompt="a short one", steps=1)["id"]
    watched = run("sessions", "watch", short, *at, cwd=tmp_path)
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout.startswith(f"{short}  succeeded  icons  1/1  'a short one'")
    told = [
        json.loads(line) for line in run("sessions", "watch", short, "--json", *at, cwd=tmp_path).stdout.splitlines()
    ]
    assert told[-1]["event"] == "end"
    assert told[-1]["data"]["state"] == "succeeded"

    long = server.client.submit(prompt="a long one", steps=1000)["id"]
    listed = run("sessions", "list", "--active", *at, cwd=tmp_path).stdout
    assert long in listed
    assert short not in listed
    wait_for(lambda: server.client.session(long)["state"] == "running", 60)
    assert run("sessions", "pause", long, *at, cwd=tmp_path).returncode == 0
    wait_for(lambda: server.client.session(long)["state"] == "paused", 60)
    assert run("sessions", "resume", long, *at, cwd=tmp_path).returncode == 0
    assert run("sessions", "cancel", long, *at, cwd=tmp_path).returncode == 0
    ended = run("sessions", "watch", long, *at, cwd=tmp_path)
    assert (ended.returncode, ended.stdout.split()[1]) == (1, "cancelled")
    both = json.loads(run("sessions", "list", "--limit", "2", "--json", *at, cwd=tmp_path).stdout)
    assert [one["id"] for one in both] == [long, short]
    assert json.loads(run("sessions", "show", long, *at, cwd=tmp_path).stdout)["state"] == "cancelled"


def test_what_cannot_be_done_is_one_line(tmp_path: Path, server: RunningServer) -> None:
    cases = [
        (["list"], 3, "--server"),
        (["pause", "ses_nope", "--server", server.url], 2, "ses_nope"),
        (["show", "ses_nope", "--server", server.url], 2, "ses_nope"),
        (["list", "--state", "asleep", "--server", server.url], 2, "state"),
    ]
    for args, code, words in cases:
        done = run("sessions", *args, cwd=tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert words in done.stderr
        assert done.stdout == ""
