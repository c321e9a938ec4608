from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings
from app.storage import store_of
from worker.generate import _encoder_settings
from worker.media.encode import _CODECS, EncoderSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from the machine that runs the tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LONGTAKE_{name.upper()}", raising=False)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(f"LONGTAKE_{name.upper()}", "")
    assert Settings() == plain
    assert Settings().model_fields_set == set()


def test_a_slash_behind_the_public_url_is_none_of_it() -> None:
    assert Settings(public_url="https://video.example/").public_url == "https://video.example"
    assert Settings(public_url="https://example/video").public_url == "https://example/video"
    assert Settings().public_url is None


def test_a_password_that_breaks_the_url_of_redis_is_told_and_not_repeated() -> None:
    assert Settings(redis_url="redis://:pass%2Fword@redis:6379/0").redis_url is not None  # type: ignore[arg-type]
    for url in ("redis://:pass/word@redis:6379/0", "redis.internal:6379"):
        with pytest.raises(ValidationError, match="percent-encoded") as told:
            Settings(redis_url=url)  # type: ignore[arg-type]
        assert url not in told.value.errors()[0]["msg"]


def test_the_port_that_kubernetes_gives_to_the_pods_of_a_service_is_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LONGTAKE_PORT", "tcp://10.0.0.1:8000")
    assert Settings().port == Settings.model_fields["port"].default


def test_every_codec_can_be_chosen_and_has_its_own_quality_until_one_is_set() -> None:
    for codec in _CODECS:
        settings = Settings(codec=codec)  # type: ignore[arg-type]
        assert _encoder_settings(settings) == EncoderSettings(codec, quality=None)
    assert _encoder_settings(Settings(codec="av1", crf=20)).quality == 20
    with pytest.raises(ValidationError):
        Settings(codec="mpeg2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "given", "region"),
    [
        ({}, {}, "us-east-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-3"}, {}, "eu-west-3"),
        ({"AWS_REGION": "eu-central-1"}, {}, "eu-central-1"),
        ({"AWS_REGION": "eu-central-1"}, {"s3_region": "eu-north-1"}, "eu-north-1"),
    ],
)
def test_downloads_are_signed_for_the_region_of_the_bucket(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environment: dict[str, str],
    given: dict[str, str],
    region: str,
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    aws = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }
    for name, value in {**aws, **environment}.items():
        monkeypatch.setenv(name, value)
    store = store_of(Settings(storage_url="s3://bucket", **given))  # type: ignore[arg-type]
    assert f"%2F{region}%2Fs3%2Faws4_request" in (store.presign("a", 60) or "")
