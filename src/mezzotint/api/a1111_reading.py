"""Reads one object of AUTOMATIC1111's fields: by type, by range, and what of it nobody asked about. Must not do I/O."""

from collections.abc import Callable, Iterable
from typing import Any

from mezzotint.errors import Fault


class Fields:
    """The fields of one object. null is not sent. Faults gather in `faults`, with `path` before their names."""

    def __init__(self, sent: dict[str, Any], path: str = "") -> None:
        self._sent = {name: value for name, value in sent.items() if value is not None}
        self._path, self._asked = path, set[str]()
        self.faults: list[Fault] = []

    def get(self, *names: str) -> Any:
        """The first that was sent, any type; None when none was."""
        self._asked.update(names)
        return next((self._sent[name] for name in names if name in self._sent), None)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if value is None or (is_whole and low <= value <= high):
            return default if value is None else int(value)
        self.wrong(name, f"must be a whole number from {low} to {high}; got {str(value)[:64]!r}")
        return default

    def number(self, name: str, default: float, low: float, high: float, *others: str) -> float:
        value = self.get(name, *others)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or (is_number and low <= value <= high):
            return default if value is None else float(value)
        self.wrong(name, f"must be a number from {low:g} to {high:g}; got {str(value)[:64]!r}")
        return default

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None or isinstance(value, bool) or value in (0, 1):
            return default if value is None else bool(value)
        self.wrong(name, f"must be true or false; got {str(value)[:64]!r}")
        return default

    def text(self, name: str, default: str, *others: str) -> str:
        value = self.get(name, *others)
        if value is None or isinstance(value, str):
            return default if value is None else value
        self.wrong(name, f"must be a text; got {str(value)[:64]!r}")
        return default

    def table(self, name: str) -> dict[str, Any]:
        value = self.get(name)
        if value is None or isinstance(value, dict):
            return value or {}
        self.wrong(name, "must be an object")
        return {}

    def neutral(self, names: Iterable[str], is_harmless: Callable[[Any], bool], way_out: str) -> None:
        """Only values that change nothing pass; any other is refused by name, so that nothing is dropped in silence."""
        for name in names:
            value = self.get(name)
            if value is not None and not is_harmless(value):
                message = f"{self._path}{name} {str(value)[:64]!r} is not done here; {way_out}"
                self.faults.append(Fault(field=self._path + name, code="unsupported_field", message=message))

    def free(self, *names: str) -> None:
        """Taken at any value: they do not concern the picture."""
        self._asked.update(names)

    def idle(self, name: str) -> None:
        """Known, and nothing is done with it: it counts as unknown unless it is empty."""
        if not self._sent.get(name):
            self._asked.add(name)

    def wrong(self, name: str, rule: str, code: str = "invalid_value") -> None:
        field = self._path + name
        self.faults.append(Fault(field=field, code=code, message=f"{field} {rule}"))

    def unknown(self) -> tuple[str, ...]:
        return tuple(self._path + name for name in self._sent if name not in self._asked)
