"""What commands are written in: the parser, the kinds of values, and the flags that several have."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

from app import __version__
from app.client import DEFAULT_URL, LongtakeClient
from app.jobs.job import Priority
from app.schemas import ENDLESS
from app.settings import Settings
from app.storage import StoreMisconfigured, check_url
from app.supervisor import BAD_USAGE

Run = Callable[[argparse.Namespace], int]

_PATIENCE_SECONDS = 3.0

_ID = re.compile(r"[\w-]+", re.ASCII)


class CommandError(Exception):
    """Why a command cannot do its work; one line for a person."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"longtake: {message} (see {self.prog} --help)\n")


class Commands:
    """The grammar of the whole command line."""

    def __init__(self) -> None:
        self.parser = _Parser(
            prog="longtake",
            description="Turns a prompt into a long video that can be watched while it is being made.",
            epilog='Begin with: longtake generate "a red ball bouncing off the walls" -o ball.mp4\n'
            "Settings are environment variables that begin with LONGTAKE_; flags come before them.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.parser.add_argument("--version", action="version", version=f"longtake {__version__}")
        self._subparsers = self.parser.add_subparsers(metavar="COMMAND", required=True)

    def add(self, name: str, run: Run, summary: str, detail: str, example: str) -> argparse.ArgumentParser:
        """A command; `detail` is what its help says beyond the summary, a line each."""
        sub = self._subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.{detail}",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=run)
        return sub


# -- values -------------------------------------------------------------------------------------------------


def count(text: str) -> int:
    """A whole number from 1 on."""
    return _at_least(int(text), 1)


def limit(text: str) -> int:
    """A whole number from 0 on."""
    return _at_least(int(text), 0)


def seconds(text: str) -> float:
    """A time above zero."""
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError("a number above 0")
    return number


def length(text: str) -> float | str:
    """A length of a video."""
    return text if text == ENDLESS else seconds(text)


def second(text: str) -> float:
    """A place in a video."""
    return _from_zero(text)


def scale(text: str) -> float:
    """A strength."""
    return _from_zero(text)


def label(given: str) -> tuple[str, str]:
    """Name and value of a label of a video."""
    name, equals, value = text(given).partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"NAME=VALUE, not {given!r}")
    return name, value


def text(given: str) -> str:
    """What can be sent; an argument may be any bytes."""
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{given!r} is not UTF-8") from error
    return given


def video_id(given: str) -> str:
    """What may be the id of a video; whether there is one, the service knows."""
    if not _ID.fullmatch(given):
        raise argparse.ArgumentTypeError(f"{given!r} is no id of a video")
    return given


def _from_zero(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError("a number from 0 on")
    return number


def _at_least(number: int, least: int) -> int:
    if number < least:
        raise argparse.ArgumentTypeError(f"at least {least}")
    return number


# -- flags --------------------------------------------------------------------------------------------------


def model_flag(parser: argparse.ArgumentParser) -> None:
    """`--model`."""
    parser.add_argument(
        "--model", metavar="MODEL", help="`builtin`, a folder or a hub id of a pipeline (default builtin)"
    )


def service_flags(parser: argparse.ArgumentParser, url_help: str = "") -> None:
    """`--url` and `--api-key`."""
    said = url_help or f"the service (default {DEFAULT_URL})"
    parser.add_argument("--url", default=os.environ.get("LONGTAKE_URL"), help=f"{said} [LONGTAKE_URL]")
    parser.add_argument("--api-key", metavar="KEY", help="key of the service [LONGTAKE_API_KEY]")


def json_flag(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="write JSON to stdout, as the API has it")


def priority_flag(parser: argparse.ArgumentParser) -> None:
    """`--priority`."""
    parser.add_argument("--priority", choices=PRIORITIES, help="order between waiting videos")


PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")


# -- what the flags mean ------------------------------------------------------------------------------------


def client_of(
    options: argparse.Namespace, url: str | None = None, *, timeout_seconds: float = 60.0
) -> LongtakeClient:
    """A client of the service that the flags name; a connection may be silent for so long. Raises `CommandError`."""
    try:
        return LongtakeClient(
            url or options.url or DEFAULT_URL,
            api_key=options.api_key or os.environ.get("LONGTAKE_API_KEY"),
            patience_seconds=_PATIENCE_SECONDS,
            timeout_seconds=timeout_seconds,
        )
    except ValueError as error:
        raise CommandError(str(error), BAD_USAGE) from error


def writable(path: Path) -> Path:
    """The path, if a file can be written there: better to know before an hour's work. Raises `CommandError`."""
    try:
        if path.is_dir():
            raise CommandError(f"{path} is a folder; -o names the file to write", BAD_USAGE)
        if path.exists() and not path.is_file():
            return path  # a pipe or a device
        folder = path.resolve().parent
        if not folder.is_dir():
            raise CommandError(f"there is no folder {folder} to write {path.name} to", BAD_USAGE)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise CommandError(f"cannot write to {path}: {error.strerror}", BAD_USAGE) from error
    return path


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The flags of these names that were given."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def print_json(told: BaseModel | Sequence[BaseModel]) -> None:
    """An object of the API, or a list of them, on stdout."""
    plain = (
        told.model_dump(mode="json")
        if isinstance(told, BaseModel)
        else [one.model_dump(mode="json") for one in told]
    )
    print(json.dumps(plain, indent=2, ensure_ascii=False))


def settings_with(**flags: Any) -> Settings:
    """Settings of the environment with those of the flags that were given."""
    return Settings(**{name: value for name, value in flags.items() if value is not None})


def need_redis(settings: Settings, otherwise: str = "`longtake up` brings a Redis of its own") -> str:
    """The URL of Redis. Raises `CommandError` when it is not set."""
    if settings.redis_url is None:
        raise CommandError(f"LONGTAKE_REDIS_URL is not set; {otherwise}", BAD_USAGE)
    return settings.redis_url.get_secret_value()


def need_storage(settings: Settings) -> None:
    """Raises `CommandError` for a URL that names no store, or none: each process would have one in its own folder."""
    if settings.storage_url is None:
        raise CommandError(
            "LONGTAKE_STORAGE_URL is not set; the API and its workers share one store (s3://BUCKET, or file:///FOLDER)",
            BAD_USAGE,
        )
    try:
        check_url(settings.storage_url)
    except StoreMisconfigured as error:
        raise CommandError(f"LONGTAKE_STORAGE_URL: {error}", BAD_USAGE) from error


def model_name(given_model: str | None) -> str | None:
    """A folder gets its full path, because workers may run in another one."""
    if given_model is not None and given_model != "builtin" and Path(given_model).is_dir():
        return str(Path(given_model).resolve())
    return given_model
