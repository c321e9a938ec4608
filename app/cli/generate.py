"""Commands that follow a video to its end: `generate` and `watch`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from app.cli.grammar import (
    CommandError,
    Commands,
    client_of,
    count,
    given,
    label,
    length,
    model_flag,
    model_name,
    priority_flag,
    scale,
    second,
    service_flags,
    text,
    video_id,
    writable,
)
from app.cli.own_service import OwnService
from app.client import Conflict, LongtakeClient, LongtakeError
from app.jobs.job import Status
from app.progress import Progress, ProgressDisplay, clock
from app.schemas import ENDLESS, VideoObject
from app.supervisor import BAD_USAGE

_CANCEL_SECONDS = 10.0

# Of a request: what flags give as it is.
_FIELDS = (
    "seconds",
    "size",
    "seed",
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "priority",
    "webhook_url",
)


def add(commands: Commands) -> None:
    """Adds these commands to the grammar."""
    generate = commands.add(
        "generate",
        _generate,
        "make one video and write it to a file",
        "\nWithout --url a service is started for this call, and ended after it. Ctrl-C cancels\n"
        "the video; an endless one it ends with the chunks that are begun, and writes it. With\n"
        "--no-wait it is only asked for: its id is printed, for `longtake watch` and the like.",
        'longtake generate "a red ball bouncing off the walls" --seconds 60 -o ball.mp4',
    )
    generate.add_argument("prompt", type=text, metavar="PROMPT", help="what the video shows")
    generate.add_argument(
        "--prompt-at",
        action="append",
        nargs=2,
        type=text,
        metavar=("SECOND", "TEXT"),
        help="what it shows from that second on; may be given several times",
    )
    generate.add_argument("--seconds", type=length, help="length of the video, or `endless` (default 60)")
    generate.add_argument(
        "--size", type=text, metavar="WxH", help="width and height in pixels (default: the model's)"
    )
    generate.add_argument("--seed", type=int, help="the same seed and prompt make the same video")
    generate.add_argument(
        "--negative-prompt", type=text, metavar="TEXT", help="what the video shall not show"
    )
    generate.add_argument(
        "--steps",
        dest="num_inference_steps",
        type=count,
        metavar="N",
        help="noise levels (default: the model's)",
    )
    generate.add_argument(
        "--guidance",
        dest="guidance_scale",
        type=scale,
        metavar="SCALE",
        help="how closely to follow the prompt (default: the model's)",
    )
    generate.add_argument(
        "--input", type=Path, metavar="FILE", help="image or clip that the video begins with"
    )
    priority_flag(generate)
    generate.add_argument(
        "--metadata",
        action="append",
        type=label,
        metavar="NAME=VALUE",
        help="a label of your own; may be given several times",
    )
    generate.add_argument(
        "--webhook-url",
        type=text,
        metavar="URL",
        help="web address that is told when the video ends; needs --url",
    )
    outcome = generate.add_mutually_exclusive_group()
    outcome.add_argument(
        "-o", "--output", type=Path, default=Path("out.mp4"), help="file to write (default out.mp4)"
    )
    outcome.add_argument(
        "--no-wait", action="store_true", help="print the video's id instead of following it; needs --url"
    )
    generate.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="data folder of the service for this call (default: a temporary one)",
    )
    model_flag(generate)
    service_flags(generate, "use this service instead of one for this call")

    watch = commands.add(
        "watch",
        _watch,
        "follow a video until it is finished",
        "\nCtrl-C stops the watching, not the video.",
        "longtake watch video_0199… --url http://127.0.0.1:8000 -o ball.mp4",
    )
    watch.add_argument("video_id", type=video_id, metavar="ID", help="id of the video")
    watch.add_argument("-o", "--output", type=Path, help="write the finished video to this file")
    service_flags(watch)


def _generate(options: argparse.Namespace) -> int:
    lasting = "--no-wait" if options.no_wait else "--webhook-url" if options.webhook_url else ""
    if lasting and not options.url:
        raise CommandError(f"{lasting} needs --url: a service for this call ends too soon", BAD_USAGE)
    display = ProgressDisplay(sys.stderr)
    if options.no_wait:
        with client_of(options) as client:
            print(_ask(options, client, _request(options), display).id)
        return 0
    output = writable(options.output)
    request = _request(options)
    with ExitStack() as stack:
        stack.enter_context(_terminated_like_interrupted())
        service: OwnService | None = None
        if options.url:
            url = options.url
        else:
            display.say("starting the service …")
            service = stack.enter_context(OwnService(options.data, model_name(options.model)))
            url = service.url
        client = stack.enter_context(client_of(options, url))
        began = time.monotonic()
        video = _ask(options, client, request, display)
        try:
            with _cancelling(options, url, lambda _: video, display):
                display.say(f"{video.id}: watch it at {url}/ while it is made")
                video = _follow_to_its_end(client, video, display)
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
    output = None if options.output is None else writable(options.output)
    with client_of(options) as client:
        video = _follow(client, client.retrieve(options.video_id), ProgressDisplay(sys.stderr))
        _deliver(client, video, output)
    if output is not None:
        print(output)
    return 0


def _request(options: argparse.Namespace) -> dict[str, Any]:
    """What is asked for beside the prompt, as `LongtakeClient.create` takes it."""
    request = given(options, *_FIELDS)
    if options.url:
        request |= given(options, "model")
    if options.metadata:
        request["metadata"] = labels = dict(options.metadata)
        if len(labels) < len(options.metadata):
            raise CommandError("--metadata: a name is given twice", BAD_USAGE)
    if options.input is not None:
        if not options.input.is_file():
            raise CommandError(f"--input: there is no file {options.input}", BAD_USAGE)
        request["input_reference"] = options.input.read_bytes()
    if options.prompt_at:
        try:
            request["prompts"] = [{"at": second(at), "text": text} for at, text in options.prompt_at]
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise CommandError(f"--prompt-at: SECOND is a number from 0 on ({error})", BAD_USAGE) from error
    return request


def _ask(
    options: argparse.Namespace, client: LongtakeClient, request: dict[str, Any], display: ProgressDisplay
) -> VideoObject:
    """Asks for the video; interrupted meanwhile, cancels what may have come of it."""
    key = str(uuid.uuid4())  # asked again with it, the service names the video that it has made already

    def ask(asked: LongtakeClient) -> VideoObject:
        return asked.create(options.prompt, idempotency_key=key, **request)

    with _cancelling(options, client.url, ask, display):
        return ask(client)


def _follow_to_its_end(client: LongtakeClient, video: VideoObject, display: ProgressDisplay) -> VideoObject:
    """Follows the video. The first interruption of an endless one that has begun only ends it."""
    try:
        return _follow(client, video, display)
    except KeyboardInterrupt:
        if video.seconds != ENDLESS:
            raise
        try:
            video = client.finish(video.id)
        except Conflict as error:
            if error.code == "video_not_started":
                raise KeyboardInterrupt from error
            raise
        display.say(f"finishing {video.id} …")
        return _follow(client, video, display)


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
def _cancelling(
    options: argparse.Namespace,
    url: str,
    find: Callable[[LongtakeClient], VideoObject],
    display: ProgressDisplay,
) -> Iterator[None]:
    """Cancels the video when the user interrupts, or when nobody can see any more what the display shows."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as reason:
        hasty = client_of(options, url, timeout_seconds=_CANCEL_SECONDS)
        with suppress(LongtakeError), hasty as client:
            video = find(client)
            with suppress(OSError):
                display.say(f"cancelling {video.id} …")
            client.cancel(video.id)
            client.wait(video.id, timeout_seconds=_CANCEL_SECONDS)
        raise KeyboardInterrupt from reason


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
