"""What is particular to S3: presigned URLs, credentials, and a server that fails in every way it can."""

import base64
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import botocore.exceptions
import httpx
import pytest
from botocore.awsrequest import AWSPreparedRequest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from app.storage import (
    ObjectNotFound,
    StorageError,
    StoreFull,
    StoreMisconfigured,
    StoreUnavailable,
)
from app.storage.objects import chunk_key, final_key, video_prefix
from app.storage.s3 import S3Store

KEY = final_key("video_1")
SECRET = "a-secret-that-stays-here"


def _get(url: str | None, **headers: str) -> httpx.Response:
    assert url is not None
    return httpx.get(url, headers=headers, trust_env=False)


# Presigned URLs


def test_a_presigned_url_reads_the_object_without_credentials(s3) -> None:
    store = s3.open_empty()
    store.put(KEY, b"0123456789")
    answer = _get(store.presign(KEY, 60))
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["content-type"] == "video/mp4"


def test_a_presigned_url_serves_ranges(s3) -> None:
    store = s3.open_empty()
    store.put(KEY, b"0123456789")
    answer = _get(store.presign(KEY, 60), Range="bytes=2-4")
    assert (answer.status_code, answer.content) == (206, b"234")


def test_a_presigned_url_names_the_download(s3) -> None:
    store = s3.open_empty()
    store.put(KEY, b"x")
    answer = _get(store.presign(KEY, 60, filename='Löwe "1".mp4', content_type="application/octet-stream"))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"L_we _1_.mp4\"; filename*=UTF-8''L%C3%B6we%20%221%22.mp4"
    )


def test_a_presigned_url_names_the_public_endpoint(moto) -> None:
    store = moto.open(public_endpoint_url="https://media.example.org:9000")
    url = store.presign(KEY, 60)
    assert url is not None
    assert url.startswith("https://media.example.org:9000/longtake/videos/video_1/video.mp4?")
    assert moto.endpoint_url not in url


def test_a_presigned_url_is_refused_after_its_time(swift) -> None:
    store = swift.open_empty()
    store.put(KEY, b"x")
    url = store.presign(KEY, 1)
    time.sleep(2.5)
    assert _get(url).status_code == 403


def test_a_presigned_url_is_refused_once_it_is_tampered_with(swift) -> None:
    store = swift.open_empty()
    store.put(KEY, b"x")
    store.put(chunk_key("video_1", 0), b"y")
    url = store.presign(KEY, 60)
    assert url is not None
    assert _get(url).status_code == 200
    assert _get(url.replace("video.mp4", "chunks/000000.m4s")).status_code == 403
    assert _get(url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")).status_code == 403
    assert _get(url[:-1] + ("0" if url[-1] != "0" else "1")).status_code == 403
    assert not _get(url.partition("?")[0]).is_success


def test_a_presigned_url_of_a_wrong_secret_is_refused(swift) -> None:
    swift.open(prefix="presign").put(KEY, b"x")
    assert _get(swift.open(prefix="presign", secret_access_key=SECRET).presign(KEY, 60)).status_code == 403


# Settings


def test_a_wrong_secret_is_a_matter_for_the_operator(swift) -> None:
    store = swift.open(secret_access_key=SECRET)
    for call in (
        store.check,
        lambda: store.put(KEY, b"x"),
        lambda: store.get(KEY),
        lambda: list(store.list()),
    ):
        with pytest.raises(StoreMisconfigured, match="refuses the credentials") as caught:
            call()
        assert SECRET not in str(caught.value)


def test_a_missing_bucket_is_a_matter_for_the_operator(s3) -> None:
    store = s3.open(bucket="no-such-bucket")
    for call in (
        store.check,
        lambda: store.put(KEY, b"x"),
        lambda: store.get(KEY),
        lambda: list(store.list()),
    ):
        with pytest.raises(StoreMisconfigured, match="no such bucket"):
            call()


def test_an_impossible_bucket_is_a_matter_for_the_operator(moto) -> None:
    with pytest.raises(StoreMisconfigured, match="bucket's name"):
        moto.open(bucket="b").ensure_bucket()


def test_a_bucket_is_created_on_request_and_only_once(s3) -> None:
    store = s3.open(bucket="made-on-request")
    store.ensure_bucket()
    store.put(KEY, b"x")
    store.ensure_bucket()
    assert store.get(KEY) == b"x"


def test_missing_credentials_are_a_matter_for_the_operator(moto, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(StoreMisconfigured, match="no credentials"):
        S3Store("longtake", endpoint_url=moto.endpoint_url).check()


@pytest.mark.parametrize("endpoint", ["localhost:9000", "ftp://localhost", "http://"])
def test_a_malformed_endpoint_is_refused_at_once(endpoint: str) -> None:
    with pytest.raises(StoreMisconfigured, match="endpoint"):
        S3Store("longtake", endpoint_url=endpoint)


def test_a_prefix_keeps_two_services_in_one_bucket_apart(s3) -> None:
    one, two = s3.open(prefix="apart/one"), s3.open(prefix="apart/two")
    one.put(KEY, b"1")
    two.put(KEY, b"2")
    one.delete_prefix(video_prefix("video_1"))
    assert not one.exists(KEY)
    assert two.get(KEY) == b"2"
    assert [info.key for info in two.list()] == [KEY]


def test_more_objects_than_a_page_holds_are_listed_and_deleted(moto) -> None:
    store = moto.open_empty()
    # Straight into moto, which runs in this process: a thousand requests would take seconds.
    bucket = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for index in range(1_010):
        bucket.put_object("longtake", store._prefix + chunk_key("a", index), b"x")
    assert [info.key for info in store.list("videos/a/")] == [chunk_key("a", index) for index in range(1_010)]
    store.delete_prefix("videos/a/")
    assert list(store.list("videos/a/")) == []


def test_a_deletion_of_many_objects_carries_the_md5_that_older_servers_want(s3) -> None:
    store = s3.open(prefix="md5")
    store.put(KEY, b"x")
    sent: list[tuple[str | None, bytes]] = []

    def look(request: AWSPreparedRequest, **_event: object) -> None:
        sent.append((request.headers.get("Content-MD5"), request.body))

    store._client.meta.events.register("before-send.s3.DeleteObjects", look)
    store.delete_prefix(video_prefix("video_1"))
    assert not store.exists(KEY)
    ((digest, body),) = sent
    assert digest is not None
    assert base64.b64decode(digest) == hashlib.md5(body, usedforsecurity=False).digest()


def _uploads(store: S3Store) -> list[str]:
    answer = store._client.list_multipart_uploads(Bucket="longtake", Prefix=store._prefix)
    return [upload["Key"].removeprefix(store._prefix) for upload in answer.get("Uploads", ())]


def _begin_upload(store: S3Store, key: str) -> None:
    """Leaves what a process leaves that is killed in the middle of a large upload."""
    asked = {"Bucket": "longtake", "Key": store._prefix + key}
    upload = store._client.create_multipart_upload(**asked)["UploadId"]
    store._client.upload_part(**asked, UploadId=upload, PartNumber=1, Body=b"x")


def test_uploads_that_nobody_finished_are_deleted_with_their_folder(s3) -> None:
    store = s3.open_empty()
    for key in (KEY, KEY, final_key("video_2")):
        _begin_upload(store, key)
    store.delete_prefix(video_prefix("video_1"))
    assert _uploads(store) == [final_key("video_2")]


def test_a_server_without_a_list_of_uploads_deletes_all_the_same(
    moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = moto.open_empty()
    store.put(KEY, b"x")
    _begin_upload(store, KEY)
    error = {"Code": ""}

    def refuse(**_request: object) -> None:
        raise botocore.exceptions.ClientError({"Error": error}, "AbortMultipartUpload")

    monkeypatch.setattr(store._client, "abort_multipart_upload", refuse)
    for error["Code"] in ("NotImplemented", "AccessDenied", "NoSuchUpload"):
        store.delete_prefix(video_prefix("video_1"))
    assert not store.exists(KEY)
    error["Code"] = "SlowDown"
    with pytest.raises(StoreUnavailable):
        store.delete_prefix(video_prefix("video_1"))


# A server in trouble. The real ones do not fail on demand, so these few lines of HTTP stand in for them.


class _Trouble(BaseHTTPRequestHandler):
    """Answers every request with the server's `status` and `code`; `cut` ends a body too early."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.server.requests += 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.status == 0:
            self.server.released.wait(30)
            self.close_connection = True
            return
        body = f"<Error><Code>{self.server.code}</Code><Message>{SECRET}</Message></Error>".encode()
        if self.server.status == 200:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.send_header("ETag", '"1"')
            self.end_headers()
            self.wfile.write(b"only this")
            self.close_connection = True
            return
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


class _TroubleServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Trouble)
        self.status, self.code, self.requests, self.released = 500, "", 0, threading.Event()


@pytest.fixture
def trouble() -> Iterator[_TroubleServer]:
    server = _TroubleServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def _client(port: int, attempts: int = 2, seconds: float = 20) -> S3Store:
    return S3Store(
        "longtake",
        endpoint_url=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key_id="key",
        secret_access_key=SECRET,
        timeout_seconds=seconds,
        max_attempts=attempts,
    )


def _every_call(store: S3Store) -> list:
    return [
        store.check,
        lambda: store.put(KEY, b"x"),
        lambda: store.get(KEY),
        lambda: store.stream(KEY),
        lambda: store.head(KEY),
        lambda: store.exists(KEY),
        lambda: store.delete(KEY),
        lambda: store.delete_prefix(video_prefix("video_1")),
        lambda: list(store.list()),
    ]


ANSWERS: list[tuple[int, str, type[StorageError]]] = [
    (500, "InternalError", StoreUnavailable),
    (503, "SlowDown", StoreUnavailable),
    (503, "", StoreUnavailable),
    (429, "TooManyRequests", StoreUnavailable),
    (409, "ConditionalRequestConflict", StoreUnavailable),
    (507, "XMinioStorageFull", StoreFull),
    (403, "QuotaExceeded", StoreFull),
    (403, "AccessDenied", StoreMisconfigured),
    (403, "RequestTimeTooSkewed", StoreMisconfigured),
    (418, "Teapot", StorageError),
]


def test_an_answer_of_the_server_becomes_an_error_of_ours(trouble: _TroubleServer) -> None:
    store = _client(trouble.server_port, attempts=1)
    for trouble.status, trouble.code, expected in ANSWERS:
        for call in (lambda: store.put(KEY, b"x"), lambda: store.get(KEY), lambda: list(store.list())):
            with pytest.raises(StorageError) as caught:
                call()
            assert type(caught.value) is expected, (trouble.status, trouble.code)
            assert SECRET not in str(caught.value)


def test_an_endpoint_that_redirects_everything_is_a_matter_for_the_operator(trouble: _TroubleServer) -> None:
    trouble.status, trouble.code = 301, ""
    with pytest.raises(StoreMisconfigured):
        _client(trouble.server_port, attempts=1).get(KEY)


def test_a_busy_server_is_asked_again_a_bounded_number_of_times(trouble: _TroubleServer) -> None:
    trouble.status, trouble.code = 503, "SlowDown"
    with pytest.raises(StoreUnavailable):
        _client(trouble.server_port, attempts=2).get(KEY)
    assert trouble.requests == 2


def test_a_server_that_is_away_makes_every_call_unavailable_and_leaks_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for call in _every_call(_client(port, attempts=1)):
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert caught.value.retryable
        assert str(port) not in str(caught.value)
        assert SECRET not in str(caught.value)


def test_a_silent_server_is_given_up_after_the_timeout(trouble: _TroubleServer) -> None:
    trouble.status = 0
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        _client(trouble.server_port, attempts=1, seconds=0.3).get(KEY)
    assert time.monotonic() - began < 5


def test_a_body_cut_short_is_an_error_and_not_a_short_object(trouble: _TroubleServer) -> None:
    trouble.status = 200
    store = _client(trouble.server_port)
    with pytest.raises(StoreUnavailable):
        store.get(KEY)
    with pytest.raises(StoreUnavailable):
        list(store.stream(KEY))


def test_a_large_upload_to_a_server_in_trouble_fails_like_a_small_one(
    trouble: _TroubleServer, tmp_path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(17 * 1024 * 1024))
    store = _client(trouble.server_port, attempts=1)
    trouble.status, trouble.code = 503, "SlowDown"
    with pytest.raises(StoreUnavailable):
        store.put(KEY, source)
    trouble.status, trouble.code = 404, "NoSuchBucket"
    with pytest.raises(StoreMisconfigured, match="no such bucket"):
        store.put(KEY, source)


def test_a_deletion_that_the_server_refuses_for_one_object_is_reported(
    moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = moto.open_empty()
    store.put(KEY, b"x")
    answer = {"Errors": [{"Key": KEY, "Code": "SlowDown", "Message": SECRET}]}
    monkeypatch.setattr(store._client, "delete_objects", lambda **request: answer)
    for code in ("SlowDown", "InternalError"):
        answer["Errors"][0]["Code"] = code
        with pytest.raises(StoreUnavailable):
            store.delete_prefix(video_prefix("video_1"))


def test_a_missing_object_behind_a_prefix_is_named_by_its_key(moto) -> None:
    with pytest.raises(ObjectNotFound, match=KEY) as caught:
        moto.open(prefix="inside").get(KEY)
    assert "inside" not in str(caught.value)
