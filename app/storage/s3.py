"""Objects in an S3 bucket, or in any server that speaks the same protocol.

Only what every such server has is used: PutObject (with `If-None-Match: *` for create-if-absent), CopyObject,
GetObject with ranges, HeadObject, ListObjectsV2, DeleteObject(s), multipart upload, HeadBucket, and presigned GET. And
ListMultipartUploads where it is offered.
"""

import base64
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
import urllib3.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from app.storage.objects import (
    BLOCK_BYTES,
    BlockStream,
    InvalidKey,
    ObjectInfo,
    ObjectNotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageError,
    StoreFull,
    StoreMisconfigured,
    StoreUnavailable,
    content_disposition,
    content_type_of,
    validate_expiry,
    validate_key,
    validate_prefix,
    validate_range,
)

# Files above this go up in parts of this size, so that a lost connection repeats one part, not all.
# Ten thousand parts, the protocol's limit, make 156 GiB.
_PART_BYTES = 16 * 1024 * 1024

_CONNECT_SECONDS = 3.0

# The engine's uploads, the API's streams, and the parts of one multipart upload share the pool.
_CONNECTIONS = 64

_MISSING = {"NoSuchKey", "404", "NotFound"}
_FULL = {
    "QuotaExceeded",
    "StorageFull",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
    "InsufficientStorage",
}
_BUSY = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestTimeout",
    "RequestLimitExceeded",
    "TooManyRequests",
    # In the list of what a DeleteObjects did not delete, which comes with status 200.
    "InternalError",
    "ServiceUnavailable",
}
# What a server answers that knows no list of unfinished uploads, or lets nobody see it, or has just ended the upload.
_NOTHING_TO_ABORT = {"NotImplemented", "MethodNotAllowed", "AccessDenied", "NoSuchUpload"}
_REFUSED = {
    "403",
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}


class S3Store:
    """`ObjectStore` on a bucket. Opening sends nothing; `check()` tells whether the settings are right.

    Args:
        bucket: name of the bucket.
        prefix: put before every key with a `/`; empty for none.
        endpoint_url: server to talk to; None is Amazon's.
        public_endpoint_url: server that presigned URLs name; None is `endpoint_url`.
        region: region of the bucket; None leaves it to the usual AWS settings, then `us-east-1`.
        access_key_id: None leaves the credentials to the usual AWS settings (environment, profile, role).
        secret_access_key: belongs to `access_key_id`.
        timeout_seconds: longest silence in one attempt, in seconds.
        max_attempts: attempts for one call, the first included.

    Raises:
        StoreMisconfigured: a setting is malformed.
    """

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        endpoint_url: str | None = None,
        public_endpoint_url: str | None = None,
        region: str | None = None,
        addressing: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        timeout_seconds: float = 20.0,
        max_attempts: int = 3,
    ) -> None:
        try:
            self._prefix = validate_key(prefix) + "/" if prefix else ""
        except InvalidKey as error:
            raise StoreMisconfigured("the prefix of the S3 URL is not made of plain segments") from error
        self._bucket = bucket
        for url in (endpoint_url, public_endpoint_url):
            if url is not None and (
                urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname
            ):
                raise StoreMisconfigured("an S3 endpoint is an http:// or https:// URL")
        # Servers of one's own are rarely set up for a host name per bucket; Amazon wants one where the name allows it.
        addressing = addressing or ("auto" if endpoint_url is None else "path")
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": addressing},
            connect_timeout=min(_CONNECT_SECONDS, timeout_seconds),
            read_timeout=timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": max_attempts},
            max_pool_connections=_CONNECTIONS,
            # The newer checksum trailers are refused by many compatible servers; uploads carry an MD5 instead.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with _translated("the bucket"):
            session = boto3.session.Session(
                aws_access_key_id=access_key_id,
                aws_secret_access_key=secret_access_key,
                region_name=region or os.environ.get("AWS_REGION"),  # boto3 itself does not look there
            )

            def client(endpoint: str | None) -> Any:
                return session.client(
                    "s3", endpoint_url=endpoint, region_name=session.region_name or "us-east-1", config=config
                )

            self._client = client(endpoint_url)
            self._client.meta.events.register("before-sign.s3.DeleteObjects", _with_md5)
            self._public_client = client(public_endpoint_url) if public_endpoint_url else self._client
        self._transfer = TransferConfig(
            multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=4
        )

    def ensure_bucket(self) -> None:
        """Create the bucket unless it exists. For first runs and tests; operators usually make it themselves."""
        try:
            self._head_bucket()
        except ObjectNotFound:
            region = self._client.meta.region_name
        else:
            return
        # Amazon refuses its own default region as a location constraint.
        options = (
            {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        )
        with _translated("the bucket"), suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
            self._client.create_bucket(Bucket=self._bucket, **options)

    def put(
        self, key: str, data: bytes | Path, content_type: str | None = None, *, if_absent: bool = False
    ) -> None:
        """See `ObjectStore.put`."""
        name = self._name(key)
        media_type = content_type or content_type_of(key)
        if not isinstance(data, Path):
            digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
            self._put_one(key, data, {"ContentType": media_type, "ContentMD5": digest}, if_absent)
            return
        with data.open("rb") as file:
            if if_absent:
                # One request, because not every server honours the condition at the end of a multipart upload.
                self._put_one(key, file, {"ContentType": media_type}, if_absent)
                return
            with _translated(key):
                # An upload that fails is aborted by the transfer manager, which drops the parts sent so far.
                self._client.upload_fileobj(
                    file, self._bucket, name, ExtraArgs={"ContentType": media_type}, Config=self._transfer
                )

    def copy(self, source: str, target: str) -> None:
        """See `ObjectStore.copy`. The bytes do not leave the server."""
        origin, name = {"Bucket": self._bucket, "Key": self._name(source)}, self._name(target)
        with _translated(source):
            self._client.copy_object(Bucket=self._bucket, Key=name, CopySource=origin)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """See `ObjectStore.get`."""
        with self.stream(key, start, end) as blocks:
            return b"".join(blocks)

    def stream(
        self, key: str, start: int = 0, end: int | None = None, *, block_bytes: int = BLOCK_BYTES
    ) -> BlockStream:
        """See `ObjectStore.stream`. Holds one connection of the pool until it is read to the end or closed."""
        validate_range(start, end)
        request = {"Bucket": self._bucket, "Key": self._name(key)}
        if (start, end) != (0, None):
            request["Range"] = f"bytes={start}-" if end is None else f"bytes={start}-{end - 1}"
        with _translated(key):
            answer = self._client.get_object(**request)
        body = answer["Body"]

        def read(count: int) -> bytes:
            with _translated(key):
                block: bytes = body.read(count)
                return block

        return BlockStream(read, body.close, answer["ContentLength"], block_bytes)

    def head(self, key: str) -> ObjectInfo:
        """See `ObjectStore.head`."""
        with _translated(key):
            answer = self._client.head_object(Bucket=self._bucket, Key=self._name(key))
        return _info(
            key, answer["ContentLength"], answer["ETag"], answer["LastModified"], answer.get("ContentType")
        )

    def exists(self, key: str) -> bool:
        """See `ObjectStore.exists`."""
        try:
            self.head(key)
        except ObjectNotFound:
            return False
        return True

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        try:
            with _translated(key):
                self._client.delete_object(Bucket=self._bucket, Key=self._name(key))
        except ObjectNotFound:
            return

    def delete_prefix(self, prefix: str) -> None:
        """See `ObjectStore.delete_prefix`. A thousand objects a request; a failure leaves the rest to a retry.

        Ends uploads below the folder too: what a killed process has sent of one is in no listing, and is paid for.
        """
        if not validate_prefix(prefix):
            raise InvalidKey("deleting everything needs a folder's name")
        for page in self._pages(prefix):
            names = [{"Key": entry["Key"]} for entry in page]
            with _translated(prefix):
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": names, "Quiet": True}
                )
            for failure in answer.get("Errors", ()):
                if failure.get("Code") not in _MISSING:
                    raise _error(str(failure.get("Code")), 200, prefix)
        self._abort_uploads(prefix)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        validate_prefix(prefix)
        return self._list(prefix)

    def presign(
        self, key: str, expires_seconds: int, filename: str | None = None, content_type: str | None = None
    ) -> str | None:
        """See `ObjectStore.presign`. Signs locally, without a request."""
        validate_expiry(expires_seconds)
        request = {"Bucket": self._bucket, "Key": self._name(key)}
        if filename is not None:
            request["ResponseContentDisposition"] = content_disposition(filename)
        if content_type is not None:
            request["ResponseContentType"] = content_type
        with _translated(key):
            url: str = self._public_client.generate_presigned_url(
                "get_object", Params=request, ExpiresIn=expires_seconds
            )
        return url

    def check(self) -> None:
        """Ask for the bucket: tells a store out of reach, a missing bucket, and wrong keys apart."""
        try:
            self._head_bucket()
        except ObjectNotFound as error:
            raise StoreMisconfigured("there is no such bucket") from error

    def _head_bucket(self) -> None:
        with _translated("the bucket"):
            self._client.head_bucket(Bucket=self._bucket)

    def _name(self, key: str) -> str:
        return self._prefix + validate_key(key)

    def _put_one(self, key: str, body: object, headers: dict[str, str], if_absent: bool) -> None:
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        with _translated(key):
            self._client.put_object(
                Bucket=self._bucket, Key=self._name(key), Body=body, **headers, **condition
            )

    def _pages(self, prefix: str) -> Iterator[Sequence[dict[str, Any]]]:
        pages = iter(
            self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
        )
        while True:
            with _translated(prefix or "the bucket"):
                page = next(pages, None)
            if page is None:
                return
            if entries := page.get("Contents"):
                yield entries

    def _abort_uploads(self, prefix: str) -> None:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        with _translated(prefix), _ignoring(_NOTHING_TO_ABORT):
            for page in pages:
                for upload in page.get("Uploads", ()):
                    with _ignoring(_NOTHING_TO_ABORT):
                        self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._pages(prefix):
            for entry in page:
                key = entry["Key"].removeprefix(self._prefix)
                yield _info(key, entry["Size"], entry["ETag"], entry["LastModified"], None)


def _with_md5(request: Any, **_event: object) -> None:
    """Adds what older servers want of a deletion of many objects; boto3 sends only a checksum of the newer kind."""
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _info(key: str, size: int, etag: str, modified: datetime, content_type: str | None) -> ObjectInfo:
    return ObjectInfo(key, size, etag.strip('"'), modified, content_type or content_type_of(key))


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _error(code: str, status: int, subject: str) -> StorageError:
    """What an S3 error code, or failing that the HTTP status, means for the caller."""
    if code == "NoSuchBucket":
        return StoreMisconfigured("there is no such bucket")
    if code == "InvalidBucketName":
        return StoreMisconfigured("the bucket's name is not one")
    if code in _MISSING:
        return ObjectNotFound(f"no such object: {subject}")
    if code == "InvalidRange" or status == 416:
        return RangeNotSatisfiable(f"the range lies behind the end of the object: {subject}")
    if code == "PreconditionFailed" or status == 412:
        return PreconditionFailed(f"the object exists already: {subject}")
    if code in _FULL or status == 507:
        return StoreFull("the object store is full")
    # 409 is Amazon's answer to two conditional writes at the same time: neither is done, and one may try again.
    if code in _BUSY or status in (408, 409, 429) or status >= 500:
        return StoreUnavailable("the object store does not answer properly")
    if code in _REFUSED or status in (401, 403):
        return StoreMisconfigured("the object store refuses the credentials or their permissions")
    if 300 <= status < 400:
        return StoreMisconfigured("the bucket is in another region")
    return StorageError(f"the object store failed: {code or status}")


@contextmanager
def _ignoring(codes: Collection[str]) -> Iterator[None]:
    """Goes on behind the block after an S3 error of one of these codes."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        if _code(error) not in codes:
            raise


@contextmanager
def _translated(subject: str) -> Iterator[None]:
    """Turn what boto3 raises into the store's own errors, without hosts, keys, or signatures."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        raise _error(_code(error), status, subject) from error
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
        raise StoreMisconfigured("there are no credentials for the object store") from error
    except (
        botocore.exceptions.ConnectionError,
        botocore.exceptions.CredentialRetrievalError,
        botocore.exceptions.HTTPClientError,
        botocore.exceptions.IncompleteReadError,
        urllib3.exceptions.HTTPError,
        OSError,
    ) as error:
        raise StoreUnavailable("the object store cannot be reached") from error
    except RecursionError as error:
        # botocore follows a redirect by asking for the bucket, which a server that redirects everything (a proxy
        # from http to https) answers with a redirect.
        raise StoreMisconfigured("the S3 endpoint redirects to another address") from error
    except botocore.exceptions.BotoCoreError as error:
        raise StoreMisconfigured(f"the object store's settings are wrong: {type(error).__name__}") from error
