"""Settings as values. Must not start a server."""

from pathlib import Path

from mezzotint.config import load_settings


def test_the_database_is_a_file_in_the_data_folder_unless_one_is_named(tmp_path: Path) -> None:
    assert load_settings(data=tmp_path).database_url == f"sqlite:///{tmp_path}/mezzotint.db"
    assert load_settings(database="postgresql://me:secret@here/x").database_url == "postgresql://me:secret@here/x"


def test_settings_do_not_show_their_secrets() -> None:
    shown = repr(load_settings(database="postgresql://me:canary@here/x", webhook_secrets="whsec_canary"))
    assert "canary" not in shown
