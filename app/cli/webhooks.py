"""`longtake webhooks`: the secret that signs them, and the process that sends them."""

from __future__ import annotations

import argparse

from app.cli.grammar import CommandError, Commands, client_of, limit, need_redis, service_flags, settings_with
from app.supervisor import BAD_USAGE


def add(commands: Commands) -> None:
    """Adds the command to the grammar."""
    webhooks = commands.add(
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
        type=limit,
        metavar="SECONDS",
        help="rotate: how long the old secret signs too; 0 if it has leaked (default: the service's)",
    )
    service_flags(webhooks)


def _webhooks(options: argparse.Namespace) -> int:
    if options.action == "send":
        settings = settings_with()
        need_redis(settings)
        if not settings.webhook_concurrency:
            raise CommandError("LONGTAKE_WEBHOOK_CONCURRENCY is 0: nothing would be sent", BAD_USAGE)
        from app.webhooks import send

        return send(settings)
    with client_of(options) as client:
        if options.action == "rotate":
            secret = client.rotate_webhook_secret(overlap_seconds=options.overlap)
        else:
            secret = client.webhook_secret()
    print(secret.secret)
    return 0
