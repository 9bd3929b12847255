"""API keys as values. Must not open a database."""

import pytest

from mezzotint.api_keys import ApiKey, digest, draw, id_of, opens


def key(text: str, **changes: object) -> ApiKey:
    given = {"id": id_of(text), "name": "n", "sha256": digest(text), "created_at": 0.0} | changes
    return ApiKey(**given)  # type: ignore[arg-type]


def test_a_key_is_mz_its_id_and_256_bits() -> None:
    key_id, text = draw()
    assert text.startswith(f"mz_{key_id}_")
    assert (len(key_id), len(text)) == (8, 55)
    assert id_of(text) == key_id
    assert len({draw()[1] for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "text", ["", "mz_", "sk-abc", "mz_abcdefgh_short", "x" * 55, "mz_abcdefg'_" + "a" * 43, "ü" * 55]
)
def test_what_is_no_key_names_no_id(text: str) -> None:
    assert id_of(text) is None


def test_only_its_own_text_opens_a_key_and_only_while_it_is_in_force() -> None:
    _, text = draw()
    _, other = draw()
    assert opens(text, key(text), 10.0)
    assert not opens(other, key(text), 10.0)
    assert not opens(text, None, 10.0)
    assert not opens(text, key(text, revoked_at=5.0), 10.0)
    assert opens(text, key(text, expires_at=10.5), 10.0)
    assert not opens(text, key(text, expires_at=10.0), 10.0)
