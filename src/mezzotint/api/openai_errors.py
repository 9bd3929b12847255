"""Our errors in the words of OpenAI's API: 400 for what is wrong with a request, 404 for names. Must not raise one."""

from mezzotint.errors import Fault, InvalidRequest, MezzotintError

PREFIX = "/v1/"

# our code -> theirs; a code that is not here stays as it is
_CODES = {
    "invalid_request": "invalid_value",
    "invalid_json": "invalid_value",
    "duplicate_field": "invalid_value",
    "unsupported_size": "invalid_value",
    "unsupported_type": "invalid_value",
    "seed_overflow": "invalid_value",
    "device_not_found": "invalid_value",
    "model_invalid": "invalid_value",
    "model_mismatch": "invalid_value",
    "over_budget": "invalid_value",
    "webhook_refused": "invalid_value",
    "unknown_operation": "invalid_value",
    "asset_not_found": "invalid_image",
    "missing_field": "missing_required_parameter",
    "unsupported_field": "unsupported_parameter",
    "unknown_field": "unsupported_parameter",
}
_FIELDS = {"width": "size", "height": "size", "num_images": "n"}
_BAD = ("invalid_value", "invalid_image", "missing_required_parameter", "unsupported_parameter")
_STATUS = {
    **dict.fromkeys(_BAD, 400),
    **dict.fromkeys(("model_not_found", "lora_not_found", "embedding_not_found", "controlnet_not_found"), 404),
}


def translate(error: MezzotintError) -> tuple[MezzotintError, int | None]:
    """The error as OpenAI's clients know it, and its status; None: that of our own routes."""
    if isinstance(error, InvalidRequest):
        told: MezzotintError = InvalidRequest([_fault(fault) for fault in error.faults])
        told.code = _code(error.faults[0])
    else:
        told = error
        told.code = _CODES.get(error.code, error.code)
    return told, _STATUS.get(told.code)


def _fault(fault: Fault) -> Fault:
    return Fault(field=_FIELDS.get(fault.field or "", fault.field), code=_code(fault), message=fault.message)


def _code(fault: Fault) -> str:
    of_pictures = fault.field in ("image", "mask") and fault.code == "invalid_value"
    return "invalid_image" if of_pictures else _CODES.get(fault.code, fault.code)
