"""The stock OpenAI SDK, two of its lines and unchanged, drives a running service on each kind of store."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conformance.conftest import Service, environment
from tests.conformance.sdk_checks import CHECKS, OF_THE_STORE

HERE = Path(__file__).parent
OF_2 = Path(sys.prefix) / "openai-2"

CHECKS_ON = {"folder": tuple(CHECKS), "s3": OF_THE_STORE}

_NOT_PASSED_ON = {"host", "connection", "content-length", "transfer-encoding"}


class Gateway(BaseHTTPRequestHandler):
    """Passes requests on, except for those that ask for trouble.

    `X-Refuse: LABEL N` gets 503 for the first N requests of this label; `X-Lose: LABEL N` too, but the service has
    had the request: what a gateway says that gave up waiting.
    """

    target = ""
    seen: dict[str, int]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        refused, lost = self._is_due("X-Refuse"), self._is_due("X-Lose")
        if not refused:
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON
            }
            answer = httpx.request(
                self.command,
                self.target + self.path,
                content=body,
                headers=headers,
                trust_env=False,
                timeout=30,
            )
            status, data, kind = answer.status_code, answer.content, answer.headers
        if refused or lost:
            status, data, kind = 503, b'{"error": {"message": "gateway"}}', httpx.Headers()
        self.send_response(status)
        for name, value in kind.items():
            if name.lower() not in {*_NOT_PASSED_ON, "date", "content-encoding"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET  # noqa: N815 - names that the library calls

    def _is_due(self, header: str) -> bool:
        label, _, times = self.headers.get(header, "").partition(" ")
        if not label:
            return False
        self.seen[label] = self.seen.get(label, 0) + 1
        return self.seen[label] <= int(times)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="session")
def gateway(service: Service) -> Iterator[str]:
    handler = type("GatewayOfOne", (Gateway,), {"target": service.url, "seen": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="session", params=["2", "3"])
def sdk(request: pytest.FixtureRequest) -> str:
    """The line of the SDK, by its first number."""
    line: str = request.param
    return line


@pytest.fixture(scope="session")
def outcomes(
    sdk: str, service: Service, gateway: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What became of every check with one line of the SDK: its traceback, or "" if it passed."""
    variables = {
        "URL": service.url,
        "GATEWAY": gateway,
        "STORAGE": service.storage,
        "FOLDER": str(tmp_path_factory.mktemp("sdk")),
        "KEY": service.key("checks"),
        "LISTING_KEY": service.key("listing"),
        "RETRY_KEY": service.key("retries"),
        "READ_ONLY_KEY": service.key("looking", of=service.key("idle").split("_")[1]),
        "LIMITED_KEY": service.key("limited", seconds_per_day=3.0),
        "NO_PROXY": "127.0.0.1",
    }
    settings = {**environment(), **variables}
    if sdk == "2":
        if not OF_2.is_dir():
            pytest.skip("the second OpenAI SDK is not installed: make install")
        settings["PYTHONPATH"] = str(OF_2)
    done = subprocess.run(
        [sys.executable, str(HERE / "sdk_checks.py"), *CHECKS_ON[service.storage]],
        env=settings,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, *told = (json.loads(line) for line in done.stdout.splitlines())
    assert version["version"].split(".")[0] == sdk
    return {one["check"]: one["problem"] for one in told}


@pytest.mark.parametrize("service", ["folder"], indirect=True, scope="session")
@pytest.mark.parametrize("check", CHECKS)
def test_the_sdk_can(check: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[check], f"\n{outcomes[check]}"


@pytest.mark.parametrize("service", ["s3"], indirect=True, scope="session")
@pytest.mark.parametrize("check", OF_THE_STORE)
def test_the_sdk_can_on_a_bucket(check: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[check], f"\n{outcomes[check]}"
