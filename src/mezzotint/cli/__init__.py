"""The command line."""

from mezzotint.cli.app import main

__all__ = ["main"]
