"""`longtake keys`: the file of API keys."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from typing import Any

from app.cli.grammar import CommandError, Commands, Run, limit, seconds, settings_with
from app.keys import ApiKey, KeyFile
from app.supervisor import BAD_USAGE

_KEY_LIMITS = ("max_queued", "max_running", "seconds_per_day", "requests_per_minute")


def add(commands: Commands) -> None:
    """Adds the command to the grammar."""
    keys = commands.add(
        "keys",
        _list_keys,
        "make, list and revoke API keys",
        "\nKeys stand in the file that LONGTAKE_API_KEYS_FILE names, which holds their hashes only. A\n"
        "running service notices at once when it changes. Without a file keys are off.",
        "LONGTAKE_API_KEYS_FILE=keys.json longtake keys create --name studio --max-running 2",
    )
    actions = keys.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, run: Run, summary: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        sub.add_argument("--json", action="store_true", help="write JSON to stdout")
        sub.set_defaults(command=run)
        return sub

    create = action("create", _create_key, "make a key; it is shown once and kept nowhere")
    create.add_argument("--name", required=True, type=_label, help="whom or what the key is for")
    create.add_argument(
        "--read-only", action="store_true", help="the key may look at the videos of another one, and no more"
    )
    create.add_argument("--of", metavar="KEY", help="read-only: that other key, by its id or name")
    for flag, kind, what in (
        ("--max-queued", limit, "videos waiting or paused at once"),
        ("--max-running", limit, "videos being made at once"),
        ("--seconds-per-day", _seconds, "seconds of video asked for on one day (UTC)"),
        ("--requests-per-minute", limit, "requests"),
    ):
        create.add_argument(
            flag, type=kind, metavar="N", help=f"limit: {what}; 0: none (default: LONGTAKE_KEY_*)"
        )
    action("list", _list_keys, "list all keys, the revoked ones too")
    revoke = action(
        "revoke", _revoke_key, "end a key for good: what it makes is cancelled, what it made stays unseen"
    )
    revoke.add_argument("key_id", metavar="ID", help="id of the key, as `list` shows it")


def _label(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 100:
        raise argparse.ArgumentTypeError("1 to 100 printable characters")
    return text


def _seconds(text: str) -> float:
    return 0.0 if text == "0" else seconds(text)


def _key_file() -> KeyFile:
    path = settings_with().api_keys_file
    if path is None:
        raise CommandError(
            "LONGTAKE_API_KEYS_FILE is not set: it names the file that holds the keys", BAD_USAGE
        )
    return KeyFile(path)


def _create_key(options: argparse.Namespace) -> int:
    if options.read_only != (options.of is not None):
        raise CommandError(
            "--read-only and --of KEY go together: a key that may only look makes no videos, so it looks at another's",
            BAD_USAGE,
        )
    key, token = _key_file().create(
        options.name,
        of=options.of,
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
            facts.append("read-only" if key.of is None else f"read-only of {key.of}")
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
