"""The `longtake` command."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_settings.exceptions import SettingsError
from redis.exceptions import RedisError

from app import __version__
from app.auth import check_exposure
from app.client import DEFAULT_URL, LongtakeClient, LongtakeError, NotAuthorized, ServiceError
from app.embedded import EmbeddedRedisError, end, spawn
from app.jobs.connection import connect
from app.jobs.job import Status
from app.jobs.store import VideoStore
from app.keys import ApiKey, KeyFile, KeysError, redact
from app.progress import Progress, ProgressDisplay, clock
from app.recover import Found, recover
from app.schemas import ModelObject, VideoObject
from app.settings import Settings
from app.storage import StorageError, store_of
from app.supervisor import BAD_USAGE, Supervisor, UpError, longtake_command

INTERRUPTED = 130

_END_SECONDS = 90.0
_CANCEL_SECONDS = 10.0
_PATIENCE_SECONDS = 3.0

# A service for one call shares nothing with others.
_SHARED = frozenset({"LONGTAKE_REDIS_URL", "LONGTAKE_STORAGE_URL", "LONGTAKE_API_KEYS_FILE"})

_KEY_LIMITS = ("max_queued", "max_running", "seconds_per_day", "requests_per_minute")


class CommandError(Exception):
    """Why a command cannot do its work; one line for a person."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 (failed), 2 (asked wrongly), 130 (interrupted)."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
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
        # Whoever read our output has gone; nothing more can be said, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except Exception as error:  # noqa: BLE001 - the last resort: a person gets a line, not a stack
        if os.environ.get("LONGTAKE_LOG_LEVEL", "").upper() == "DEBUG":
            traceback.print_exc()
        hint = "LONGTAKE_LOG_LEVEL=DEBUG shows where"
        return _complain(f"unexpected {type(error).__name__}: {error} ({hint})", 1)


def _complain(message: str, code: int) -> int:
    print(f"longtake: {' '.join(redact(message).split())}", file=sys.stderr)
    return code


# -- the grammar ----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"longtake: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="longtake",
        description="Turns a prompt into a long video that can be watched while it is being made.",
        epilog='Begin with: longtake generate "a red ball rolls over green grass" -o ball.mp4\n'
        "Settings are environment variables that begin with LONGTAKE_; flags come before them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"longtake {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, detail: str, example: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.{detail}",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=run)
        return sub

    up = command(
        "up",
        _up,
        "run the whole service here",
        "\nRedis, API and workers run as one process tree on one data folder. When videos can be\n"
        "made, one line `ready http://HOST:PORT` appears on stdout. Ctrl-C ends it and loses\n"
        "nothing: the next `up` on the folder continues what was queued or being made.",
        "longtake up --data ~/longtake --port 8000",
    )
    up.add_argument("--host", help="address to listen on (default 127.0.0.1: this machine only)")
    up.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (default 8000)")
    up.add_argument("--data", type=Path, metavar="DIR", help="data folder (default ./longtake-data)")
    up.add_argument("--workers", type=_count, default=1, metavar="N", help="worker processes (default 1)")
    _model_flag(up)

    generate = command(
        "generate",
        _generate,
        "make one video and write it to a file",
        "\nWithout --url a service is started for this call, and ended after it. Ctrl-C cancels\nthe video.",
        'longtake generate "a red ball rolls over green grass" --seconds 60 -o ball.mp4',
    )
    generate.add_argument("prompt", metavar="PROMPT", help="what the video shows")
    generate.add_argument("--seconds", type=_seconds, help="length of the video (default 60)")
    generate.add_argument("--size", metavar="WxH", help="width and height in pixels (default: the model's)")
    generate.add_argument("--seed", type=int, help="the same seed and prompt make the same video")
    generate.add_argument("--negative-prompt", metavar="TEXT", help="what the video shall not show")
    generate.add_argument("-o", "--output", type=Path, default=Path("out.mp4"), help="file to write")
    generate.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="data folder of the service for this call (default: a temporary one)",
    )
    _model_flag(generate)
    _service_flags(generate, "use this service instead of one for this call")

    watch = command(
        "watch",
        _watch,
        "follow a video until it is finished",
        "\nCtrl-C stops the watching, not the video.",
        "longtake watch video_0199… --url http://127.0.0.1:8000 -o ball.mp4",
    )
    watch.add_argument("video_id", metavar="ID", help="id of the video")
    watch.add_argument("-o", "--output", type=Path, help="write the finished video to this file")
    _service_flags(watch, f"the service (default {DEFAULT_URL})")

    models = command(
        "models",
        _models,
        "list the models a service can make videos with",
        "",
        "longtake models --url http://127.0.0.1:8000",
    )
    _service_flags(models, f"the service (default {DEFAULT_URL})")

    api = command(
        "api",
        _api,
        "run the HTTP API alone",
        "\nFor a service over several machines: any number of these, and of workers, share one\n"
        "Redis (LONGTAKE_REDIS_URL) and one object store (LONGTAKE_STORAGE_URL).",
        "LONGTAKE_REDIS_URL=redis://queue:6379/0 longtake api --host 0.0.0.0",
    )
    api.add_argument("--host", help="address to listen on (default 127.0.0.1: this machine only)")
    api.add_argument("--port", type=int, help="port to listen on (default 8000)")

    worker = command(
        "worker",
        _worker,
        "run one worker alone",
        "\nA worker loads one model and makes the videos that are asked of it. SIGTERM hands its\n"
        "videos over to other workers.",
        "LONGTAKE_REDIS_URL=redis://queue:6379/0 longtake worker --model /models/wan",
    )
    _model_flag(worker)

    recover = command(
        "recover",
        _recover,
        "restore the records of all videos from the bucket, after Redis was lost",
        "\nWhat Redis knows as well or better stays as it is, so this can be run at any time, also\n"
        "twice, and while the service works. Videos that have ended come first; unfinished ones go\n"
        "back in line. One line per video; exit code 1 when one of them needs a person to look.",
        "LONGTAKE_REDIS_URL=redis://queue:6379/0 longtake recover --dry-run",
    )
    recover.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    recover.add_argument("--quiet", action="store_true", help="no lines for videos that are fine")

    webhooks = command(
        "webhooks",
        _webhooks,
        "show or replace the secret of your webhooks, or send them",
        "\nsecret prints what your webhooks are signed with. rotate replaces it and prints the new\n"
        "one; the old one signs beside it for a while. send runs a process that sends webhooks,\n"
        "for services whose API may not call out (LONGTAKE_WEBHOOK_CONCURRENCY=0 there).",
        "longtake webhooks secret --url http://127.0.0.1:8000",
    )
    webhooks.add_argument("action", choices=("secret", "rotate", "send"), help="what to do")
    webhooks.add_argument(
        "--overlap",
        type=_overlap,
        metavar="SECONDS",
        help="rotate: how long the old secret signs too; 0 if it has leaked (default: the service's)",
    )
    _service_flags(webhooks, f"the service (default {DEFAULT_URL})")

    _keys_command(
        command(
            "keys",
            _list_keys,
            "make, list and revoke API keys",
            "\nKeys stand in the file that LONGTAKE_API_KEYS_FILE names, which holds their hashes only. A\n"
            "running service notices at once when it changes. Without a file keys are off.",
            "LONGTAKE_API_KEYS_FILE=keys.json longtake keys create --name studio --max-running 2",
        )
    )

    evaluate = command(
        "evaluate",
        _evaluate,
        "measure a model and its samplers",
        "\nMakes videos by the sampler and by what it is compared with, measures them, and writes\n"
        "results.json, plots and report.md. What was made is not made again: an evaluation that\n"
        "was interrupted goes on. `evaluate report results.json` writes the report alone.",
        "longtake evaluate --config hour --output runs/evaluation --processes 2",
    )
    evaluate.add_argument("report", nargs="?", choices=["report"], help="write the report of a JSON again")
    evaluate.add_argument("json", nargs="?", type=Path, metavar="JSON", help="what it is written from")
    _model_flag(evaluate)
    evaluate.add_argument(
        "--config",
        default="hour",
        metavar="NAME",
        help="plan: hour, card, quick, smoke, or a TOML file (default hour)",
    )
    evaluate.add_argument(
        "--output",
        type=Path,
        default=Path("runs/evaluation"),
        metavar="DIR",
        help="folder of results (default runs/evaluation)",
    )
    evaluate.add_argument("--markdown", type=Path, metavar="FILE", help="report (default: beside the JSON)")
    evaluate.add_argument("--methods", metavar="A,B", help="only these methods of the plan")
    evaluate.add_argument(
        "--variant",
        action="append",
        type=_variant,
        default=[],
        metavar="METHOD=FOLDER",
        help="weights trained for a method; may be repeated",
    )
    evaluate.add_argument(
        "--prompts", type=Path, metavar="FILE", help="TOML file of [[prompts]]: text, class"
    )
    evaluate.add_argument(
        "--budget-minutes", type=_seconds, metavar="N", help="begin no video after this time; continue later"
    )
    evaluate.add_argument("--processes", type=_count, default=1, metavar="N", help="videos made at once")
    evaluate.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    suites = evaluate.add_mutually_exclusive_group()
    for suite in ("vbench", "vbench-long"):
        suites.add_argument(
            f"--{suite}", metavar="PYTHON", help=f"also run {suite}, which this Python has installed"
        )
    return parser


def _keys_command(keys: argparse.ArgumentParser) -> None:
    actions = keys.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        sub.add_argument("--json", action="store_true", help="write JSON to stdout")
        sub.set_defaults(command=run)
        return sub

    create = action("create", _create_key, "make a key; it is shown once and kept nowhere")
    create.add_argument("--name", required=True, type=_label, help="whom or what the key is for")
    create.add_argument("--read-only", action="store_true", help="the key may look, and not make or change")
    for flag, kind, what in (
        ("--max-queued", _limit, "videos waiting or paused at once"),
        ("--max-running", _limit, "videos being made at once"),
        ("--seconds-per-day", _seconds_limit, "seconds of video asked for on one day (UTC)"),
        ("--requests-per-minute", _limit, "requests"),
    ):
        create.add_argument(
            flag, type=kind, metavar="N", help=f"limit: {what}; 0: none (default: LONGTAKE_KEY_*)"
        )
    action("list", _list_keys, "list all keys, the revoked ones too")
    revoke = action("revoke", _revoke_key, "end a key for good; what it made stays, and nobody sees it")
    revoke.add_argument("key_id", metavar="ID", help="id of the key, as `list` shows it")


def _model_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="MODEL", help="`builtin`, a folder or a hub id of a pipeline (default builtin)"
    )


def _service_flags(parser: argparse.ArgumentParser, url_help: str) -> None:
    parser.add_argument("--url", default=os.environ.get("LONGTAKE_URL"), help=f"{url_help} [LONGTAKE_URL]")
    parser.add_argument("--api-key", metavar="KEY", help="key of the service [LONGTAKE_API_KEY]")


def _label(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 100:
        raise argparse.ArgumentTypeError("1 to 100 printable characters")
    return text


def _limit(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("at least 0")
    return number


def _seconds_limit(text: str) -> float:
    return 0.0 if text == "0" else _seconds(text)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _variant(text: str) -> tuple[str, str]:
    method, equals, folder = text.partition("=")
    if not (method and equals and Path(folder).is_dir()):
        raise argparse.ArgumentTypeError(f"{text!r} is not METHOD=FOLDER with a folder that exists")
    return method, str(Path(folder).resolve())


def _seconds(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError("a number above 0")
    return number


def _overlap(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("at least 0")
    return number


# -- services -------------------------------------------------------------------------------------------------------


def _up(options: argparse.Namespace) -> int:
    settings = _settings(
        host=options.host, port=options.port, data_dir=options.data, model=_model_name(options.model)
    )
    try:
        check_exposure(settings)
    except ValueError as error:
        raise CommandError(str(error), BAD_USAGE) from error
    Supervisor(
        settings,
        workers=options.workers,
        ready=lambda url: print(f"ready {url}", flush=True),
        warn=lambda line: print(f"longtake: {line}", file=sys.stderr, flush=True),
    ).run()
    return 0


def _api(options: argparse.Namespace) -> int:
    settings = _settings(host=options.host, port=options.port)
    _need_redis(settings)
    from app.main import serve

    return serve(settings)


def _worker(options: argparse.Namespace) -> int:
    settings = _settings(model=_model_name(options.model))
    _need_redis(settings)
    # By name: the API's installation has no torch, and nothing of it may ask for it.
    try:
        module: Any = importlib.import_module("worker.main")
    except ImportError as error:
        raise CommandError(f"a worker needs `pip install 'longtake[worker]'` ({error})", BAD_USAGE) from error
    code: int = module.main(settings)
    return code


def _recover(options: argparse.Namespace) -> int:
    settings = _settings()
    if settings.redis_url is None:
        raise CommandError(
            "LONGTAKE_REDIS_URL is not set; `longtake up` recovers its own folder by itself",
            BAD_USAGE,
        )

    def tell(found: Found) -> None:
        if found.problem or not options.quiet:
            print(found, flush=True)

    store = VideoStore(
        connect(settings.redis_url.get_secret_value()),
        origin=(settings.public_url or "").rstrip("/"),
        max_events=settings.max_events,
    )
    try:
        summary = recover(store, store_of(settings), dry_run=options.dry_run, tell=tell)
    except RedisError as error:
        raise CommandError(f"Redis is not reachable ({type(error).__name__}); run it again") from error
    except StorageError as error:
        raise CommandError(f"{error}; run it again") from error
    print(f"{'would be: ' if options.dry_run else ''}{summary}")
    return 1 if summary.problems else 0


def _webhooks(options: argparse.Namespace) -> int:
    if options.action == "send":
        settings = _settings()
        _need_redis(settings)
        if not settings.webhook_concurrency:
            raise CommandError("LONGTAKE_WEBHOOK_CONCURRENCY is 0: nothing would be sent", BAD_USAGE)
        from app.webhooks import send

        return send(settings)
    with _client(options.url or DEFAULT_URL, options.api_key) as client:
        if options.action == "rotate":
            secret = client.rotate_webhook_secret(overlap_seconds=options.overlap)
        else:
            secret = client.webhook_secret()
    print(secret.secret)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    if options.report and options.json is None:
        raise CommandError("evaluate report: which JSON?", BAD_USAGE)
    try:
        module: Any = importlib.import_module("worker.evaluation.command")
    except ImportError as error:
        raise CommandError(
            f"an evaluation needs `pip install 'longtake[worker,evaluation]'` ({error})", BAD_USAGE
        ) from error
    try:
        if options.report:
            written = module.report(options.json, options.markdown)
        else:
            suites = (("vbench", options.vbench), ("vbench-long", options.vbench_long))
            written = module.evaluate(
                model=_model_name(options.model) or "builtin",
                config=options.config,
                output=options.output,
                markdown=options.markdown,
                methods=options.methods,
                variants=dict(options.variant),
                prompts=options.prompts,
                budget_minutes=options.budget_minutes,
                processes=options.processes,
                device=options.device,
                suite=next((suite for suite in suites if suite[1]), None),
            )
    except module.Failed as error:
        raise CommandError(str(error)) from error
    print(written)
    return 0


def _settings(**flags: Any) -> Settings:
    """Settings of the environment with those of the flags that were given."""
    return Settings(**{name: value for name, value in flags.items() if value is not None})


def _settings_problem(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        name = "_".join(str(part) for part in problem["loc"]).upper()
        message = problem["msg"].removeprefix("Value error, ")
        problems.append(f"LONGTAKE_{name}: {message}" if name else message)
    return "; ".join(problems)


def _need_redis(settings: Settings) -> None:
    if settings.redis_url is None:
        raise CommandError(
            "LONGTAKE_REDIS_URL is not set; `longtake up` brings a Redis of its own", BAD_USAGE
        )


def _model_name(given: str | None) -> str | None:
    """A folder gets its full path, because workers may run in another one."""
    if given is not None and given != "builtin" and Path(given).is_dir():
        return str(Path(given).resolve())
    return given


# -- keys -----------------------------------------------------------------------------------------------------------


def _key_file() -> KeyFile:
    path = _settings().api_keys_file
    if path is None:
        raise CommandError(
            "LONGTAKE_API_KEYS_FILE is not set: it names the file that holds the keys", BAD_USAGE
        )
    return KeyFile(path)


def _create_key(options: argparse.Namespace) -> int:
    key, token = _key_file().create(
        options.name,
        read_only=options.read_only,
        max_queued=options.max_queued,
        max_running=options.max_running,
        seconds_per_day=options.seconds_per_day,
        requests_per_minute=options.requests_per_minute,
    )
    if options.json:
        print(json.dumps({"key": token, **_key_facts(key)}))
    else:
        print(token)
        print(f"longtake: this is key {key.id}; it is shown this once", file=sys.stderr)
    return 0


def _list_keys(options: argparse.Namespace) -> int:
    keys = _key_file().read()
    if options.json:
        print(json.dumps([_key_facts(key) for key in keys]))
        return 0
    for key in keys:
        facts = [f"since {_day(key.created_at)}"]
        if key.revoked_at is not None:
            facts.append(f"revoked {_day(key.revoked_at)}")
        if key.read_only:
            facts.append("read-only")
        facts += [f"{name} {value:g}" for name in _KEY_LIMITS if (value := getattr(key, name)) is not None]
        print(f"{key.id}  {key.name}  {', '.join(facts)}")
    return 0


def _revoke_key(options: argparse.Namespace) -> int:
    key = _key_file().revoke(options.key_id)
    print(json.dumps(_key_facts(key)) if options.json else f"revoked {key.id} ({key.name})")
    return 0


def _key_facts(key: ApiKey) -> dict[str, Any]:
    """What may be told of a key: everything but its hash."""
    return key.model_dump(exclude={"sha256"})


def _day(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


# -- clients --------------------------------------------------------------------------------------------------------


def _generate(options: argparse.Namespace) -> int:
    output = _writable(options.output)
    request: dict[str, Any] = {
        name: value
        for name in ("seconds", "size", "seed", "negative_prompt")
        if (value := getattr(options, name)) is not None
    }
    display = ProgressDisplay(sys.stderr)
    with ExitStack() as stack:
        stack.enter_context(_terminated_like_interrupted())
        service: _OwnService | None = None
        if options.url:
            url = options.url
            if options.model:
                request["model"] = options.model
        else:
            display.say("starting the service …")
            service = stack.enter_context(_OwnService(options.data, _model_name(options.model)))
            url = service.url
        client = stack.enter_context(_client(url, options.api_key))
        began = time.monotonic()
        video = client.create(options.prompt, **request)
        display.say(f"{video.id}: watch it at {url}/ while it is made")
        try:
            with _cancelling(client, video, display):
                video = _follow(client, video, display)
                _deliver(client, video, output)
        except (LongtakeError, CommandError, OSError) as error:
            if service is not None:
                service.explain(error)
            raise
        display.say(
            f"wrote {output}: {video.seconds} s of {video.size}, {video.frames} frames at {video.fps} fps, "
            f"in {clock(time.monotonic() - began)}"
        )
        print(output)
    return 0


def _watch(options: argparse.Namespace) -> int:
    output = None if options.output is None else _writable(options.output)
    with _client(options.url or DEFAULT_URL, options.api_key) as client:
        video = _follow(client, client.retrieve(options.video_id), ProgressDisplay(sys.stderr))
        _deliver(client, video, output)
    if output is not None:
        print(output)
    return 0


def _models(options: argparse.Namespace) -> int:
    with _client(options.url or DEFAULT_URL, options.api_key) as client:
        models = client.models()
    if not models:
        raise CommandError("no worker has registered a model yet")
    for model in models:
        print(_model_line(model))
    return 0


def _model_line(model: ModelObject) -> str:
    sizes = ", ".join(model.sizes)
    return f"{model.id}  {sizes}  {model.fps} fps  up to {model.max_seconds:g} s"


def _client(url: str, api_key: str | None) -> LongtakeClient:
    try:
        return LongtakeClient(
            url,
            api_key=api_key or os.environ.get("LONGTAKE_API_KEY"),
            patience_seconds=_PATIENCE_SECONDS,
        )
    except ValueError as error:
        raise CommandError(f"--url: {error}", BAD_USAGE) from error


def _follow(client: LongtakeClient, video: VideoObject, display: ProgressDisplay) -> VideoObject:
    """Shows a video's progress until it ends, and returns it as it is then."""
    progress = Progress(video)
    try:
        display.show(progress)
        for event in client.events(video.id):
            progress.take(event, time.monotonic())
            display.show(progress)
    finally:
        display.end()
    return client.retrieve(video.id)


def _deliver(client: LongtakeClient, video: VideoObject, output: Path | None) -> None:
    if video.status is not Status.COMPLETED:
        reason = video.error.message if video.error else f"it was {video.status.value}"
        raise CommandError(f"{video.id} was not finished: {reason}")
    if output is not None:
        client.download(video.id, output)


@contextmanager
def _cancelling(client: LongtakeClient, video: VideoObject, display: ProgressDisplay) -> Iterator[None]:
    """Cancels the video when the user interrupts."""
    try:
        yield
    except KeyboardInterrupt:
        display.say(f"cancelling {video.id} …")
        with suppress(LongtakeError):
            client.cancel(video.id)
            client.wait(video.id, timeout_seconds=_CANCEL_SECONDS)
        raise


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt like Ctrl-C, so that nothing is left behind."""
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _writable(path: Path) -> Path:
    """The path, if a file can be written there: better to know before an hour's work."""
    if path.is_dir():
        raise CommandError(f"{path} is a folder; -o names the file to write", BAD_USAGE)
    if not path.parent.is_dir():
        raise CommandError(f"there is no folder {path.parent} to write {path.name} to", BAD_USAGE)
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise CommandError(f"cannot write to {path.parent}: {error.strerror}", BAD_USAGE) from error
    return path


class _OwnService:
    """A service for one call: `longtake up` as a child, on a folder that is removed unless it holds something."""

    def __init__(self, data: Path | None, model: str | None) -> None:
        """With `data` None the folder is a temporary one."""
        self._temporary = data is None
        self._data = data
        self._model = model
        self._keep = False
        self.url = ""

    def __enter__(self) -> _OwnService:
        self.folder = self._data or Path(tempfile.mkdtemp(prefix="longtake-"))
        self._said = tempfile.TemporaryFile()
        arguments = ["up", "--host", "127.0.0.1", "--port", "0", "--data", str(self.folder)]
        if self._model is not None:
            arguments += ["--model", self._model]
        self._process = spawn(
            longtake_command(*arguments),
            env={name: value for name, value in os.environ.items() if name not in _SHARED},
            output=subprocess.PIPE,
            errors=self._said,
            on_parent_death=signal.SIGTERM,
        )
        try:
            assert self._process.stdout is not None
            self.url = self._process.stdout.readline().decode().removeprefix("ready ").strip()
            if not self.url:
                self._process.wait(_END_SECONDS)
                raise CommandError(self._last_words() or "the service does not start")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._close()

    def explain(self, error: Exception) -> None:
        """Called when the video was not delivered: what was made is kept, and a dead service tells why it died."""
        self._keep = True
        if self._process.poll() is not None and isinstance(error, LongtakeError):
            raise CommandError(self._last_words() or "the service ended unexpectedly") from error

    def _close(self) -> None:
        end(self._process, _END_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said.close()
        if not self._temporary:
            return
        if self._keep:
            print(f"longtake: what was made is in {self.folder}", file=sys.stderr)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("longtake: ") if lines else ""


if __name__ == "__main__":
    sys.exit(main())
