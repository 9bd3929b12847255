"""The rule that a value breaks, in our words, of what pydantic says of it. Must not know a field by name."""

import json
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from pydantic.fields import FieldInfo

WITHOUT_NUL = r"^[^\x00]*$"  # Postgres holds none, nor looks for a text beside one
PRINTABLE = "^[ -~]{1,255}$"
SESSION_ID = "^ses_[0-9A-Z]{26}$"
HUB = "^https?://[^/]+$"
LOG_LEVEL = "^(debug|info|warning|error)$"
DEVICE = r"^(cpu|cuda):\d{1,3}$"

_PATTERNS = {
    WITHOUT_NUL: "a text without the character NUL (\\u0000), which can be left out",
    PRINTABLE: "1 to 255 printable ASCII characters, or left out",
    SESSION_ID: "the next_cursor of a page, or left out",
    HUB: "http:// or https:// and a host",
    LOG_LEVEL: "debug, info, warning or error",
    DEVICE: "cpu or cuda, a colon and a number, such as cpu:0",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a number",
    "string": "a text",
    "bool": "true or false",
    "dict": "an object",
    "list": "a list",
    "tuple": "a list",
    "path": "a path",
}


def broken(item: Any, field: FieldInfo) -> str:
    """What one of pydantic's errors is about, to stand behind the field's name: `must be a list; got "x"`."""
    found = item["ctx"]["actual_length"] if item["type"] == "too_long" else None
    return f"must be {_rule(item, field)}; got {_shown(item['input']) if found is None else found}"


def _rule(item: Any, field: FieldInfo) -> str:
    kind = item["type"]
    if kind == "literal_error":
        return f"one of {item['ctx']['expected']}"
    if kind == "string_unicode":
        return "a text of whole Unicode characters"
    if kind == "string_too_long":
        return f"a text of at most {item['ctx']['max_length']} characters"
    if kind == "string_pattern_mismatch":
        return _PATTERNS[item["ctx"]["pattern"]]
    rules = _of_items(field) if item["loc"] and isinstance(item["loc"][-1], int) else field.metadata
    low = next((_number(m.ge) for m in rules if isinstance(m, Ge)), None)
    above = next((f"above {_number(m.gt)}" for m in rules if isinstance(m, Gt)), None)
    high = next((_number(m.le) for m in rules if isinstance(m, Le)), None)
    shortest = next((m.min_length for m in rules if isinstance(m, MinLen)), None)
    longest = next((m.max_length for m in rules if isinstance(m, MaxLen)), None)
    whole = "a whole number" if "int" in str(field.annotation) else "a number"
    if high is not None:
        return f"{whole} from {low} to {high}" if low is not None else f"{whole} {above} and at most {high}"
    if low is not None:
        return f"{whole}, {low} or more"
    if shortest is not None:
        size = f"a list of {shortest} to {longest}" if longest is not None else f"a list of {shortest} or more"
        return size if field.is_required() else f"{size}, or left out"
    if longest is not None:
        is_list = "list" in str(field.annotation)
        return f"a list of at most {longest}" if is_list else f"a text of at most {longest} characters"
    return next((text for name, text in _KINDS.items() if kind.startswith(name)), "an object")


def _of_items(field: FieldInfo) -> list[Any]:
    """What one value of a list must be, beside its type."""
    return [
        rule
        for each in get_args(field.annotation)
        for part in getattr(each, "__metadata__", ())
        for rule in part.metadata
    ]


def _number(value: Any) -> str:
    if value == 2**63 - 1:
        return "2^63-1"
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=True)
    return text if len(text) <= 80 else text[:77] + "..."
