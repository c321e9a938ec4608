"""The `longtake` command. Each module holds the commands of one topic; `grammar` is what they are written in."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import TextIO

from pydantic import ValidationError
from pydantic_settings.exceptions import SettingsError

from app.cli import evaluate, generate, keys, services, videos, webhooks
from app.cli.grammar import CommandError, Commands
from app.client import LongtakeError, NotAuthorized, ServiceError
from app.embedded import EmbeddedRedisError
from app.keys import KeysError
from app.redaction import redact
from app.supervisor import BAD_USAGE, UpError

INTERRUPTED = 130

# In the order of the help.
_TOPICS = (generate, videos, services, webhooks, keys, evaluate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 (failed), 2 (asked wrongly), 130 (interrupted)."""
    streams = [*filter(None, (sys.stdout, sys.stderr))]
    for stream in streams:
        if isinstance(stream, TextIOWrapper):  # a prompt may have letters that a terminal has not
            stream.reconfigure(errors="backslashreplace")
    try:
        return _told(arguments)
    finally:
        for stream in streams:
            _let_go(stream)


def _run(arguments: Sequence[str] | None) -> int:
    commands = Commands()
    for topic in _TOPICS:
        topic.add(commands)
    try:
        options = commands.parser.parse_args(arguments)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    finally:
        # What is still in the buffer would fail at the interpreter's exit, where nobody can tell of it.
        if sys.stdout is not None:
            sys.stdout.flush()


def _told(arguments: Sequence[str] | None) -> int:
    """The exit code, after a line on stderr for what went wrong."""
    try:
        return _run(arguments)
    except CommandError as error:
        return _complain(str(error), error.code)
    except NotAuthorized as error:
        hint = " (--api-key or LONGTAKE_API_KEY)" if error.status == 401 else ""
        return _complain(f"{error}{hint}", 1)
    except ServiceError as error:
        return _complain(f"{error.param}: {error}" if error.param else str(error), 1)
    except (LongtakeError, UpError, EmbeddedRedisError, KeysError) as error:
        return _complain(str(error), 1)
    except ValidationError as error:
        return _complain(_settings_problem(error), BAD_USAGE)
    except SettingsError as error:
        return _complain(f"settings: {error}", BAD_USAGE)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return 1  # whoever read our output has gone
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except Exception as error:  # noqa: BLE001 - the last resort: a person gets a line, not a stack
        if os.environ.get("LONGTAKE_LOG_LEVEL", "").upper() == "DEBUG":
            traceback.print_exc()
        hint = "LONGTAKE_LOG_LEVEL=DEBUG shows where"
        return _complain(f"unexpected {type(error).__name__}: {error} ({hint})", 1)


def _complain(message: str, code: int) -> int:
    with suppress(OSError):
        print(f"longtake: {' '.join(redact(message).split())}", file=sys.stderr)
    return code


def _let_go(stream: TextIO) -> None:
    """What a stream could not be rid of must not fail once more, and unseen, when the interpreter ends."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _settings_problem(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        name = "_".join(str(part) for part in problem["loc"]).upper()
        message = problem["msg"].removeprefix("Value error, ")
        problems.append(f"LONGTAKE_{name}: {message}" if name else message)
    return "; ".join(problems)
