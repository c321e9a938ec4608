"""Clients that stop taking or sending: what they hold is let go, and whoever is only slow is left alone."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from app.jobs.store import Event
from app.settings import Settings
from app.storage.objects import final_key
from tests.app.conftest import Api, running_api
from tests.conftest import Eventually

CONTENT = os.urandom(8 << 20)  # more than any buffer between the two takes


def open_files(of: str) -> list[str]:
    """Names of the files with this in their name that the process, of which the API is a thread, has open."""
    names = []
    for number in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            names.append(str(number.readlink()))
    return [name for name in names if of in name]


def connected(api: Api) -> socket.socket:
    """A connection that holds little on its way to the client."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = api.url.removeprefix("http://").split(":")
    client.connect((host, int(port)))
    client.settimeout(60)
    return client


def large_video(api: Api) -> str:
    api.worker.register()
    video_id: str = api.create()["id"]
    video = api.worker.claim(video_id)
    api.worker.objects.put(final_key(video_id), CONTENT)
    api.worker.videos.finish(video, api.worker.fences[video_id], "completed", final_bytes=len(CONTENT))
    return video_id


def test_a_client_that_takes_nothing_of_its_download_loses_file_and_connection(
    settings: Callable[..., Settings], eventually: Eventually
) -> None:
    with running_api(settings(idle_seconds=1)) as api:
        video_id = large_video(api)
        with connected(api) as client:
            client.sendall(f"GET /v1/videos/{video_id}/content HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            eventually(lambda: open_files(final_key(video_id)))
            eventually(lambda: not open_files(final_key(video_id)))
            received = []
            with suppress(
                ConnectionResetError
            ):  # what the connection still holds comes first, or is lost with it
                while piece := client.recv(1 << 20):
                    received.append(len(piece))
            assert sum(received) < len(CONTENT)


def test_a_client_that_takes_its_download_slowly_is_left_alone(settings: Callable[..., Settings]) -> None:
    with running_api(settings(idle_seconds=3)) as api:
        video_id = large_video(api)
        with connected(api) as client:
            client.sendall(f"GET /v1/videos/{video_id}/content HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            received, began = b"", time.monotonic()
            while time.monotonic() - began < 8:
                received += client.recv(4096)
                time.sleep(0.2)
            assert open_files(final_key(video_id))
            assert CONTENT.startswith(received.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("path", ["/v1/videos", f"/v1/videos/video_{'0' * 32}/remix"])
@pytest.mark.parametrize("media_type", ["multipart/form-data; boundary=b", "application/json"])
def test_a_body_that_stops_coming_is_refused_and_leaves_nothing_behind(
    settings: Callable[..., Settings], path: str, media_type: str
) -> None:
    with running_api(settings(idle_seconds=1)) as api, connected(api) as client:
        before = sorted(open_files("(deleted)"))
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {media_type}\r\nContent-Length: 100000\r\n\r\n"
        )
        part = '--b\r\nContent-Disposition: form-data; name="input_reference"; filename="a"\r\n\r\nxxx'
        client.sendall((head + part).encode())
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 408 ")
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert (error["code"], error["type"]) == ("request_timeout", "invalid_request_error")
        assert sorted(open_files("(deleted)")) == before


WHOLE, BEGUN = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(("before", "begun"), [("", ""), ("", BEGUN), (WHOLE, BEGUN), (WHOLE, "\r\n")])
def test_a_connection_on_which_no_whole_request_comes_is_let_go(
    settings: Callable[..., Settings], before: str, begun: str
) -> None:
    with running_api(settings(idle_seconds=2), opened=False) as api, connected(api) as client:
        if before:
            client.sendall(before.encode())
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        client.sendall(begun.encode())
        with suppress(ConnectionResetError):
            while client.recv(1 << 16):
                pass


def test_a_body_that_comes_slowly_is_read_to_its_end(settings: Callable[..., Settings]) -> None:
    with running_api(settings(idle_seconds=3)) as api, connected(api) as client:
        api.worker.register()
        body = b'{"prompt": "a red ball"}'
        head = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        client.sendall(f"{head}\r\n\r\n".encode())
        for byte in body:
            client.sendall(bytes([byte]))
            time.sleep(0.2)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_a_watcher_that_takes_nothing_is_forgotten_and_one_whose_own_body_stalls_is_not(
    settings: Callable[..., Settings], eventually: Eventually
) -> None:
    with running_api(settings(idle_seconds=1, sse_heartbeat_seconds=0.2)) as api:
        api.worker.register()
        video_id = api.create()["id"]
        with connected(api) as client:
            asked = f"GET /v1/videos/{video_id}/events HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
            client.sendall(asked.encode())
            began, received = time.monotonic(), b""
            while time.monotonic() - began < 3:
                received += client.recv(1 << 16)
            assert received.count(b": ping") > 5
            assert api.context.events.watchers == 1
            api.worker.claim(video_id)
            padding = "x" * 30_000
            for number in range(400):
                api.worker.videos.update(
                    video_id, api.worker.fences[video_id], events=[Event("progress", {"p": padding})]
                )
                if number > 100 and not api.context.events.watchers:
                    break
            eventually(lambda: api.context.events.watchers == 0)
