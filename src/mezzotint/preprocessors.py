"""What can turn a picture into a control map, as facts: names, options, ranges. Must not touch a pixel.

The functions themselves run in the image child.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mezzotint.errors import Fault
from mezzotint.image_wire import MAX_PIXELS, brought_to


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """A number that a preprocessor takes. `whole` refuses fractions."""

    default: float
    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessor:
    makes: str
    options: dict[str, Option] = field(default_factory=dict)


# px of the short side that a picture is brought to first
_RESOLUTION = {"resolution": Option(default=0, low=0, high=2048, whole=True)}

PREPROCESSORS: dict[str, Preprocessor] = {
    "none": Preprocessor(makes="nothing: the picture is a control map already"),
    "canny": Preprocessor(
        makes="white edges on black, by Canny's method on the RGB picture",
        options={
            "low_threshold": Option(default=100, low=0, high=255, whole=True),
            "high_threshold": Option(default=200, low=0, high=255, whole=True),
            **_RESOLUTION,
        },
    ),
    "invert": Preprocessor(makes="the negative: black lines on white become white lines on black", options=_RESOLUTION),
    "blur_gaussian": Preprocessor(
        makes="the picture blurred, for tile and blur ControlNets; sigma in pixels",
        # above 32 the largest picture would come near the image child's deadline
        options={"sigma": Option(default=9.0, low=0.1, high=32.0), **_RESOLUTION},
    ),
}


def faults(name: str, options: Mapping[str, Any], path: str = "") -> list[Fault]:
    """Everything wrong with a preprocessor and its options; empty when nothing is. `path` goes before the fields."""
    known = PREPROCESSORS.get(name)
    if known is None:
        message = f"preprocessor {name[:64]!r} does not exist; {', '.join(PREPROCESSORS)}"
        return [Fault(field=f"{path}preprocessor", code="invalid_value", message=message)]
    found = []
    for key, value in options.items():
        shown, option = f"{path}options.{key[:64]}", known.options.get(key)
        if option is None:
            hint = f"it has {', '.join(known.options)}" if known.options else "it has none"
            message = f"{shown} is not an option of {name}; {hint}"
            found.append(Fault(field=shown, code="unknown_field", message=message))
        elif not _fits(value, option):
            kind = "a whole number" if option.whole else "a number"
            message = f"{shown} must be {kind} from {option.low:g} to {option.high:g}; got {_shown(value)}"
            found.append(Fault(field=shown, code="invalid_value", message=message))
    return found


def size_fault(options: Mapping[str, Any], size: tuple[int, int], path: str) -> Fault | None:
    """Whether a picture of this size would be made too large. For options that have no other faults."""
    width, height = brought_to(size, options.get("resolution") or min(size))
    if width * height <= MAX_PIXELS:
        return None
    field = f"{path}options.resolution"
    message = (
        f"{field} makes {width}x{height} of the picture's {size[0]}x{size[1]}; at most {MAX_PIXELS} pixels are made"
    )
    return Fault(field=field, code="invalid_value", message=message)


def complete(name: str, options: Mapping[str, Any]) -> dict[str, float]:
    """Every option of a preprocessor, the given ones over the defaults. Only for what has no faults."""
    known = PREPROCESSORS[name].options
    found = {key: options.get(key, option.default) for key, option in known.items()}
    return {key: value for key, value in found.items() if key != "resolution" or value}  # 0: the picture's own size


def _fits(value: Any, option: Option) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if option.whole else (int, float)):
        return False
    return option.low <= value <= option.high  # never true of nan


def _shown(value: Any) -> str:
    is_huge = isinstance(value, int) and value.bit_length() > 64  # Python refuses to write out the longest
    return "a far larger number" if is_huge else repr(value)[:64]
