"""The table of commands, and what becomes of their errors. Must not hold rules.

Each command turns flags into a call of Client or Mezzotint, and the answer into lines. What only some need they import
themselves: a command's start is a good part of what a person waits.
"""

import difflib
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from typer.exceptions import TyperException

from mezzotint import __version__
from mezzotint.cli import keys, sessions
from mezzotint.cli.bench import bench
from mezzotint.cli.flags import BAD_USE, DONE, FAILED, INTERRUPTED, UNREACHABLE
from mezzotint.cli.generate import generate
from mezzotint.cli.machine import devices, doctor
from mezzotint.cli.models import models_add, models_list, models_show, models_tune, models_verify
from mezzotint.cli.serve import serve
from mezzotint.cli.validate import validate
from mezzotint.errors import BadSetting, CallerError, InvalidRequest, MezzotintError

COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "serve": serve,
    "validate": validate,
    "devices": devices,
    "doctor": doctor,
    "bench": bench,
}
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "keys": ("Who may use a server.", {"create": keys.create, "list": keys.listed, "revoke": keys.revoke}),
    "sessions": (
        "What a server was asked for; with --server or MEZZOTINT_SERVER.",
        {
            "list": sessions.listed,
            "show": sessions.show,
            "watch": sessions.watch,
            "cancel": sessions.cancel,
            "pause": sessions.pause,
            "resume": sessions.resume,
        },
    ),
    "models": (
        "The models on disk.",
        {
            "list": models_list,
            "show": models_show,
            "add": models_add,
            "verify": models_verify,
            "tune": models_tune,
        },
    ),
}


def main() -> None:
    """The entry point: every error of ours becomes one line and an exit code."""
    try:
        code = _app()(standalone_mode=False)
        raise SystemExit(code if isinstance(code, int) else DONE)
    except TyperException as error:
        _complain(_usage(error))
        raise SystemExit(BAD_USE) from None
    except typer.Abort:
        raise SystemExit(INTERRUPTED) from None
    except InvalidRequest as error:
        for fault in error.faults:
            _complain(fault.message)
        raise SystemExit(BAD_USE) from None
    except MezzotintError as error:
        hint = "; commands take it from MEZZOTINT_API_KEY" if error.code == "invalid_api_key" else ""
        _complain(error.message + hint)
        raise SystemExit(_exit_code(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:  # of the answer itself, such as on a full disk: what else fails says more above
        if error.errno is None:
            raise
        _complain(f"{error.filename or 'the output'} cannot be written or read: {error.strerror}")
        raise SystemExit(FAILED) from None


def _app() -> typer.Typer:
    app = typer.Typer(
        help="An image-generation server that batches at every denoising step and never loses a session.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for name, command in COMMANDS.items():
        app.command(name)(command)
    for name, (help_text, commands) in GROUPS.items():
        group = typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)
        for verb, command in commands.items():
            group.command(verb)(command)
        app.add_typer(group, name=name)
    return app


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mezzotint {__version__}")
        raise typer.Exit(DONE)


def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    pass


def _exit_code(error: MezzotintError) -> int:
    if error.code == "unreachable":
        return UNREACHABLE
    return BAD_USE if isinstance(error, CallerError | BadSetting) else FAILED


def _usage(error: TyperException) -> str:
    """One line; an unknown flag gets the nearest known one."""
    if (name := getattr(error, "option_name", None)) is None:
        return error.format_message()
    near = difflib.get_close_matches(name, getattr(error, "possibilities", None) or [], n=1, cutoff=0.5)
    return f"{name} is not a flag; {f'did you mean {near[0]}?' if near else 'see --help'}"


def _complain(message: str) -> None:
    print(f"mezzotint: {message}", file=sys.stderr)  # noqa: T201  the command line's own voice
