"""Commands on the videos and models of a running service, one request each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import get_args

from app.cli.grammar import (
    CommandError,
    Commands,
    client_of,
    given,
    json_flag,
    length,
    limit,
    print_json,
    priority_flag,
    second,
    service_flags,
    text,
    video_id,
    writable,
)
from app.client import LongtakeClient, NotAuthorized, ServiceError, Variant
from app.jobs.job import Status
from app.schemas import ENDLESS, ModelObject, VideoObject

_PROMPT_CHARS = 50
_SUFFIXES = {"video": ".mp4", "thumbnail": "-thumbnail.jpg", "spritesheet": "-spritesheet.jpg"}


def add(commands: Commands) -> None:
    """Adds these commands to the grammar."""
    listing = commands.add(
        "list", _list, "list your videos, the newest first", "", "longtake list --status in_progress"
    )
    listing.add_argument("--status", choices=[status.value for status in Status], help="only these")
    listing.add_argument(
        "--limit", type=limit, default=20, metavar="N", help="at most so many; 0: all (default 20)"
    )
    json_flag(listing)
    service_flags(listing)

    _on_one_video(
        commands, "show", _named("retrieve"), ("look at a video", "", "longtake show video_0199…"), _tell_all
    )
    steer = _on_one_video(
        commands,
        "steer",
        _steer,
        (
            "change what a running video shows",
            "\nThe text is in force from the next chunk that is begun, or from the one that holds second --at.",
            'longtake steer video_0199… "a blue ball" --at 30',
        ),
    )
    steer.add_argument("text", type=text, metavar="TEXT", help="what to show from then on")
    steer.add_argument("--at", type=second, metavar="SECOND", help="when; default: as soon as possible")

    update = _on_one_video(
        commands,
        "update",
        _update,
        (
            "change the length of a video that has not ended",
            "",
            "longtake update video_0199… --seconds 120",
        ),
    )
    update.add_argument("--seconds", type=length, required=True, help="new length, or `endless`")

    for name, summary, detail in (
        ("finish", "let a video end with the chunks that are begun", ""),
        ("pause", "pause a video, a running one after its next chunk", ""),
        ("resume", "let a paused video go on, bit for bit", ""),
        ("cancel", "stop a video", "\nIts finished chunks stay."),
    ):
        _on_one_video(commands, name, _named(name), (summary, detail, f"longtake {name} video_0199…"))

    extend = _on_one_video(
        commands,
        "extend",
        _extend,
        (
            "continue a finished video in a new one",
            "\nThe new video begins with the old one. Prints the new one's id.",
            'longtake extend video_0199… "a red ball moving in circles" --seconds 120',
        ),
        _tell_id,
    )
    extend.add_argument(
        "prompt", type=text, metavar="PROMPT", help="what it shows from the end of the old one on"
    )
    extend.add_argument("--seconds", type=length, required=True, help="length of the whole, or `endless`")
    remix = _on_one_video(
        commands,
        "remix",
        _remix,
        (
            "make a video again with another prompt",
            "\nSeed and settings are those of the old one. Prints the new one's id.",
            'longtake remix video_0199… "a blue ball bouncing off the walls"',
        ),
        _tell_id,
    )
    remix.add_argument("prompt", type=text, metavar="PROMPT", help="what it shows")
    for parser in (extend, remix):
        priority_flag(parser)

    delete = commands.add(
        "delete", _delete, "remove videos and all their files", "", "longtake delete video_0199… video_019a…"
    )
    delete.add_argument("video_ids", type=video_id, metavar="ID", nargs="+", help="ids of the videos")
    service_flags(delete)

    download = commands.add(
        "download",
        _download,
        "write the file of a video",
        "\nA broken download goes on where it stopped when the command is given again.",
        "longtake download video_0199… -o ball.mp4",
    )
    download.add_argument("video_id", type=video_id, metavar="ID", help="id of the video")
    download.add_argument("-o", "--output", type=Path, help="file to write (default: named after the video)")
    download.add_argument("--variant", choices=get_args(Variant), default="video", help="which file")
    download.add_argument("--so-far", action="store_true", help="the part that is made by now")
    service_flags(download)

    models = commands.add(
        "models",
        _models,
        "list the models a service can make videos with",
        "",
        "longtake models --url http://127.0.0.1:8000",
    )
    json_flag(models)
    service_flags(models)


def _tell_state(video: VideoObject) -> None:
    print(f"{video.id}  {video.status.value}  {video.progress} %  {_length(video)}")


Ask = Callable[[LongtakeClient, argparse.Namespace], VideoObject]


def _named(name: str) -> Ask:
    """The client's operation of this name."""
    return lambda client, options: getattr(client, name)(options.video_id)


def _on_one_video(
    commands: Commands,
    name: str,
    ask: Ask,
    words: tuple[str, str, str],
    tell: Callable[[VideoObject], None] = _tell_state,
) -> argparse.ArgumentParser:
    """A command that asks something of one video and tells of the video that is the answer.

    `words` are its summary, the detail and an example.
    """

    def run(options: argparse.Namespace) -> int:
        with client_of(options) as client:
            video = ask(client, options)
        if options.json:
            print_json(video)
        else:
            tell(video)
        return 0

    parser = commands.add(name, run, *words)
    parser.add_argument("video_id", type=video_id, metavar="ID", help="id of the video")
    json_flag(parser)
    service_flags(parser)
    return parser


def _steer(client: LongtakeClient, options: argparse.Namespace) -> VideoObject:
    return client.steer(options.video_id, options.text, at=options.at)


def _update(client: LongtakeClient, options: argparse.Namespace) -> VideoObject:
    return client.update(options.video_id, seconds=options.seconds)


def _extend(client: LongtakeClient, options: argparse.Namespace) -> VideoObject:
    more = given(options, "priority")
    return client.extend(options.video_id, options.prompt, seconds=options.seconds, **more)


def _remix(client: LongtakeClient, options: argparse.Namespace) -> VideoObject:
    return client.remix(options.video_id, options.prompt, **given(options, "priority"))


def _list(options: argparse.Namespace) -> int:
    with client_of(options) as client:
        videos = list(islice(client.list(status=options.status), options.limit or None))
    if options.json:
        print_json(videos)
        return 0
    for video in videos:
        prompt = " ".join(video.prompt.split())
        short = prompt if len(prompt) <= _PROMPT_CHARS else prompt[: _PROMPT_CHARS - 1] + "…"
        print(
            f"{video.id}  {video.status.value:11}  {video.progress:3} %  {_length(video):>8}  {video.size}  {short}"
        )
    return 0


def _delete(options: argparse.Namespace) -> int:
    code = 0
    with client_of(options) as client:
        for name in options.video_ids:
            try:
                client.delete(name)
            except NotAuthorized:
                raise  # so would all others be
            except ServiceError as error:
                print(f"longtake: {name}: {error}", file=sys.stderr)
                code = 1
            else:
                print(f"deleted {name}")
    return code


def _download(options: argparse.Namespace) -> int:
    output = writable(options.output or Path(options.video_id + _SUFFIXES[options.variant]))
    with client_of(options) as client:
        print(client.download(options.video_id, output, variant=options.variant, so_far=options.so_far))
    return 0


def _models(options: argparse.Namespace) -> int:
    with client_of(options) as client:
        models = client.models()
    if options.json:
        print_json(models)
        return 0
    if not models:
        raise CommandError("no worker has registered a model yet")
    for model in models:
        print(_model_line(model))
    return 0


# -- words --------------------------------------------------------------------------------------------------


def _tell_id(video: VideoObject) -> None:
    print(video.id)


def _tell_all(video: VideoObject) -> None:
    facts: dict[str, object] = {
        "id": video.id,
        "status": video.status.value,
        "progress": f"{video.progress} %, {video.seconds_ready:g} s are ready",
        "stalled": video.stalled,
        "error": video.error and f"{video.error.message} ({video.error.code})",
        "queue": video.queue_position,
        "eta": None if video.eta_seconds is None else f"{video.eta_seconds:g} s",
        "model": video.model,
        "length": _length(video),
        "size": f"{video.size} at {video.fps} fps",
        "seed": video.seed,
        "created": datetime.fromtimestamp(video.created_at).astimezone().isoformat(),
        "labels": ", ".join(f"{name}={value}" for name, value in video.metadata.items()) or None,
    }
    for name, fact in facts.items():
        if fact is not None:
            print(f"{name:10} {fact}")
    for prompt in video.prompts:
        print(f"{f'{prompt.at:g} s':>10} {prompt.text}")
    for pending in video.pending_prompts:
        print(f"{'next' if pending.at is None else f'{pending.at:g} s':>10} {pending.text} (pending)")


def _length(video: VideoObject) -> str:
    return video.seconds if video.seconds == ENDLESS else f"{video.seconds} s"


def _model_line(model: ModelObject) -> str:
    sizes = ", ".join(model.sizes)
    line = f"{model.id}  {sizes}  {model.fps} fps  up to {model.max_seconds:g} s"
    return line if model.served else f"{line}  no worker has it now"
