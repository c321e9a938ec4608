"""A checked request becomes the specification of a video: against the registered models and the server's limits."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from app.errors import from_validation, invalid, quoted, unavailable, unknown_parameter
from app.jobs.job import ModelCard, Reference, TimedPrompt, Video, VideoSpec, new_video_id
from app.schemas import ENDLESS, CreateVideo, ExtendVideo, RemixVideo, format_seconds
from app.settings import Settings
from app.webhooks import InvalidReceiver, receiver_url

# Random seeds stay below the range in which JavaScript loses digits, so a page can show and send them back.
_RANDOM_SEEDS = 2**32

R = TypeVar("R", bound=BaseModel)


def parse(kind: type[R], fields: Mapping[str, Any], settings: Settings) -> R:
    """The request model of a body; takes a while for a large one. Raises `APIError` 400."""
    # A name nobody knows explains most other complaints, so it comes first.
    for name in fields:
        if name not in kind.model_fields:
            raise unknown_parameter(name)
    try:
        return kind.model_validate(fields, context=settings)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_context=False)) from error


def digest(request: BaseModel, *beside: str) -> str:
    """What tells two requests apart, however their bodies were written.

    `beside` is what is not in the body: which operation, on which video, and the hash of an uploaded file.
    """
    # A file is told by its hash: the same bytes are the same request as a file and as a data: URL.
    fields = request.model_dump(mode="json", exclude_none=True, exclude={"input_reference"})
    text = json.dumps([fields, *beside], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def specify(request: CreateVideo, cards: Mapping[str, ModelCard], settings: Settings) -> VideoSpec:
    """The video that a request asks for, every default filled in.

    Raises `APIError`: 400 for what cannot be made, 503 while no worker has registered a model.
    """
    card = _model(request.model, cards, settings)
    default = min(settings.default_seconds, settings.max_seconds)
    seconds = check_seconds(default if request.seconds is None else request.seconds, card.fps, settings)
    width, height = _size(request.size, card)
    steps = request.num_inference_steps
    if steps is not None and steps % card.chunks_in_flight:
        raise invalid(
            f"num_inference_steps must be a multiple of {card.chunks_in_flight} for this model.",
            param="num_inference_steps",
        )
    negative = request.negative_prompt or ""
    check_text(negative, settings, "negative_prompt")
    now = time.time()
    return VideoSpec(
        id=new_video_id(now),
        created_at=now,
        model=card.name,
        prompts=_timeline(request, seconds, settings),
        negative_prompt=negative,
        seconds=seconds,
        fps=card.fps,
        frames=frames_of(seconds, card.fps),
        width=width,
        height=height,
        seed=secrets.randbelow(_RANDOM_SEEDS) if request.seed is None else request.seed,
        guidance_scale=request.guidance_scale,
        num_inference_steps=steps,
        priority=request.priority or "normal",
        metadata=request.metadata or {},
        **_webhook(request, settings, None),
    )


def specify_extension(
    source: Video, request: ExtendVideo, cards: Mapping[str, ModelCard], settings: Settings
) -> VideoSpec:
    """The video that begins with the committed chunks of `source` and goes on.

    Raises `APIError`: 400 for what cannot be made, 503 while no worker has registered a model.
    """
    spec, begins = source.spec, source.state.frames_ready / source.spec.fps
    card = _model(spec.model, cards, settings)
    _size(spec.size, card)
    seconds = check_seconds(request.seconds, spec.fps, settings, most=longest(source, settings))
    frames = frames_of(seconds, spec.fps)
    if frames is not None and frames <= source.state.frames_ready:
        raise invalid(
            f"seconds is the length of the whole: more than the {format_seconds(begins)} s there are.",
            param="seconds",
        )
    check_text(request.prompt, settings, "prompt")
    earlier = tuple(prompt for prompt in spec.prompts if prompt.at < begins)
    now = time.time()
    return spec.model_copy(
        update={
            "id": new_video_id(now),
            "created_at": now,
            "prompts": (*earlier, TimedPrompt(at=begins, text=request.prompt)),
            "seconds": seconds,
            "frames": frames,
            "seed": spec.seed if request.seed is None else request.seed,
            "priority": request.priority or spec.priority,
            "metadata": request.metadata or {},
            **_webhook(request, settings, spec),
            "extended_from": spec.id,
            "remixed_from": None,
            "given_chunks": source.state.chunks_ready,
        }
    )


def specify_remix(
    video: Video, request: RemixVideo, cards: Mapping[str, ModelCard], settings: Settings
) -> VideoSpec:
    """The video with the seed, settings, length and reference of another, and a prompt of its own.

    Raises `APIError`: 400 for what cannot be made, 503 while no worker has registered a model.
    """
    source = video.spec
    card = _model(source.model, cards, settings)
    _size(source.size, card)
    # It is made afresh, so the source's length has to be one that may be asked for now.
    length = ENDLESS if video.seconds is None else video.seconds
    seconds = check_seconds(length, source.fps, settings, param="video_id")
    check_text(request.prompt, settings, "prompt")
    now = time.time()
    spec = source.model_copy(
        update={
            "id": new_video_id(now),
            "created_at": now,
            "prompts": (TimedPrompt(at=0, text=request.prompt),),
            "seconds": seconds,
            "frames": frames_of(seconds, source.fps),
            "priority": request.priority or source.priority,
            "metadata": request.metadata or {},
            **_webhook(request, settings, source),
            "extended_from": None,
            "remixed_from": source.id,
            "given_chunks": 0,
        }
    )
    return spec if spec.reference is None else begin_with(spec, spec.reference, card)


def begin_with(spec: VideoSpec, reference: Reference, card: ModelCard) -> VideoSpec:
    """The video with a reference at its beginning. Raises `APIError` 400 when that is all of it."""
    if spec.seconds is not None and spec.frames is not None and reference.frames >= spec.frames:
        raise invalid(
            f"The first {format_seconds(reference.frames / spec.fps)} s are given; "
            f"{format_seconds(spec.seconds)} s leave nothing to be made.",
            param="seconds",
            code="reference_too_long",
        )
    beyond = reference.frames - card.frames_of_chunks(1)
    chunks = 1 + beyond // (card.chunk_latents * card.temporal_factor)
    return spec.model_copy(update={"reference": reference, "given_chunks": chunks})


def _model(name: str | None, cards: Mapping[str, ModelCard], settings: Settings) -> ModelCard:
    if not cards:
        raise unavailable(
            "No worker has registered a model yet. Try again soon.", code="no_model", retry_after_seconds=5
        )
    if name is None:
        if "model" in settings.model_fields_set:
            for card in cards.values():
                if settings.model in (card.name, card.loaded_as):
                    return card
        return next(iter(cards.values()))  # one that a worker serves now, if there is any
    if name not in cards:
        raise invalid(
            f"There is no model {quoted(name)}. Registered: {', '.join(sorted(cards))}.",
            param="model",
            code="model_not_found",
        )
    return cards[name]


def longest(video: Video, settings: Settings) -> float:
    """Seconds that a video may be given: an endless one may have become longer than what can be asked for at once."""
    if video.spec.seconds is None or video.state.frames_ready > settings.max_seconds * video.spec.fps:
        return max(settings.max_seconds, settings.max_endless_seconds)
    return settings.max_seconds


def check_seconds(
    seconds: float | str,
    fps: int,
    settings: Settings,
    *,
    most: float | None = None,
    param: str = "seconds",
) -> float | None:
    """A length that a video may have, up to `most` seconds or the server's limit; None: endless.

    Raises `APIError` 400, which names `param`.
    """
    if seconds == ENDLESS:
        if not settings.max_endless_seconds:
            raise invalid("This server makes no endless videos.", param=param)
        return None
    low, high = settings.min_seconds, settings.max_seconds if most is None else most
    if not low <= (seconds := float(seconds)) <= high:
        raise invalid(
            f"A video may have {format_seconds(low)} to {format_seconds(high)} seconds.", param=param
        )
    if not frames_of(seconds, fps):
        raise invalid(f"A video has at least one frame, at {fps} frames per second.", param=param)
    return seconds


def frames_of(seconds: float | None, fps: int) -> int | None:
    """Frames of a video of this length; None for an endless one."""
    return None if seconds is None else round(seconds * fps)


def _size(size: str | None, card: ModelCard) -> tuple[int, int]:
    size = card.default_size if size is None else size.strip().lower()
    if size not in card.sizes:
        raise invalid(f"This model makes the sizes {', '.join(card.sizes)}.", param="size")
    width, height = size.split("x")
    return int(width), int(height)


def check_at(at: float, seconds: float | None, settings: Settings, param: str) -> None:
    """Raises `APIError` 400 for a second that a video of this length does not have."""
    end = settings.max_endless_seconds if seconds is None else seconds
    if not 0 <= at < end:
        raise invalid(f"It must be between 0 and the video's {format_seconds(end)} s.", param=param)


def _timeline(request: CreateVideo, seconds: float | None, settings: Settings) -> tuple[TimedPrompt, ...]:
    prompts = [TimedPrompt(at=0, text=request.prompt)] if request.prompt is not None else []
    for index, prompt in enumerate(request.prompts or ()):
        where = f"prompts[{index}].at"
        check_at(prompt.at, seconds, settings, where)
        if prompts and prompt.at <= prompts[-1].at:
            # `prompt` beside a timeline that repeats it (SDKs insist on sending one) is no contradiction.
            if index == 0 and prompt.text == request.prompt:
                continue
            raise invalid("The prompts of a timeline must be in order, each at its own second.", param=where)
        prompts.append(TimedPrompt(at=prompt.at, text=prompt.text))
        check_text(prompt.text, settings, f"prompts[{index}].text")
    if not prompts:
        raise invalid("Missing parameter: prompt.", param="prompt", code="missing_required_parameter")
    if prompts[0].at != 0:
        raise invalid("The first prompt of a timeline must be at 0.", param="prompts[0].at")
    check_text(prompts[0].text, settings, "prompt")
    if len(prompts) > settings.max_prompts:
        raise invalid(
            f"The timeline has {len(prompts)} prompts, {settings.max_prompts} are allowed.", param="prompts"
        )
    return tuple(prompts)


def check_text(text: str, settings: Settings, param: str) -> None:
    """Raises `APIError` 400 for a prompt that is too long."""
    if len(text) > settings.max_prompt_chars:
        raise invalid(
            f"{param} has {len(text)} characters, {settings.max_prompt_chars} are allowed.",
            param=param,
            code="text_too_long",
        )


def _webhook(
    request: CreateVideo | ExtendVideo | RemixVideo, settings: Settings, source: VideoSpec | None
) -> dict[str, Any]:
    """What is said of whom to tell, and of what, as fields of `VideoSpec`; the rest is as in the source."""
    said: dict[str, Any] = {}
    if request.webhook_url is not None:
        try:
            said["webhook_url"] = receiver_url(request.webhook_url, settings)
        except InvalidReceiver as error:
            raise invalid(f"Invalid webhook_url: {error}.", param="webhook_url", code=error.code) from error
    if request.webhook_events is not None:
        if not said and (source is None or source.webhook_url is None):
            raise invalid("webhook_events needs a webhook_url.", param="webhook_events")
        said["webhook_events"] = tuple(dict.fromkeys(request.webhook_events))
    return said
