"""A few kills of what `make torture` does many of."""

from pathlib import Path

from tests.torture.run import torture


def test_workers_and_servers_killed_under_load_cost_no_session_and_no_picture(tmp_path: Path) -> None:
    counts, faults = torture(tmp_path / "data", worker_kills=2, server_kills=1, seed=1, at_once=3)
    assert faults == []
    assert counts["succeeded"] == counts["sessions"] >= 3
    assert counts["attempts"] > counts["sessions"]
