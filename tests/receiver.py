"""A web server on loopback that takes webhooks or other requests, and answers as a test wants it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Call:
    """One request that a receiver got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event


Answer = Callable[[BaseHTTPRequestHandler], None]


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    """Answers with a status."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def hang(request: BaseHTTPRequestHandler) -> None:
    """Says nothing until the caller has gone."""
    request.connection.settimeout(120)
    request.connection.recv(1)


def close(request: BaseHTTPRequestHandler) -> None:
    """Hangs up without an answer."""
    request.close_connection = True


def garbage(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    request.close_connection = True


def endless(request: BaseHTTPRequestHandler) -> None:
    """Answers 200 and a body that never ends."""
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(b"x" * 65536)
    except OSError:
        request.close_connection = True


@dataclass
class Receiver:
    """A web server that takes webhooks; `answers` are given in turn, then 204 for ever."""

    answers: list[Answer] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    port: int = 0

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/hook?token=t0ken"

    @property
    def types(self) -> list[str]:
        return [call.event["type"] for call in self.calls]

    @property
    def ids(self) -> list[str]:
        return [call.headers["webhook-id"] for call in self.calls]

    def take(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.calls.append(Call(request.command, request.path, headers, body, time.monotonic()))
        (self.answers.pop(0) if self.answers else status(204))(request)


@contextmanager
def receiving(*answers: Answer) -> Iterator[Receiver]:
    """A receiver on a free port."""
    receiver = Receiver(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.take(self)

        do_GET = do_POST  # noqa: N815 - names that the library calls

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: Any) -> None:
            """Callers that hang up are part of the tests."""

    with Server(("127.0.0.1", 0), Handler) as server:
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
