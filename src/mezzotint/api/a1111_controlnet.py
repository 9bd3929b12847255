"""ControlNet units of AUTOMATIC1111's extension, and its lists. Pure: pictures stay as they were sent. No I/O here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.api.a1111_reading import Fields
from mezzotint.catalog import Model
from mezzotint.errors import Fault
from mezzotint.preprocessors import PREPROCESSORS

_RESIZE = {"just resize": "stretch", "crop and resize": "crop", "resize and fill": "pad"}
_RESIZE_OLD = {"scale to fit (inner fit)": "crop", "envelope (outer fit)": "pad"}
_MODES = {
    "balanced": "balanced",
    "my prompt is more important": "prompt",
    "controlnet is more important": "control",
}
PLAIN_RESOLUTION = 512
MAX_RESOLUTION = 2048
MAX_THRESHOLD = 1_000_000  # far above what any preprocessor takes, which its own check says
_NONE = ("", "none")
_FREE = ("low_vram", "lowvram", "use_preview_as_input", "guess_mode", "guessmode", "save_detected_map")


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One unit in our words. `image` None: the picture that the call begins at."""

    body: dict[str, Any]
    image: str | None
    path: str  # before the names of its fields
    options: dict[str, float]
    resolution: int | None  # px of the short side for the preprocessor; None: pixel perfect
    ignored: tuple[str, ...]  # fields that nobody knows

    def options_for(self, source: tuple[int, int], target: tuple[int, int]) -> dict[str, Any]:
        """Of the preprocessor, for a picture of one size that goes to another (width, height)."""
        if self.body["preprocessor"] == "none":
            return {}
        short = self.resolution
        if short is None:
            ratios = [target[0] / source[0], target[1] / source[1]]
            factor = min(ratios) if self.body["resize_mode"] == "pad" else max(ratios)
            short = min(MAX_RESOLUTION, max(1, round(min(source) * factor)))
        return {**self.options, "resolution": short}


def read_unit(sent: Any, path: str, models: Mapping[str, Model], faults: list[Fault]) -> Unit | None:
    """None for one that is off, of which nothing is looked at."""
    if not isinstance(sent, dict):
        faults.append(
            Fault(field=path.rstrip("."), code="invalid_value", message=f"{path.rstrip('.')} must be an object")
        )
        return None
    fields = Fields(sent, path)
    if not fields.flag("enabled", True):
        return None
    fields.free(*_FREE)
    image: Any = fields.get("image") or fields.get("input_image")  # "" is not sent
    mask: Any = fields.get("mask") or fields.get("mask_image")
    both = Fields(image if isinstance(image, dict) else {}, f"{path}image.")
    if isinstance(image, dict):
        mask, image = both.get("mask") or mask, both.get("image")
    if mask:
        fields.wrong("mask", "is not done here; leave it out", "unsupported_field")
    if not isinstance(image, str | None):
        fields.wrong("image", "must be base64")
        image = None
    module = fields.text("module", "none")
    preprocessor = "none" if module.lower() in _NONE else module
    body: dict[str, Any] = {
        "model": _model(fields, models),
        "preprocessor": preprocessor,
        "scale": fields.number("weight", 1.0, 0, 2),
        "start": fields.number("guidance_start", 0.0, 0, 1),
        "end": fields.number("guidance_end", 1.0, 0, 1, "guidance"),
        "resize_mode": _choice(fields, "resize_mode", tuple(_RESIZE.items()), 1, _RESIZE_OLD),
        "control_mode": _choice(fields, "control_mode", tuple(_MODES.items()), 0, {}),
    }
    resolution = fields.whole("processor_res", PLAIN_RESOLUTION, -1, MAX_RESOLUTION)
    resolution = resolution if resolution > 0 else PLAIN_RESOLUTION
    is_perfect = fields.flag("pixel_perfect", False)
    thresholds = options(preprocessor, fields, "threshold_a", "threshold_b")
    fields.neutral(("hr_option",), lambda value: value in ("Both", 0, "HiResFixOption.BOTH"), 'send "Both"')
    faults += fields.faults
    return Unit(
        body=body,
        image=image or None,
        path=path,
        options=thresholds,
        resolution=None if is_perfect else resolution,
        ignored=(*fields.unknown(), *both.unknown()),
    )


def options(preprocessor: str, fields: Fields, *names: str) -> dict[str, float]:
    """Thresholds of these names by the order of a preprocessor's own options; null or below 0 is its default."""
    known = PREPROCESSORS.get(preprocessor)
    found: dict[str, float] = {}
    own = {name: option for name, option in known.options.items() if name != "resolution"} if known else {}
    values = [fields.number(name, -1.0, -MAX_THRESHOLD, MAX_THRESHOLD) for name in names]
    for (name, option), value in zip(own.items(), values, strict=False):
        if value >= 0:
            found[name] = int(value) if option.whole else float(value)
    return found


def model_names(models: Iterable[Model], digests: Mapping[str, str | None]) -> list[str]:
    """`name [8 hex]`, without the bracket while a model is not hashed."""
    return [_full_name(one, digests.get(one.id)) for one in models if one.kind == "controlnet" and one.state == "ready"]


def module_list() -> dict[str, Any]:
    detail = {name: {"model_free": False, "sliders": _sliders(name)} for name in PREPROCESSORS}
    return {"module_list": list(PREPROCESSORS), "module_detail": detail}


def control_types(names: list[str]) -> dict[str, Any]:
    modules = list(PREPROCESSORS)
    found = {"All": _control_type(modules, names)}
    for kind, preprocessor in (("Canny", "canny"), ("Tile", "blur_gaussian"), ("Lineart", "invert")):
        fitting = [name for name in names if kind.lower() in name.lower()]
        found[kind] = _control_type(["none", preprocessor], fitting)
    return {"control_types": found}


def _control_type(modules: list[str], names: list[str]) -> dict[str, Any]:
    return {
        "module_list": modules,
        "model_list": ["None", *names],
        "default_option": modules[-1] if len(modules) == 2 else "none",
        "default_model": names[0] if len(modules) == 2 and names else "None",
    }


def _sliders(name: str) -> list[dict[str, Any]]:
    """The resolution first, under the name that clients look for; then at most two, the thresholds in their order."""
    resolution = {"name": "Resolution", "value": PLAIN_RESOLUTION, "min": 64, "max": MAX_RESOLUTION, "step": 1}
    own = PREPROCESSORS[name].options
    return ([resolution] if "resolution" in own else []) + [
        {
            "name": option.replace("_", " ").title(),
            "value": known.default,
            "min": known.low,
            "max": known.high,
            "step": 1 if known.whole else 0.01,
        }
        for option, known in own.items()
        if option != "resolution"
    ]


def _full_name(model: Model, digest: str | None) -> str:
    return f"{model.id} [{digest[:8]}]" if digest else model.id


def _model(fields: Fields, models: Mapping[str, Model]) -> str:
    name = fields.text("model", "None")
    if name.lower() in _NONE:
        fields.wrong("model", 'must name a ControlNet; "None" is for a unit that is off')
        return ""
    stem = name.rpartition(" [")[0] or name
    there = {one.id: one for one in models.values() if one.kind == "controlnet"}
    found = next((one for one in (name, stem) if one in there), None)
    found = found or next((one for one in there if one.lower() == stem.lower()), None)
    return found or stem  # our own reading tells what is there


def _choice(fields: Fields, name: str, known: tuple[tuple[str, str], ...], default: int, old: Mapping[str, str]) -> str:
    value = fields.get(name)
    if value is None:
        return known[default][1]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(known):
        return known[value][1]
    found = {**dict(known), **old}.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        fields.wrong(name, f"must be 0 to {len(known) - 1} or one of {', '.join(text for text, _ in known)}")
        return known[default][1]
    return found
