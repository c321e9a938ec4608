"""Object storage: one protocol, a folder for a laptop, S3 for everything else."""

from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from app.settings import Settings
from app.storage.filesystem import FilesystemStore
from app.storage.objects import (
    BlockStream,
    InvalidKey,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageError,
    StoreFull,
    StoreMisconfigured,
    StoreUnavailable,
)

__all__ = [
    "BlockStream",
    "InvalidKey",
    "ObjectInfo",
    "ObjectNotFound",
    "ObjectStore",
    "PreconditionFailed",
    "RangeNotSatisfiable",
    "StorageError",
    "StoreFull",
    "StoreMisconfigured",
    "StoreUnavailable",
    "folder_of",
    "open_store",
    "store_of",
]


def open_store(
    url: str,
    *,
    s3_endpoint_url: str | None = None,
    s3_public_endpoint_url: str | None = None,
    s3_region: str | None = None,
    s3_addressing: Literal["auto", "path", "virtual"] | None = None,
    s3_access_key_id: str | None = None,
    s3_secret_access_key: str | None = None,
    s3_timeout_seconds: float = 20.0,
    s3_max_attempts: int = 3,
    s3_ensure_bucket: bool = False,
) -> ObjectStore:
    """Open the store that a URL names. Cheap for S3: nothing is sent before the first call.

    Args:
        url: `file:///absolute/folder` (created if missing) or `s3://bucket/optional/prefix`.
        s3_endpoint_url: server to talk to; None is Amazon's.
        s3_public_endpoint_url: server that presigned URLs name, when clients reach it under another
            address than this process does; None is `s3_endpoint_url`.
        s3_region: region of the bucket; None leaves it to the usual AWS settings, then `us-east-1`.
        s3_addressing: bucket as a host name (`virtual`) or in the path; None is `path` for a server of one's own.
        s3_access_key_id: with `s3_secret_access_key`; None leaves both to the usual AWS settings.
        s3_secret_access_key: see `s3_access_key_id`.
        s3_timeout_seconds: longest silence of the server, in seconds, that is waited out in one attempt.
        s3_max_attempts: attempts for one call, the first included.
        s3_ensure_bucket: create the bucket if it does not exist (sends a request).

    Raises:
        StoreMisconfigured: the URL names no store, or the folder cannot be used.
    """
    check_url(url)
    if folder := folder_of(url):
        return FilesystemStore(folder)
    parts = urlsplit(url)
    # boto3 takes a quarter of a second to import, which a laptop with a folder need not wait for.
    from app.storage.s3 import S3Store

    store = S3Store(
        parts.netloc,
        prefix=unquote(parts.path).strip("/"),
        endpoint_url=s3_endpoint_url,
        public_endpoint_url=s3_public_endpoint_url,
        region=s3_region,
        addressing=s3_addressing,
        access_key_id=s3_access_key_id,
        secret_access_key=s3_secret_access_key,
        timeout_seconds=s3_timeout_seconds,
        max_attempts=s3_max_attempts,
    )
    if s3_ensure_bucket:
        store.ensure_bucket()
    return store


def check_url(url: str) -> None:
    """Raises StoreMisconfigured when a URL can name no store."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme not in ("file", "s3"):
        raise StoreMisconfigured("a storage URL begins with file:// or s3://")
    if parts.query or parts.fragment:
        raise StoreMisconfigured("a storage URL has no query and no fragment")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
            raise StoreMisconfigured("a file storage URL is file:// and an absolute path")
    elif not parts.netloc or set(parts.netloc) & set("@:"):
        raise StoreMisconfigured("an S3 storage URL is s3://bucket or s3://bucket/prefix")


def folder_of(url: str) -> Path | None:
    """The folder that a storage URL names; None: it names a bucket."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def store_of(settings: Settings, *, timeout_seconds: float = 20.0, max_attempts: int = 3) -> ObjectStore:
    """The store that the settings name; see `open_store`. Credentials are the usual AWS variables."""
    return open_store(
        settings.resolved_storage_url,
        s3_endpoint_url=settings.s3_endpoint_url,
        s3_public_endpoint_url=settings.s3_public_endpoint_url,
        s3_region=settings.s3_region,
        s3_addressing=settings.s3_addressing,
        s3_timeout_seconds=timeout_seconds,
        s3_max_attempts=max_attempts,
        s3_ensure_bucket=settings.s3_create_bucket,
    )
