"""Commands that run the service or parts of it: `up`, `api`, `worker`, `recover`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from app.auth import check_exposure
from app.cli.grammar import (
    CommandError,
    Commands,
    count,
    model_flag,
    model_name,
    need_redis,
    need_storage,
    settings_with,
)
from app.jobs.connection import connect
from app.jobs.store import VideoStore
from app.recover import Found, recover
from app.storage import StorageError, StoreMisconfigured, folder_of, store_of
from app.supervisor import BAD_USAGE, Supervisor


def add(commands: Commands) -> None:
    """Adds these commands to the grammar."""
    up = commands.add(
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
    up.add_argument("--workers", type=count, default=1, metavar="N", help="worker processes (default 1)")
    model_flag(up)

    api = commands.add(
        "api",
        _api,
        "run the HTTP API alone",
        "\nFor a service over several machines: any number of these, and of workers, share one\n"
        "Redis (LONGTAKE_REDIS_URL) and one object store (LONGTAKE_STORAGE_URL).",
        "LONGTAKE_REDIS_URL=redis://queue:6379/0 LONGTAKE_STORAGE_URL=s3://videos LONGTAKE_API_KEYS_FILE=keys.json "
        "longtake api --host 0.0.0.0",
    )
    api.add_argument("--host", help="address to listen on (default 127.0.0.1: this machine only)")
    api.add_argument("--port", type=int, help="port to listen on (default 8000)")

    worker = commands.add(
        "worker",
        _worker,
        "run one worker alone",
        "\nA worker loads one model and makes the videos that are asked of it. SIGTERM hands its\n"
        "videos over to other workers.",
        "LONGTAKE_REDIS_URL=redis://queue:6379/0 LONGTAKE_STORAGE_URL=s3://videos longtake worker --model /models/wan",
    )
    model_flag(worker)

    recover = commands.add(
        "recover",
        _recover,
        "restore the records of all videos from the bucket, after Redis was lost",
        "\nWhat Redis knows as well or better stays as it is, so this can be run at any time, also\n"
        "twice, and while the service works. Videos that have ended come first; unfinished ones go\n"
        "back in line. One line per video; exit code 1 when one of them needs a person to look.",
        "LONGTAKE_REDIS_URL=redis://queue:6379/0 LONGTAKE_STORAGE_URL=s3://videos longtake recover --dry-run",
    )
    recover.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    recover.add_argument("--quiet", action="store_true", help="no lines for videos that are fine")


def _up(options: argparse.Namespace) -> int:
    settings = settings_with(
        host=options.host, port=options.port, data_dir=options.data, model=model_name(options.model)
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
    settings = settings_with(host=options.host, port=options.port)
    need_redis(settings)
    need_storage(settings)
    from app.main import serve

    return serve(settings)


def _worker(options: argparse.Namespace) -> int:
    settings = settings_with(model=model_name(options.model))
    need_redis(settings)
    need_storage(settings)
    # By name: the API's installation has no torch, and nothing of it may ask for it.
    try:
        module: Any = importlib.import_module("worker.main")
    except ImportError as error:
        message = f"a worker needs `pip install '.[worker]'` in a checkout of longtake ({error})"
        raise CommandError(message, BAD_USAGE) from error
    code: int = module.main(settings)
    return code


def _recover(options: argparse.Namespace) -> int:
    settings = settings_with()
    redis_url = need_redis(settings, "`longtake up` recovers its own folder by itself")
    need_storage(settings)

    def tell(found: Found) -> None:
        if found.problem or not options.quiet:
            print(found, flush=True)

    if (folder := folder_of(settings.resolved_storage_url)) and not folder.is_dir():
        raise CommandError(f"LONGTAKE_STORAGE_URL: there is no folder {folder}", BAD_USAGE)
    connection = connect(redis_url)
    store = VideoStore(connection, origin=settings.public_url or "", max_events=settings.max_events)
    try:
        connection.ping()
        summary = recover(store, store_of(settings), dry_run=options.dry_run, tell=tell)
    except RedisError as error:
        raise CommandError(f"Redis is not reachable ({type(error).__name__}); run it again") from error
    except StorageError as error:
        again = "" if isinstance(error, StoreMisconfigured) else "; run it again"
        raise CommandError(f"{error}{again}") from error
    print(f"{'would be: ' if options.dry_run else ''}{summary}")
    return 1 if summary.problems else 0
