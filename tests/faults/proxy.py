"""Networks that misbehave: an HTTP proxy in front of an object store, and a TCP relay that can be cut."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Trouble = Literal["refuse", "delay", "truncate", "lose answer", "slow down", "internal error"]
TROUBLES: tuple[Trouble, ...] = ("refuse", "delay", "truncate", "lose answer", "slow down", "internal error")

DELAY_SECONDS = 0.5

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
_INTERNAL = b"<Error><Code>InternalError</Code><Message>We had a problem. Try again.</Message></Error>"
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class StorageProxy:
    """Passes requests on to a store, or does to some of them what networks and stores do.

    `refuse` ends the connection without an answer, `delay` waits first, `truncate` sends half of an answer's body (or
    takes half of an upload, of which the store then hears nothing), `lose answer` lets the store act and tells nobody,
    `slow down` and `internal error` are S3's own 503 and 500.
    """

    def __init__(self, upstream: str) -> None:
        self.always: Trouble | None = None
        """What every request meets."""
        self.every = 0
        """Otherwise each request of this number meets trouble, all kinds in turn; 0: none does."""
        self.met: Counter[str] = Counter()
        self._requests = 0
        self._kinds = itertools.cycle(TROUBLES)
        self._upstream = urlsplit(upstream)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _trouble(self) -> Trouble | None:
        with self._lock:
            self._requests += 1
            kind = self.always
            if kind is None and self.every and self._requests % self.every == 0:
                kind = next(self._kinds)
            if kind is not None:
                self.met[kind] += 1
            return kind

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                trouble = proxy._trouble()
                length = int(self.headers.get("Content-Length") or 0)
                if trouble == "truncate" and length:
                    self.rfile.read(length // 2)
                    self._hang_up()
                    return
                body = self.rfile.read(length)
                match trouble:
                    case "refuse":
                        self._hang_up()
                        return
                    case "delay":
                        time.sleep(DELAY_SECONDS)
                    case "slow down":
                        self._answer(503, [("Content-Type", "application/xml")], _SLOW_DOWN)
                        return
                    case "internal error":
                        self._answer(500, [("Content-Type", "application/xml")], _INTERNAL)
                        return
                status, headers, answer = self._forward(body)
                if trouble == "lose answer":
                    self._hang_up()
                else:
                    self._answer(status, headers, answer, cut=trouble == "truncate")

            def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                host, port = proxy._upstream.hostname, proxy._upstream.port
                connection = http.client.HTTPConnection(host or "", port, timeout=30)
                try:
                    headers = {
                        name: value for name, value in self.headers.items() if name.lower() != "expect"
                    }
                    connection.request(self.command, self.path, body or None, headers)
                    answer = connection.getresponse()
                    return answer.status, answer.getheaders(), answer.read()
                finally:
                    connection.close()

            def _answer(
                self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False
            ) -> None:
                length = next((value for name, value in headers if name.lower() == "content-length"), None)
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                # The answer to HEAD tells the length of what it does not send.
                told = length if self.command == "HEAD" and length else str(len(body))
                self.send_header("Content-Length", told)
                self.end_headers()
                if cut:
                    self.wfile.write(body[: len(body) // 2])
                    self._hang_up()
                elif self.command != "HEAD":
                    self.wfile.write(body)

            def _hang_up(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815

        return Handler


class Relay:
    """Passes TCP connections on from an address of this machine to a port on its loopback."""

    def __init__(self, host: str, target_port: int) -> None:
        self.target_port = target_port
        """Where connections go that are made from now on."""
        self._listener = socket.create_server((host, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target_port))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
