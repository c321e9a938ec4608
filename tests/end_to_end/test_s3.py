"""The service on S3: a server that checks signatures, and one that goes away in the middle of a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from moto.server import ThreadedMotoServer

from tests.app.storage.conftest import S3Server, swift  # noqa: F401 - a fixture
from tests.conftest import Eventually
from tests.end_to_end.conftest import Up, chunk_hashes, frame_times

PROMPT = "a red circle"
SECONDS = 6


@pytest.fixture(scope="session")
def undisturbed_hashes(service: Up) -> list[str]:
    """Chunks of the video as a service with a folder makes them."""
    video = service.client.create(PROMPT, seconds=SECONDS, seed=11)
    assert service.client.wait(video.id, timeout_seconds=300).status == "completed"
    return chunk_hashes(service.client, video.id)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Callable[[S3Server], None]:
    """Puts a server's credentials where the service looks for them."""

    def export(server: S3Server) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_access_key)

    return export


def settings_of(server: S3Server, bucket: str) -> dict[str, str]:
    return {
        "storage_url": f"s3://{bucket}/videos-of-a-test",
        "s3_endpoint_url": server.endpoint_url,
        "s3_create_bucket": "true",
    }


def test_a_video_goes_to_the_bucket_and_comes_from_it(
    up: Callable[..., Up],
    swift: S3Server,  # noqa: F811
    keys: Callable[[S3Server], None],
    undisturbed_hashes: list[str],
) -> None:
    keys(swift)
    service = up(**settings_of(swift, "whole"))
    video = service.client.create(PROMPT, seconds=SECONDS, seed=11)
    assert service.client.wait(video.id, timeout_seconds=300).status == "completed"
    assert chunk_hashes(service.client, video.id) == undisturbed_hashes

    content = f"{service.url}/v1/videos/{video.id}/content"
    redirect = httpx.get(content)
    assert redirect.status_code == 302
    assert redirect.headers["location"].startswith(swift.endpoint_url)
    assert len(frame_times(httpx.get(content, follow_redirects=True).content)) == SECONDS * 24

    service.client.delete(video.id)
    assert list(swift.open("whole").list("")) == []


@pytest.fixture
def moto_of_its_own() -> Iterator[ThreadedMotoServer]:
    """A server to stop and start again; what it holds stays."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server
    server.stop()


def test_a_store_that_goes_away_and_returns_costs_nothing_but_time(
    up: Callable[..., Up],
    moto_of_its_own: ThreadedMotoServer,
    keys: Callable[[S3Server], None],
    eventually: Eventually,
    undisturbed_hashes: list[str],
) -> None:
    host, port = moto_of_its_own.get_host_and_port()
    server = S3Server(f"http://{host}:{port}", "test", "test-secret")
    keys(server)
    service = up(**settings_of(server, "away"))
    client = service.client
    video = client.create(PROMPT, seconds=SECONDS, seed=11)
    eventually(lambda: (client.retrieve(video.id).chunks_ready or 0) >= 2, seconds=120)

    moto_of_its_own.stop()
    eventually(lambda: client.retrieve(video.id).stalled == "storage is not reachable", seconds=120)
    gone = httpx.get(f"{service.url}/v1/videos/{video.id}/chunks/0/content", timeout=60)
    assert gone.status_code == 503
    assert "retry-after" in gone.headers
    assert gone.json()["error"]["code"] == "storage_unavailable"

    again = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    again.start()
    try:
        assert client.wait(video.id, timeout_seconds=300).status == "completed"
        assert chunk_hashes(client, video.id) == undisturbed_hashes
    finally:
        again.stop()
