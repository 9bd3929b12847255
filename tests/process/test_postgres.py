"""A real server whose sessions are in Postgres. Must not test what the contract suite tests of every store."""

import os
import subprocess
from pathlib import Path

import httpx2

from tests.contract.backends import Postgres, PostgresServer
from tests.contract.conftest import postgres, postgres_server  # noqa: F401  fixtures
from tests.process.conftest import BIN, RunningServer, wait_for


def test_a_server_on_postgres_survives_kill_9_owns_its_database_and_keeps_the_password_to_itself(
    tmp_path: Path,
    postgres: Postgres,  # noqa: F811
    postgres_server: PostgresServer,  # noqa: F811
) -> None:
    os.environ["MEZZOTINT_DATABASE"] = postgres.url
    try:
        with RunningServer(tmp_path / "data") as server:
            server.worker_pid()
            session_id = server.client.submit(prompt="x", steps=40)["id"]
            wait_for(lambda: server.client.session(session_id)["progress"]["step"] > 0, 60)
            command: list[str | Path] = [BIN, "serve", "--port", "0", "--data", tmp_path / "other"]
            second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            assert second.returncode == 1
            assert "in use by another server" in second.stderr
            server.kill()
            drawn = tmp_path / "alone.png"  # meanwhile somebody draws without a server, with the same environment
            subprocess.run([BIN, "generate", "a cat", "--steps", "2", "-o", drawn], check=True, timeout=120)
            server.start()
            assert [one["id"] for one in server.client.sessions()] == [session_id]
            assert server.client.wait(session_id)["state"] == "succeeded"
            assert not (server.data / "mezzotint.db").exists()
            assert httpx2.get(f"{server.url}/readyz").status_code == 200
            postgres_server.stop("immediate")
            assert httpx2.get(f"{server.url}/readyz").status_code == 503
            postgres_server.start()
            wait_for(lambda: httpx2.get(f"{server.url}/readyz").status_code == 200, 30)
            assert "canary-secret" not in server.log.read_text() + second.stderr
    finally:
        del os.environ["MEZZOTINT_DATABASE"]
