"""Every knob of the service, typed, read from the environment (prefix ``LONGTAKE_``)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.connection import parse_url

from app.addresses import parse_networks


class Settings(BaseSettings):
    """Settings of one process. Durations are in seconds, sizes in bytes, unless the name says otherwise."""

    # Compose files pass on what is not set as "", which must never become a path, a secret or a URL.
    model_config = SettingsConfigDict(
        env_prefix="LONGTAKE_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        allow_inf_nan=False,
    )

    # Where things live.
    data_dir: Path = Field(Path("longtake-data"), description="Folder of the embedded defaults.")
    redis_url: SecretStr | None = Field(
        None, description="redis:// or rediss:// URL. None: the embedded server of `longtake up`."
    )
    storage_url: str | None = Field(
        None, description="`file:///dir` or `s3://bucket/prefix`. None: a folder in data_dir."
    )
    s3_endpoint_url: str | None = Field(None, description="Endpoint of an S3-compatible store; None: AWS.")
    s3_region: str | None = Field(
        None,
        description="Region of the bucket. None: as AWS_REGION, AWS_DEFAULT_REGION or the AWS profile says, else "
        "us-east-1.",
    )
    s3_addressing: Literal["auto", "path", "virtual"] | None = Field(
        None, description="How the bucket is named in URLs; None: `path` with s3_endpoint_url, else `auto`."
    )
    s3_public_endpoint_url: str | None = Field(
        None,
        description="Endpoint that clients reach the store at, for presigned URLs; None: s3_endpoint_url.",
    )
    s3_presign: bool = Field(
        True, description="Redirect downloads to the store; false: the API streams them."
    )
    s3_create_bucket: bool = Field(False, description="Create the bucket at start when it does not exist.")

    # HTTP.
    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on; 0: a free one.")
    public_url: str | None = Field(
        None,
        description="Where clients reach the API, such as `https://video.example` or, behind a proxy that takes a path "
        "off, `https://example/video`; prefixed to URLs in answers and events. None: relative URLs.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of API keys, written by `longtake keys`. None: keys are off, everybody is one tenant.",
    )
    allow_anonymous: bool = Field(
        False, description="Listen on other addresses than the loopback although keys are off."
    )
    signing_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="What signed URLs are signed with, the same for all replicas. None: one made up, in Redis.",
    )
    signed_url_seconds: float = Field(
        4 * 3600.0, ge=60, description="Least life of a signed URL; up to a quarter more."
    )
    metrics_token: SecretStr | None = Field(
        None,
        min_length=16,
        description="Bearer token of /metrics. None: open while keys are off, else not served.",
    )
    cors_origins: str = Field(
        "",
        description="Origins, separated by commas, whose web pages may call the API; `*`: all. Empty: none.",
    )
    allowed_hosts: str = Field(
        "",
        description="Host names, separated by commas, that the API answers to while keys are off, beside IP addresses, "
        "names without a dot, this machine's own, and those of LONGTAKE_HOST and LONGTAKE_PUBLIC_URL; `*`: any.",
    )
    playlist_wait_seconds: float = Field(
        10.0, ge=0, description="How long a playlist asked for too early waits for the video's first chunk."
    )
    sse_heartbeat_seconds: float = Field(15.0, gt=0, description="Comment line on an idle event stream.")
    sse_client_queue: int = Field(
        512, ge=8, description="Events one slow client may lag before it is cut off."
    )
    poll_after_ms: int = Field(1000, ge=50, description="Value of the openai-poll-after-ms header.")
    idle_seconds: float = Field(
        300.0,
        gt=0,
        description="A client that takes nothing of an answer, or sends nothing of a body, for this long is cut off; "
        "so is one that takes longer to send the head of a request.",
    )
    shutdown_seconds: float = Field(5.0, gt=0, description="Grace for open requests when the API stops.")

    # What may be asked.
    model: str = Field(
        "builtin",
        description="Model a worker loads: `builtin`, a folder, or a hub id. Set for the API, too: the model of "
        "requests that name none; not set there: one that a worker serves now.",
    )
    default_seconds: float = Field(60.0, gt=0, description="Length of a video that is asked for without one.")
    max_seconds: float = Field(3600.0, gt=0, description="Longest video one request may ask for.")
    max_endless_seconds: float = Field(
        24 * 3600.0,
        ge=0,
        description="Length at which an endless video ends by itself; 0: none may be asked for.",
    )
    min_seconds: float = Field(0.25, gt=0, description="Shortest video one request may ask for.")
    max_prompt_chars: int = Field(4000, ge=1, description="Characters of one prompt.")
    max_prompts: int = Field(
        500, ge=1, description="Prompts in one video's timeline, those that steer it while it runs included."
    )
    max_metadata_bytes: int = Field(16 * 1024, ge=0, description="Labels of one video, names and values.")
    max_body_bytes: int = Field(1024 * 1024, ge=1024, description="Largest JSON or form body without a file.")
    max_data_url_bytes: int = Field(
        8 * 1024 * 1024,
        ge=0,
        description="Characters of a data: URL; a larger file is sent as a form's file.",
    )
    max_upload_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="Largest uploaded image or video.")
    max_upload_pixels: int = Field(50_000_000, ge=1, description="Pixels of an uploaded image.")
    max_upload_video_pixels: int = Field(
        4096 * 2304, ge=1, description="Pixels of one frame of an uploaded video."
    )
    max_upload_seconds: float = Field(10.0, gt=0, description="Longest uploaded video.")
    max_upload_frames: int = Field(1200, ge=1, description="Frames of an uploaded video.")
    upload_memory_bytes: int = Field(
        2 * 1024**3, ge=512 * 1024**2, description="Address space of the process that decodes an upload."
    )
    upload_cpu_seconds: int = Field(60, ge=1, description="CPU time that decoding an upload may take.")
    upload_wall_seconds: float = Field(120.0, gt=0, description="Time that decoding an upload may take.")
    uploads_at_once: int = Field(2, ge=1, description="Uploads decoded at the same time; the others wait.")
    upload_queue_seconds: float = Field(
        30.0, ge=0, description="How long an upload waits for that; then the client is told to try again."
    )
    max_queued: int = Field(
        1000, ge=1, description="Videos of one model waiting or paused at once; more are refused with 429."
    )
    idempotency_seconds: int = Field(
        24 * 3600, ge=60, description="How long an Idempotency-Key names the video that was made with it."
    )
    keep_seconds: float = Field(
        0.0, ge=0, description="A video and its files are removed this long after it has ended; 0: never."
    )
    sweep_seconds: float = Field(
        60.0,
        gt=0,
        description="How often each API process looks for videos whose time is up, for changed limits of keys and for "
        "videos of revoked ones.",
    )
    max_events: int = Field(
        20_000, ge=100, description="Events kept per video for replay; of older ones only chunks are told."
    )

    # Webhooks.
    webhook_allowed_networks: str = Field(
        "",
        description="Networks (CIDR, separated by commas) that webhooks may reach beside public addresses, such as "
        "`10.1.2.0/24`. Empty: none that is private, loopback, link-local or reserved.",
    )
    max_webhook_url_chars: int = Field(2048, ge=16, description="Characters of a webhook_url.")
    webhook_concurrency: int = Field(
        16, ge=0, le=1000, description="Webhooks one API process sends at once; 0: others send them."
    )
    webhook_host_concurrency: int = Field(2, ge=1, description="Of these, to one receiver.")
    webhook_connect_seconds: float = Field(5.0, gt=0, description="Name look-up, then each connection.")
    webhook_timeout_seconds: float = Field(15.0, gt=0, description="Whole attempt, up to the status line.")
    webhook_retry_seconds: float = Field(5.0, gt=0, description="Wait after the first attempt, then longer.")
    webhook_retry_max_seconds: float = Field(4 * 3600.0, gt=0, description="Longest wait between attempts.")
    webhook_max_age_seconds: float = Field(3 * 86400.0, ge=0, description="Attempts end after this long.")
    webhook_log_seconds: int = Field(7 * 86400, ge=1, description="A settled delivery stays readable.")
    webhook_secret_overlap_seconds: int = Field(
        86400, ge=0, description="A secret that was replaced signs beside the new one this long."
    )

    # What one API key may ask for, unless its own entry says otherwise; 0: no limit.
    key_max_queued: int = Field(0, ge=0, description="Videos of one key waiting or paused at once.")
    key_max_running: int = Field(0, ge=0, description="Videos of one key being made at once.")
    key_seconds_per_day: float = Field(
        0.0, ge=0, description="Seconds of video one key may ask for on one day (UTC)."
    )
    key_requests_per_minute: int = Field(
        0, ge=0, le=1_000_000, description="Requests with one key, over all replicas of the API."
    )

    # Work.
    device: str = Field(
        "auto", description="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, ... One worker per GPU."
    )
    worker_number: int = Field(
        0, ge=0, description="Which of its machine's workers this is, from 0; `auto` takes that GPU."
    )
    slots: int = Field(0, ge=0, le=64, description="Videos one worker makes at once; 0: chosen by device.")
    torch_threads: int = Field(1, ge=1, description="CPU threads per torch operation.")
    turn_seconds: float = Field(
        60.0,
        ge=0,
        description="A video that has run this long stops at its next chunk for another of its priority, if one "
        "waits and no slot is free. Going on later costs a resume: keep it well above what that takes.",
    )
    starvation_seconds: float = Field(
        600.0,
        gt=0,
        description="This often one video of a lower priority that has waited so long gets a turn before all others.",
    )
    codec: Literal["h264", "hevc", "vp9", "av1", "h264_nvenc", "hevc_nvenc", "av1_nvenc"] = Field(
        "h264", description="Codec of the video files; `_nvenc`: encoded by the GPU."
    )
    crf: int | None = Field(
        None,
        ge=0,
        le=63,
        description="Quality on the scale of the codec, lower is better. None: the codec's own (h264 20, hevc 23, "
        "vp9 30, av1 32).",
    )
    stage_queue: int = Field(2, ge=1, description="Chunks that may wait between two pipeline stages.")
    lease_seconds: float = Field(15.0, ge=1, description="A worker silent this long loses its videos.")
    heartbeat_seconds: float = Field(3.0, gt=0, description="How often a worker says that it lives.")
    control_seconds: float = Field(0.25, gt=0, description="How often a running video looks at its flags.")
    progress_seconds: float = Field(0.5, gt=0, description="Least time between two progress events.")
    max_attempts: int = Field(3, ge=1, description="Starts of a video that kills its worker, then it fails.")
    stall_seconds: float = Field(
        600.0, gt=0, description="No forward for this long ends the worker process; another continues."
    )
    black_chunks: int = Field(
        3,
        ge=0,
        description="This many chunks in a row with nothing but black in them are a failure of the model; "
        "0: never, for models that are asked for black.",
    )
    manifest_seconds: float = Field(5.0, ge=0, description="Least time between two manifest rewrites.")
    retry_max_seconds: float = Field(
        10.0, gt=0, description="Longest wait between tries while Redis or the store is away."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="What is logged, from this level on. DEBUG: commands show tracebacks too."
    )
    log_json: bool = Field(False, description="Log lines as JSON.")

    @field_validator("redis_url")
    @classmethod
    def _readable(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            try:
                parse_url(url.get_secret_value())  # type: ignore[no-untyped-call]
            except ValueError:  # its words may hold a part of the password
                raise ValueError(
                    "not redis://[[user]:password@]host[:port][/number], rediss:// or unix://; "
                    "in a password, / # ? @ % and the like are percent-encoded"
                ) from None
        return url

    @field_validator("port", mode="before")
    @classmethod
    def _not_of_a_service(cls, port: object) -> object:
        # What Kubernetes sets in every pod beside a Service of the name longtake.
        return cls.model_fields["port"].default if str(port).startswith("tcp://") else port

    @field_validator("webhook_allowed_networks")
    @classmethod
    def _networks(cls, text: str) -> str:
        parse_networks(text)
        return text

    @field_validator("public_url")
    @classmethod
    def _without_slash(cls, url: str | None) -> str | None:
        return url and url.rstrip("/")

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.min_seconds > self.max_seconds:
            raise ValueError("LONGTAKE_MIN_SECONDS is above LONGTAKE_MAX_SECONDS")
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("LONGTAKE_LEASE_SECONDS must be at least twice LONGTAKE_HEARTBEAT_SECONDS")
        return self

    @property
    def resolved_storage_url(self) -> str:
        """The storage URL with the embedded default filled in."""
        return self.storage_url or (self.data_dir.resolve() / "objects").as_uri()


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
