"""The file of API keys: what it holds, who changes it, and what happens when it is broken."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.keys import KeyFile, Keyring, KeysError, UnknownKey
from app.redaction import redact
from app.settings import Settings
from tests.app.conftest import Tenants, owner_of, running_tenants


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_the_file_holds_no_key_and_nobody_else_may_read_it(path: Path) -> None:
    key, token = KeyFile(path).create("studio", max_running=2)
    text = path.read_text()
    assert token.startswith(f"lt_{key.id}_")
    secret = token.rpartition("_")[2]
    assert len(secret) * 4 == 256
    assert secret not in text
    assert hashlib.sha256(token.encode()).hexdigest() in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]
    assert KeyFile(path).read() == [key]


def test_only_the_whole_key_opens(path: Path) -> None:
    key, token = KeyFile(path).create("studio")
    other = KeyFile(path).create("other")[0]
    ring = Keyring(path)
    assert ring.find(token) == key
    id_, secret = key.id, token.rpartition("_")[2]
    for wrong in ("", "lt_", token[:-1], token + "0", token.upper(), f" {token}", f"lt_{other.id}_{secret}",
                  f"lt_{id_}_{'0' * 64}", secret, "lt_ééé_\udc80"):  # fmt: skip
        assert ring.find(wrong) is None, wrong


def test_many_processes_add_keys_at_once_and_none_is_lost(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from app.keys import KeyFile\n"
        "for n in range(10): KeyFile(Path(sys.argv[1])).create(f'{sys.argv[2]}-{n}')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), str(n)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    keys = KeyFile(path).read()
    assert {key.name for key in keys} == {f"{writer}-{n}" for writer in range(3) for n in range(10)}


def test_a_change_is_seen_at_the_next_request_of_every_keyring(path: Path) -> None:
    rings = [Keyring(path), Keyring(path)]
    file = KeyFile(path)
    for _ in range(20):  # faster than the clock of many file systems
        key, token = file.create("x")
        assert all(ring.find(token) == key for ring in rings)
        revoked = file.revoke(key.id)
        assert revoked.revoked_at is not None
        assert all(ring.find(token) is None and ring.active(key.id) is None for ring in rings)
        assert file.revoke(key.id) == revoked
    with pytest.raises(UnknownKey):
        file.revoke("0" * 12)


def test_a_key_that_may_only_look_is_good_for_as_long_as_the_one_it_looks_at(path: Path) -> None:
    file, ring = KeyFile(path), Keyring(path)
    studio = file.create("studio")[0]
    viewers = [file.create("wall", of=named) for named in ("studio", studio.id)]
    for viewer, token in viewers:
        assert (viewer.read_only, viewer.of) == (True, studio.id)
        assert ring.find(token) == ring.active(viewer.id) == viewer
    file.revoke(viewers[0][0].id)
    assert [ring.find(token) for _, token in viewers] == [None, viewers[1][0]]
    file.revoke(studio.id)
    assert ring.find(viewers[1][1]) is None
    assert ring.active(viewers[1][0].id) is None


def test_only_a_key_that_makes_videos_can_be_looked_at(path: Path) -> None:
    file = KeyFile(path)
    first = file.create("studio")[0]
    file.create("wall", of="studio")
    with pytest.raises(UnknownKey, match="no API key garden"):
        file.create("x", of="garden")
    with pytest.raises(KeysError, match="wall makes no videos"):
        file.create("x", of="wall")
    second = file.create("studio")[0]
    with pytest.raises(KeysError, match="2 API keys studio: name one by its id"):
        file.create("x", of="studio")
    file.revoke(first.id)
    assert file.create("x", of="studio")[0].of == second.id
    with pytest.raises(KeysError, match=f"{first.id} makes no videos"):
        file.create("x", of=first.id)


def test_a_read_only_key_of_an_earlier_version_is_read_and_sees_nothing(tenants: Tenants, path: Path) -> None:
    owner, old = tenants.join(), tenants.join()
    tenants.create(owner)
    stored = json.loads(path.read_text())
    stored["keys"][1]["read_only"] = True
    path.write_text(json.dumps(stored))
    assert old.get("/v1/videos").json()["data"] == []
    tenants.api.error(old.post("/v1/videos", json={"prompt": "x"}), 403, "insufficient_scope")


def test_a_file_behind_a_link_is_replaced_and_the_link_stays(path: Path, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    path.symlink_to(tmp_path / "secrets" / "keys.json")
    KeyFile(path).create("x")
    assert path.is_symlink()
    assert len(KeyFile(tmp_path / "secrets" / "keys.json").read()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_change_by_another_user_leaves_the_file_to_those_who_could_read_it(path: Path) -> None:
    file = KeyFile(path)
    key, _ = file.create("x")
    path.chmod(0o640)
    os.chown(path, 1234, 2345)
    file.revoke(key.id)
    file.create("y")
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 2345, 0o640)


ENTRY = {"id": "0" * 12, "name": "x", "sha256": "0" * 64, "created_at": 1}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "\ufeff{}",
        '{"version": 2, "keys": []}',
        '{"keys": [{"id": "x"}]}',
        json.dumps({"keys": [ENTRY, ENTRY]}),
        json.dumps({"keys": [{**ENTRY, "admin": True}]}),
        json.dumps({"keys": [{**ENTRY, "of": "studio"}]}),
        json.dumps({"keys": [{**ENTRY, "max_queued": -1}]}),
    ],
)
def test_a_broken_file_is_refused_and_never_overwritten(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(KeysError, match=str(path)):
        KeyFile(path).read()
    with pytest.raises(KeysError):
        KeyFile(path).create("x")
    with pytest.raises(KeysError):
        Keyring(path).find("lt_x")
    assert path.read_text() == content


def test_a_broken_or_lost_file_lets_nobody_in_until_it_is_back(
    tenants: Tenants, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api, client = tenants.api, tenants.join()
    video = tenants.create(client)
    good = path.read_text()
    with caplog.at_level(logging.ERROR, "app.keys"):
        for content in ("{", None, '{"version": 1, "keys": 7}'):
            path.unlink()
            if content is not None:
                path.write_text(content)
            for _ in range(3):
                api.error(client.get("/v1/videos"), 503, "keys_unavailable")
            api.error(tenants.client().get("/v1/videos"), 401, "missing_api_key")
            api.error(tenants.client().get(video["playlist_url"]), 503, "keys_unavailable")
            ready = tenants.client().get("/readyz")
            assert (ready.status_code, ready.json()["keys"]) == (503, "keys_unavailable")
            assert str(path) not in ready.text
            path.write_text(good)
            assert client.get("/v1/videos").status_code == 200
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 3  # once each, not with every request
    assert all("every request is refused" in line and str(path) in line for line in told)
    assert tenants.client().get("/readyz").status_code == 200


def test_an_empty_list_of_keys_is_a_good_file(path: Path, settings: Callable[..., Settings]) -> None:
    path.write_text('{"version": 1, "keys": []}')
    with running_tenants(settings(api_keys_file=path)) as tenants:
        tenants.api.error(tenants.client("lt_x").get("/v1/videos"), 401, "invalid_api_key")


def test_revocation_reaches_every_replica_at_once(path: Path, settings: Callable[..., Settings]) -> None:
    config = settings(api_keys_file=path)
    with running_tenants(config) as one, running_tenants(config) as two:
        client = one.join()
        twin = two.client(client.headers["authorization"].removeprefix("Bearer "))
        assert client.get("/v1/videos").status_code == twin.get("/v1/videos").status_code == 200
        one.keys.revoke(owner_of(client))
        assert client.get("/v1/videos").status_code == twin.get("/v1/videos").status_code == 401


def test_a_place_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "keys.json"):
        with pytest.raises(KeysError, match="cannot read the API keys"):
            KeyFile(path).read()
    for path in (tmp_path / "nowhere" / "keys.json", Path("/proc/keys.json")):
        with pytest.raises(KeysError, match="cannot write API keys"):
            KeyFile(path).create("x")


def test_redaction_leaves_the_id_and_takes_the_secret(path: Path) -> None:
    key, token = KeyFile(path).create("x")
    secret = token.rpartition("_")[2]
    for text in (token, f"Bearer {token}", f"/v1/{token}/x", f'{{"k": "{token}"}}', token[:-1], f"x{token}y"):
        assert secret[:40] not in redact(text)
        assert f"lt_{key.id}_…" in redact(text)
    assert redact("GET /x?api_key=abc&sig=d-e_f&exp=1 200") == "GET /x?api_key=…&sig=…&exp=1 200"
    assert redact("design=oak, lt_, video_0123") == "design=oak, lt_, video_0123"
