"""Our errors as AUTOMATIC1111's callers get them: 404 for names, 422 for values. Must not raise one."""

from mezzotint.errors import InvalidRequest, MezzotintError

PREFIXES = ("/sdapi/v1/", "/controlnet/", "/internal/")

_NAMES = frozenset(
    {
        "model_not_found",
        "lora_not_found",
        "embedding_not_found",
        "controlnet_not_found",
        "sampler_not_found",
        "upscaler_not_found",
    }
)


def translate(error: MezzotintError) -> tuple[MezzotintError, int | None]:
    """The error and its status; None: that of our own routes."""
    named = isinstance(error, InvalidRequest) and any(fault.code in _NAMES for fault in error.faults)
    if named or error.code in _NAMES:
        return error, 404
    return error, 422 if isinstance(error, InvalidRequest) else None
