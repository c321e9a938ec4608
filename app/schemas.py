"""Objects on the wire: the shape of the OpenAI videos API plus what long video needs."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.errors import invalid
from app.forms import FilePart, json_value
from app.jobs.deliveries import DeliveryRecord, Outcome, Secret
from app.jobs.estimate import Place
from app.jobs.job import (
    ChunkRecord,
    JobError,
    ModelCard,
    PendingPrompt,
    Priority,
    Status,
    TimedPrompt,
    Video,
    WebhookEvent,
)
from app.settings import Settings

ENDLESS: Literal["endless"] = "endless"

_DECIMAL = re.compile(r"[+-]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})([eE][+-]?\d{1,3})?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_value", "{reason}", {"reason": message})


def _text(value: Any) -> str:
    """Words for a model: no control characters but tab and newline, and something that UTF-8 can write."""
    if not isinstance(value, str):
        raise _wrong("it must be text")
    if _CONTROL.search(value):
        raise _wrong("it holds a control character")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise _wrong("it holds half a character (a lone surrogate)")
    return value


def _words(value: Any) -> str:
    text = _text(value)
    if not text.strip():
        raise _wrong("it is empty")
    return text


def _number(value: Any) -> float:
    """A number, or its decimal form in text, as every value of a form is text."""
    if isinstance(value, str):
        if not _DECIMAL.fullmatch(value.strip(" ")):
            raise _wrong("it must be a number")
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong("it must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _wrong("it must be a finite number")
    return number


def _length(value: Any) -> float | str:
    return ENDLESS if value == ENDLESS else _number(value)


def _whole(value: Any) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip(" ")):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong("it must be a whole number")
    return value


def _json_in_text(value: Any) -> Any:
    """A structured field of a form may come as one JSON string."""
    if not isinstance(value, str):
        return value
    try:
        return json_value(value, constant=lambda _: math.inf)
    except ValueError as error:
        raise _wrong(f"it is not JSON: {error}") from None


def _timeline(value: Any, info: ValidationInfo[Settings]) -> Any:
    """Prompts, before any of them is looked at: a body has room for hundreds of thousands."""
    value, most = _json_in_text(value), info.context.max_prompts
    if isinstance(value, list) and len(value) > most:
        raise _wrong(f"it has {len(value)} prompts, {most} are allowed")
    return value


def _labels(value: Any, info: ValidationInfo[Settings]) -> Any:
    """Labels, before any of them is looked at. Raises `APIError` 400 for more than there may be."""
    value, most = _json_in_text(value), info.context.max_metadata_bytes
    if isinstance(value, dict):
        texts = (text for pair in value.items() for text in pair if isinstance(text, str))
        size = sum(len(text.encode(errors="surrogatepass")) for text in texts)
        if size > most:
            message = f"metadata has {size} bytes, {most} are allowed."
            raise invalid(message, param="metadata", code="metadata_too_large")
    return value


def _source(value: Any) -> Any:
    if isinstance(value, FilePart):
        raise _wrong("it names a video of this service, as video[id]; a file can be an input_reference")
    return value


def _reference(value: Any) -> FilePart | str:
    """An uploaded file, or the data: URL of one."""
    if isinstance(value, FilePart):
        return value
    if not isinstance(value, dict):
        raise _wrong("it must be a file, or an object with an image_url")
    if value.keys() != {"image_url"} or not isinstance(value["image_url"], str):
        raise _wrong("it must be a file, or an object with an image_url and nothing else")
    if not value["image_url"].lower().startswith("data:"):
        raise _wrong("image_url must be a data: URL; this server fetches nothing. Send the file instead")
    return value["image_url"]


Text = Annotated[str, BeforeValidator(_text, json_schema_input_type=str)]
Words = Annotated[str, BeforeValidator(_words, json_schema_input_type=str)]
Number = Annotated[float, BeforeValidator(_number, json_schema_input_type=float | str)]
Whole = Annotated[int, BeforeValidator(_whole, json_schema_input_type=int | str)]
Length = Annotated[float | Literal["endless"], BeforeValidator(_length, json_schema_input_type=float | str)]
Metadata = Annotated[dict[Text, Text], BeforeValidator(_labels)]


class _Request(BaseModel):
    """The body of a request, validated with the server's `Settings` as context. Absent and null are the same."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        # Only for names that exist: an unknown one is refused whatever its value.
        if not isinstance(fields, dict):
            return fields
        return {k: v for k, v in fields.items() if v is not None or k not in cls.model_fields}


InputReference = Annotated[
    Any,
    PlainValidator(_reference),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "binary", "description": "In a form: the file."},
                {
                    "type": "object",
                    "properties": {"image_url": {"type": "string", "description": "A data: URL in base64."}},
                    "required": ["image_url"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class PromptAt(BaseModel):
    """A prompt in force from second ``at`` of the video on."""

    model_config = ConfigDict(extra="forbid")

    at: Number = Field(description="Seconds from the start of the video.")
    text: Words


class _MakeVideo(_Request):
    """What every request that makes a video can take."""

    priority: Priority | None = Field(
        None,
        description="Order between waiting videos; default: that of the video it is made from, or normal.",
    )
    metadata: Metadata | None = Field(
        None, description="Your own labels, text to text; in a form one JSON string or `metadata[key]`."
    )
    webhook_url: Text | None = Field(
        None,
        description="Web address that is told when the video ends; see GET /v1/webhook_secret. Default: that of the "
        "video it is made from.",
    )
    webhook_events: Annotated[list[WebhookEvent], BeforeValidator(_json_in_text)] | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="What to tell it; in a form one JSON string. Default: as of the video it is made from, else how "
        "the video ends, no chunks.",
    )


class CreateVideo(_MakeVideo):
    """What POST /v1/videos takes. Absent and null are the same."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "A red kite over a green hill, slow pan to the right", "seconds": 60, "seed": 7},
                {
                    "prompts": [
                        {"at": 0, "text": "A calm lake"},
                        {"at": 30, "text": "A storm over the lake"},
                    ],
                    "seconds": "60",
                    "priority": "high",
                    "metadata": {"scene": "12"},
                },
            ]
        },
    )

    prompt: Words | None = Field(None, description="What to show. With `prompts`: the text from second 0 on.")
    prompts: Annotated[list[PromptAt], BeforeValidator(_timeline)] | None = Field(
        None,
        description="A timeline of prompts; in a form one JSON string. The first is at 0.",
    )
    model: Text | None = Field(None, description="One of GET /v1/models; default: the server's.")
    seconds: Length | None = Field(
        None, description="Length in seconds, a number or its text; or `endless`: until you finish it."
    )
    size: Text | None = Field(None, description="WIDTHxHEIGHT, one of the model's sizes.")
    seed: Whole | None = Field(
        None, ge=0, le=2**63 - 1, description="Same seed, same video; default: random."
    )
    negative_prompt: Text | None = Field(None, description="What not to show.")
    guidance_scale: Number | None = Field(None, ge=0, le=100, description="How closely to follow the prompt.")
    num_inference_steps: Whole | None = Field(
        None, gt=0, le=1000, description="Noise levels; a multiple of the model's chunks in flight."
    )
    input_reference: InputReference | None = Field(
        None,
        description="An image (JPEG, PNG, WebP) or a video (MP4, MOV, WebM, MKV) that the video begins with; a "
        "file of a form, or a data: URL. It is scaled to cover the size and cropped around its centre.",
    )


class SourceVideo(BaseModel):
    """An earlier video; in a form the field `video[id]`."""

    model_config = ConfigDict(extra="forbid")

    id: Text


class ExtendVideo(_MakeVideo):
    """What POST /v1/videos/extensions takes. All else is as in the source."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"video": {"id": "video_..."}, "prompt": "Night falls", "seconds": 120}]
        }
    )

    video: Annotated[SourceVideo, BeforeValidator(_source)]
    prompt: Words = Field(description="What to show from the end of the source on.")
    seconds: Length = Field(description="Length of the whole, the source's included, or `endless`.")
    seed: Whole | None = Field(None, ge=0, le=2**63 - 1, description="Default: the source's.")


class RemixVideo(_MakeVideo):
    """What POST /v1/videos/{id}/remix takes. All else is as in the source, the seed too."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "The same lake in winter"}]})

    prompt: Words = Field(description="What to show; it replaces all prompts of the source.")


class UpdateVideo(_Request):
    """What PATCH /v1/videos/{id} takes; what is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"seconds": 120}]})

    seconds: Length | None = Field(None, description="New length in seconds, or `endless`.")
    metadata: Metadata | None = Field(None, description="Takes the place of all labels.")


class SteerVideo(_Request):
    """What POST /v1/videos/{id}/prompts takes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "A storm over the lake"}]})

    text: Words = Field(description="What to show from then on.")
    at: Number | None = Field(
        None, ge=0, description="Second of the video from which on; default: as soon as possible."
    )


class RotateSecret(_Request):
    """What POST /v1/webhook_secret/rotate takes; its body may be left out."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_seconds": 0}]})

    overlap_seconds: Whole | None = Field(
        None,
        ge=0,
        le=30 * 86400,
        description="How long the old secret signs beside the new one; 0 if it has leaked.",
    )


class ErrorDetail(BaseModel):
    """What went wrong, in words and as a stable code."""

    message: str
    type: str
    param: str | None = Field(description="The field, header or query parameter at fault.")
    code: str


class ErrorObject(BaseModel):
    """The body of every 4xx and 5xx answer."""

    error: ErrorDetail


class ModelObject(BaseModel):
    """A model that a worker has registered."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "longtake"
    fps: int
    sizes: list[str]
    default_size: str
    default_seconds: float
    min_seconds: float
    max_seconds: float
    chunk_seconds: float
    guidance_scale: float
    num_inference_steps: int
    num_inference_steps_multiple_of: int
    example_prompts: list[str]
    served: bool = Field(description="Whether a live worker has it loaded; if not, its videos wait for one.")


class ModelList(BaseModel):
    """All models, on one page."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ReferenceObject(BaseModel):
    """What a video was given to begin with: the upload's own upright size, and the frames it became."""

    kind: Literal["image", "video"]
    width: int
    height: int
    frames: int


class VideoObject(BaseModel):
    """A video as clients see it. Times are Unix seconds."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str
    prompts: list[TimedPrompt] = Field(
        default_factory=list, description="The timeline: each prompt and the second from which on it counts."
    )
    pending_prompts: list[PendingPrompt] = Field(
        default_factory=list,
        description="Asked for, but no chunk was begun with them; left over in a video that has ended: came too late.",
    )
    seconds: str = Field(description="Length; `endless` until the end of an endless video is known.")
    size: str
    error: JobError | None = None
    remixed_from_video_id: str | None = None
    extended_from_video_id: str | None = None
    input_reference: ReferenceObject | None = None

    priority: Priority = "normal"
    queue_position: int | None = Field(
        None, description="How many waiting videos are taken before this one, if none is added."
    )
    eta_seconds: float | None = Field(
        None,
        description="Seconds until the last chunk, from measured speed; null while nothing was measured. Of a "
        "running video as if nobody else came, of a waiting one with all that stands before it.",
    )
    pause_requested: bool = Field(
        False, description="It is still running, and will be paused as soon as its next chunk is ready."
    )
    chunks_ready: int = 0
    chunks_total: int | None = None
    seconds_ready: float = 0.0
    first_chunk_at: float | None = None
    stalled: str | None = None
    seed: int
    fps: int
    frames: int | None = Field(None, description="Null until the end of an endless video is known.")
    metadata: dict[str, str] = Field(default_factory=dict)
    webhook_url: str | None = None
    attempts: int = 0
    playlist_url: str = Field(
        description="The live HLS playlist. Where keys are on it is signed: it, and any other playback address of the "
        "video with the same query, can be opened for a while without a key."
    )
    events_url: str = Field(
        description="The event stream, signed in the same way; opened so it tells no prompts, metadata or webhook_url."
    )


PRIVATE_FIELDS = frozenset({"prompt", "prompts", "pending_prompts", "metadata", "webhook_url"})
"""Fields of a `VideoObject` that are for its owner alone, and not for whoever holds a signed URL."""


class ChunkObject(BaseModel):
    """A committed chunk as clients see it."""

    object: Literal["video.chunk"] = "video.chunk"
    index: int
    start_seconds: float
    duration_seconds: float
    frames: int
    bytes: int
    sha256: str
    url: str
    created_at: float


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class ChunkList(BaseModel):
    """A page of committed chunks. Pass the last index as `after` to read on."""

    object: Literal["list"] = "list"
    data: list[ChunkObject]
    has_more: bool
    first_index: int | None
    last_index: int | None


class WebhookData(BaseModel):
    """What a webhook speaks of."""

    id: str = Field(description="The video.")
    index: int | None = Field(None, description="Of `video.chunk`: the chunk.")


class WebhookBody(BaseModel):
    """What a receiver of webhooks gets."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="The same as the header `webhook-id`.")
    object: Literal["event"]
    created_at: int
    type: WebhookEvent
    data: WebhookData


class WebhookAttempt(BaseModel):
    """One try to deliver a webhook: the receiver's status, or why there was none."""

    at: float
    duration_ms: int
    status_code: int | None = None
    error: str | None = None


class WebhookDelivery(BaseModel):
    """A webhook and what has become of it. Times are Unix seconds; `next_attempt_at` is null once it is settled."""

    id: str = Field(description="The `webhook-id` that the receiver sees, the same in every attempt.")
    object: Literal["webhook.delivery"] = "webhook.delivery"
    type: WebhookEvent
    created_at: int
    status: Outcome
    next_attempt_at: float | None
    attempts: list[WebhookAttempt]


class WebhookDeliveryList(BaseModel):
    """A page of webhook deliveries, the newest first."""

    object: Literal["list"] = "list"
    data: list[WebhookDelivery]
    has_more: bool
    first_id: str | None
    last_id: str | None


class PreviousSecret(BaseModel):
    """An earlier secret that still signs, beside the present one."""

    secret: str
    expires_at: int


class WebhookSecret(BaseModel):
    """What your webhooks are signed with, as Standard Webhooks libraries take it."""

    object: Literal["webhook.secret"] = "webhook.secret"
    secret: str
    created_at: int
    previous: list[PreviousSecret]


class VideoDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


def format_seconds(seconds: float) -> str:
    """A duration as the API writes it: no trailing zeros (``60``, ``2.5``)."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def with_query(url: str, query: str) -> str:
    """The URL with a query, if there is one to add."""
    return f"{url}?{query}" if query else url


def video_object(
    video: Video, origin: str = "", place: Place | None = None, *, query: str = ""
) -> VideoObject:
    """The wire form of a job; `origin` is put before its URLs, and `query` behind them.

    `place` is where it waits, if it does.
    """
    spec, state = video.spec, video.state
    base = f"{origin}/v1/videos/{spec.id}"
    eta = video.eta_seconds if place is None else place.eta_seconds
    return VideoObject(
        id=spec.id,
        model=spec.model,
        status=state.status,
        progress=video.progress,
        created_at=int(spec.created_at),
        completed_at=None if state.completed_at is None else int(state.completed_at),
        expires_at=None if state.expires_at is None else int(state.expires_at),
        prompt=spec.prompt,
        prompts=list(spec.prompts),
        pending_prompts=list(state.pending_prompts),
        seconds=ENDLESS if video.seconds is None else format_seconds(video.seconds),
        size=spec.size,
        error=state.error,
        remixed_from_video_id=spec.remixed_from,
        extended_from_video_id=spec.extended_from,
        input_reference=None
        if spec.reference is None
        else ReferenceObject(**spec.reference.model_dump(exclude={"sha256"})),
        priority=spec.priority,
        queue_position=None if place is None else place.position,
        eta_seconds=None if eta is None else round(eta, 1),
        pause_requested=state.pause_requested,
        chunks_ready=state.chunks_ready,
        chunks_total=None if spec.frames is None else state.chunks_total,
        seconds_ready=round(state.frames_ready / spec.fps, 3),
        first_chunk_at=state.first_chunk_at,
        stalled=state.stalled,
        seed=spec.seed,
        fps=spec.fps,
        frames=video.frames,
        metadata=spec.metadata,
        webhook_url=spec.webhook_url,
        attempts=state.attempts,
        playlist_url=with_query(f"{base}/stream.m3u8", query),
        events_url=with_query(f"{base}/events", query),
    )


def chunk_object(
    video_id: str, chunk: ChunkRecord, fps: int, origin: str = "", *, query: str = ""
) -> ChunkObject:
    """The wire form of a committed chunk; `origin` is put before its URL, and `query` behind it."""
    return ChunkObject(
        index=chunk.index,
        start_seconds=round(chunk.start_seconds(fps), 6),
        duration_seconds=round(chunk.duration_seconds(fps), 6),
        frames=chunk.frames,
        bytes=chunk.bytes,
        sha256=chunk.sha256,
        url=with_query(f"{origin}/v1/videos/{video_id}/chunks/{chunk.index}/content", query),
        created_at=chunk.created_at,
    )


def delivery_object(record: DeliveryRecord) -> WebhookDelivery:
    """The wire form of a webhook delivery."""
    delivery = record.delivery
    return WebhookDelivery(
        id=delivery.id,
        type=delivery.type,
        created_at=int(delivery.created_at),
        status=record.status,
        next_attempt_at=record.due_at,
        attempts=[WebhookAttempt.model_validate(attempt.model_dump()) for attempt in record.attempts],
    )


def secret_object(secret: Secret, now: float) -> WebhookSecret:
    """The wire form of an owner's webhook secrets."""
    return WebhookSecret(
        secret=secret.current,
        created_at=int(secret.created_at),
        previous=[
            PreviousSecret(secret=old, expires_at=int(until)) for old, until in secret.previous if until > now
        ],
    )


def chunk_seconds(card: ModelCard) -> float:
    """Length of a full chunk of a model in seconds; the first and last of a video may be shorter."""
    return card.chunk_latents * card.temporal_factor / card.fps


def model_object(
    card: ModelCard, *, served: bool, default_seconds: float, min_seconds: float, max_seconds: float
) -> ModelObject:
    """The wire form of a registered model, with the limits of this server."""
    return ModelObject(
        id=card.name,
        created=int(card.created_at),
        fps=card.fps,
        sizes=list(card.sizes),
        default_size=card.default_size,
        default_seconds=default_seconds,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        chunk_seconds=round(chunk_seconds(card), 6),
        guidance_scale=card.guidance_scale,
        num_inference_steps=card.levels,
        num_inference_steps_multiple_of=card.chunks_in_flight,
        example_prompts=list(card.example_prompts),
        served=served,
    )
