"""Opening a store from a URL."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.storage import StoreMisconfigured, open_store
from app.storage.filesystem import FilesystemStore


def test_a_file_url_opens_a_folder(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/a%20folder")
    assert isinstance(store, FilesystemStore)
    store.put("a", b"x")
    assert (tmp_path / "a folder" / "a").read_bytes() == b"x"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/tmp/x",
        "objects",
        "file://",
        "file://host/x",
        "file:relative",
        "file:///a%00b",
        "file:///a?b=c",
        "s3://",
        "s3:///prefix",
        "s3://key:secret@bucket",
        "s3://bucket/../other",
        "s3://bucket/a b",
        "https://bucket.s3.amazonaws.com",
        "gs://bucket",
    ],
)
def test_anything_else_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(StoreMisconfigured) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_an_s3_url_opens_a_prefix_of_a_bucket(moto) -> None:
    store = open_store(
        "s3://opened-by-url/some/prefix/",
        s3_endpoint_url=moto.endpoint_url,
        s3_region="us-east-1",
        s3_access_key_id="test",
        s3_secret_access_key="test",
        s3_ensure_bucket=True,
    )
    store.check()
    store.put("a", b"x")
    assert [info.key for info in moto.open("opened-by-url").list()] == ["some/prefix/a"]


def test_a_folder_needs_neither_boto3_nor_a_media_library() -> None:
    program = (
        "import sys, app.storage, app.media_container\n"
        "heavy = {'boto3', 'botocore', 'torch', 'av', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
