"""API keys as values: how one is made and told from others, what it may do, how much. Must not read a database."""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Literal, get_args

Scope = Literal["submit", "read-own", "read-all", "models", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
USUAL: tuple[Scope, ...] = ("submit", "read-own")  # of a key that is made without a word about it

PREFIX = "mz_"
_ID_CHARACTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # those that are not mistaken for others
_ID_LENGTH, _SECRET_BYTES = 8, 32
_LENGTH = len(PREFIX) + _ID_LENGTH + 1 + 43  # 32 bytes are 43 characters of base64url


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one key may take up. A request over one of them is refused with its name."""

    running: int = 4  # sessions in workers at one time; more of them wait
    queued: int = 100
    requests_per_minute: int = 120
    pixel_steps_per_minute: int = 10_000_000_000  # width x height x steps x images
    stored_bytes: int = 10_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A key as it is kept: everything but the secret."""

    id: str
    name: str
    sha256: str = field(repr=False)  # of the whole text
    scopes: tuple[Scope, ...] = USUAL
    limits: Limits = field(default_factory=Limits)
    created_at: float  # Unix seconds
    expires_at: float | None = None
    revoked_at: float | None = None

    def usable(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def draw() -> tuple[str, str]:
    """A new key: its id, which may be shown, and its whole text, which is shown once."""
    key_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
    secret = base64.urlsafe_b64encode(secrets.token_bytes(_SECRET_BYTES)).rstrip(b"=").decode()
    return key_id, f"{PREFIX}{key_id}_{secret}"


def id_of(text: str) -> str | None:
    """The id that a key's text names, None for what is not a key's text."""
    start, end = len(PREFIX), len(PREFIX) + _ID_LENGTH
    key_id = text[start:end]
    is_key = len(text) == _LENGTH and text.isascii() and text.startswith(PREFIX) and text[end] == "_"
    return key_id if is_key and all(character in _ID_CHARACTERS for character in key_id) else None


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def opens(text: str, key: ApiKey | None, now: float) -> bool:
    """Whether the text is this key's and it is in force. Takes as long for an unknown key as for a wrong secret."""
    same = hmac.compare_digest(digest(text), key.sha256 if key else "0" * 64)
    return same and key is not None and key.usable(now)
