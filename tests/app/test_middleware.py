"""What other web sites make a visitor's browser send is refused; programs and the service's own pages are served."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from app.keys import KeyFile
from app.settings import Settings
from tests.app.conftest import Api, running_api


@pytest.fixture
def guarded(settings: Callable[..., Settings]) -> Iterator[Api]:
    """An API without keys that has names of its own."""
    names = {
        "public_url": "http://Films.example",
        "cors_origins": "https://player.example",
        "allowed_hosts": "A.example, b.example",
    }
    with running_api(settings(**names)) as running:
        running.worker.register()
        yield running


def test_other_web_sites_cannot_post_through_a_visitor_s_browser(
    api: Api, settings: Callable[..., Settings]
) -> None:
    form = {"prompt": (None, "x"), "seconds": (None, "2")}
    cross = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    api.error(api.http.post("/v1/videos", files=form, headers=cross), 403, "cross_site_request", "Origin")
    same = {"Sec-Fetch-Site": "same-origin", "Origin": api.url}
    assert api.http.post("/v1/videos", files=form, headers=same).status_code == 200
    with running_api(settings(cors_origins="https://evil.example")) as open_api:
        open_api.worker.register()
        assert open_api.http.post("/v1/videos", files=form, headers=cross).status_code == 200


# Browsers send no Sec-Fetch-Site to a plain http:// address that is not their own machine's.
@pytest.mark.parametrize(
    ("origin", "host", "taken"),
    [
        ("http://evil.example", "192.168.1.5:8000", False),
        ("http://192.168.1.5:9000", "192.168.1.5:8000", False),
        ("null", "192.168.1.5:8000", False),
        ("http://192.168.1.5:8000", "192.168.1.5:8000", True),
        ("https://gpu", "gpu", True),
        ("http://films.example", "127.0.0.1:8000", True),  # public_url, behind a proxy that rewrites Host
        ("https://player.example", "192.168.1.5:8000", True),  # one of cors_origins
        (None, "192.168.1.5:8000", True),
    ],
)
def test_where_the_browser_says_no_more_than_an_origin_that_decides(
    guarded: Api, origin: str | None, host: str, taken: bool
) -> None:
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    answer = guarded.http.post("/v1/videos", files={"prompt": (None, "x")}, headers=headers)
    if taken:
        assert answer.status_code == 200, answer.text
        assert guarded.http.delete(f"/v1/videos/{answer.json()['id']}", headers=headers).status_code == 200
    else:
        message = guarded.error(answer, 403, "cross_site_request", "Origin")
        assert "LONGTAKE_CORS_ORIGINS" in message
        assert guarded.http.get("/v1/videos", headers=headers).json()["data"] == []


@pytest.mark.parametrize(
    "host",
    [
        "rebind.evil.example:8000",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8000",
        "1.2.3.4.5",
    ],
)
def test_a_name_that_was_made_to_point_here_gets_nothing(guarded: Api, host: str) -> None:
    video_id = guarded.create()["id"]
    headers = {"Host": host, "Sec-Fetch-Site": "same-origin", "Origin": f"http://{host}"}
    for method, path in (
        ("GET", "/v1/videos"),
        ("GET", "/"),
        ("GET", "/metrics"),
        ("DELETE", f"/v1/videos/{video_id}"),
        ("POST", "/v1/videos"),
    ):
        answer = guarded.http.request(method, path, headers=headers)
        assert "LONGTAKE_ALLOWED_HOSTS" in guarded.error(answer, 421, "host_not_allowed", "Host")
    assert guarded.http.get(f"/v1/videos/{video_id}").status_code == 200
    assert guarded.http.get("/healthz", headers=headers).status_code == 200
    assert guarded.http.get("/readyz", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "192.168.1.5:8000",
        "[::1]:8000",
        "[fd00::1]",
        "localhost:8000",
        "films.localhost:8000",
        "api:8000",
        "films.example",
        "Films.Example:443",
        "a.example:8000",
        "b.example",
        socket.gethostname(),
        f"{socket.gethostname().partition('.')[0]}.local:8000",
    ],
)
def test_the_service_s_own_names_and_all_addresses_are_answered(guarded: Api, host: str) -> None:
    headers = {"Host": host, "Sec-Fetch-Site": "same-origin"}
    assert guarded.http.get("/v1/videos", headers=headers).status_code == 200


def test_a_stock_client_needs_to_say_nothing_of_where_it_comes_from(guarded: Api) -> None:
    port = guarded.url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost"):
        with openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="none", max_retries=0) as sdk:
            made: Any = sdk.post("/videos", body={"prompt": "a red ball"}, cast_to=object)
            assert made["status"] == "queued"
            assert [model.id for model in sdk.models.list()] == ["builtin"]


def test_any_name_will_do_where_keys_keep_strangers_out_or_the_operator_says_so(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    rebound = {"Host": "rebind.evil.example:8000", "Origin": "http://evil.example"}
    with running_api(settings(allowed_hosts="*")) as api:
        assert api.http.get("/v1/videos", headers=rebound).status_code == 200
        api.error(api.http.post("/v1/videos", headers=rebound), 403, "cross_site_request", "Origin")
    keys = KeyFile(tmp_path / "keys.json")
    bearer = {"Authorization": f"Bearer {keys.create('x')[1]}"}
    with running_api(settings(api_keys_file=keys.path)) as api:
        api.worker.register()
        answer = api.http.post("/v1/videos", files={"prompt": (None, "x")}, headers=rebound | bearer)
        assert answer.status_code == 200, answer.text
        api.error(api.http.get("/v1/videos", headers=rebound), 401, "missing_api_key")
