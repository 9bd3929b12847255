"""Requests for tests: complete ones, with what a test says changed."""

from dataclasses import replace
from typing import Any

from mezzotint.request import Request, plain


def request(**changes: Any) -> Request:
    return replace(plain("tiny", "a red boat", 7), **changes)
