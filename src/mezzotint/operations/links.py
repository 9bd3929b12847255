"""Links to a picture that work without a key, for a while. Must not say who may have one."""

import hashlib
import hmac
import secrets
from pathlib import Path

from mezzotint.disk import draft_of, write_new
from mezzotint.operations.parts import Verbs

KEY_BYTES = 32


class LinkVerbs(Verbs):
    """Signs and checks names of pictures."""

    def signature(self, session_id: str, index: int, until: int) -> str:
        """Good for this one picture up to `until`, Unix seconds; also after a restart."""
        text = f"{session_id}/{index}/{until}".encode()
        return hmac.new(_key(self._parts.settings.data / "links.key"), text, hashlib.sha256).hexdigest()

    def is_signed(self, session_id: str, index: int, until: int, signature: str, now: float) -> bool:
        expected = self.signature(session_id, index, until)
        return hmac.compare_digest(expected.encode(), signature.encode()) and now < until


def _key(path: Path) -> bytes:
    """The data folder's own, drawn when it is first needed."""
    if not path.exists():
        with draft_of(path) as draft:
            write_new(draft, secrets.token_bytes(KEY_BYTES))
    return path.read_bytes()
