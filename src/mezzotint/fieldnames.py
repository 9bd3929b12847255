"""Field names in the three spellings: snake_case, camelCase, PascalCase. Must not touch a value or a caller's own keys.

Reading folds every spelling to one key; writing spells the contract's snake_case names as a caller asks for them.
"""

from functools import lru_cache
from typing import Any, Literal, get_args

Case = Literal["snake", "camel", "pascal"]
CASES: tuple[Case, ...] = get_args(Case)

# Words that are written in their own way: at the start of a camelCase name, and everywhere else.
_PROPER = {
    "lora": ("lora", "LoRA"),
    "loras": ("loras", "LoRAs"),
    "controlnet": ("controlNet", "ControlNet"),
    "controlnets": ("controlNets", "ControlNets"),
}

# Fields whose whole value is somebody else's: a caller's metadata, and options by the names a preprocessor gives them.
_FOREIGN = frozenset({"metadata", "options"})
# Fields whose keys are ids or values of an enum; what lies below them is ours again.
_KEYED = frozenset({"counts", "errors", "executors", "states"})


def fold(name: str) -> str:
    """What all spellings of a name have in common."""
    return name.replace("_", "").lower()


@lru_cache(4096)
def spell(name: str, case: Case) -> str:
    """A snake_case name in another case. What is no plain name, such as a path, stays as it is."""
    if case == "snake" or not name.isidentifier():
        return name
    first, *rest = name.split("_")
    start = _PROPER.get(first, (first, first[:1].upper() + first[1:]))[CASES.index(case) - 1]
    return start + "".join(_PROPER.get(word, ("", word[:1].upper() + word[1:]))[1] for word in rest)


def spelt(body: Any, case: Case) -> Any:
    """A JSON body of ours, with every field's name in that case."""
    if case == "snake":
        return body
    if isinstance(body, (list, tuple)):
        return [spelt(item, case) for item in body]
    if not isinstance(body, dict):
        return body
    return {spell(name, case): _value(name, value, case) for name, value in body.items()}


def _value(name: str, value: Any, case: Case) -> Any:
    if name in _FOREIGN:
        return value
    if name in _KEYED and isinstance(value, dict):
        return {key: spelt(one, case) for key, one in value.items()}
    return spelt(value, case)
