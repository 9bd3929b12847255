"""A server that starts again loads what was used most before, unasked, and what was unloaded stays so."""

import time
from pathlib import Path

from tests.models import build_sd
from tests.process.conftest import RunningServer, wait_for


def resident(server: RunningServer) -> set[str]:
    return {name for worker in server.client.workers() for name in worker["resident_models"]}


def test_what_was_used_is_loaded_after_a_restart_and_what_was_unloaded_is_not(tmp_path: Path) -> None:
    for name in ("much", "little"):
        build_sd(tmp_path / "models" / name, seed=len(name))
    with RunningServer(tmp_path / "data", "--models", str(tmp_path / "models")) as server:
        for name, times in (("much", 3), ("little", 1)):
            for seed in range(times):
                sent = server.client.submit(model=name, prompt="a", seed=seed, steps=1, width=16, height=16)
                assert server.client.wait(sent["id"])["state"] == "succeeded"
        server.client.unload_model("little")
        assert resident(server) == {"much"}
        time.sleep(1.5)  # three looks at what to load
        assert resident(server) == {"much"}, "unloaded by hand, loaded again unasked"
        server.kill()
        server.start()
        wait_for(lambda: resident(server) == {"much", "little"}, 30)
