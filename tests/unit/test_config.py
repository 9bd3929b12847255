"""Settings as values. Must not start a server."""

from pathlib import Path
from typing import Any

import pytest

from mezzotint.config import PREFIX, Settings, load_settings
from mezzotint.errors import BadSetting


def test_the_database_is_a_file_in_the_data_folder_unless_one_is_named(tmp_path: Path) -> None:
    assert load_settings(data=tmp_path).database_url == f"sqlite:///{tmp_path}/mezzotint.db"
    assert load_settings(database="postgresql://me:secret@here/x").database_url == "postgresql://me:secret@here/x"


def test_an_empty_variable_is_as_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEZZOTINT_THREADS")
    plain = load_settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(f"{PREFIX}{name.upper()}", "")
    assert load_settings() == plain


def test_settings_do_not_show_their_secrets() -> None:
    shown = repr(load_settings(database="postgresql://me:canary@here/x", webhook_secrets="whsec_canary"))
    assert "canary" not in shown


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"port": 99999}, "setting port must be a whole number from 0 to 65535; got 99999"),
        ({"port": "http"}, 'setting port must be a whole number from 0 to 65535; got "http"'),
        ({"memory_bytes": 5}, "setting memory_bytes must be a whole number, 536870912 or more; got 5"),
        ({"retention_days": 0}, "setting retention_days must be a number above 0 and at most 36500; got 0"),
        ({"devices": ("gpu",)}, 'setting devices must be cpu or cuda, a colon and a number, such as cpu:0; got "gpu"'),
        ({"log_level": "loud"}, 'setting log_level must be debug, info, warning or error; got "loud"'),
        ({"hub": "here"}, 'setting hub must be http:// or https:// and a host; got "here"'),
        ({"spare": "perhaps"}, 'setting spare must be true or false; got "perhaps"'),
        ({"dtype": "int4"}, "setting dtype must be one of 'auto', 'float32', 'bfloat16' or 'float16'; got \"int4\""),
    ],
)
def test_what_a_setting_must_be_is_said_in_our_words(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSetting) as caught:
        load_settings(**given)
    assert caught.value.message == words
