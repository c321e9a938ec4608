"""A checked request becomes the specification of a video: against the registered models and the server's limits."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from app.errors import from_validation, invalid, quoted, unavailable, unknown_parameter
from app.jobs.job import ENDED, ModelCard, TimedPrompt, VideoSpec, new_video_id
from app.schemas import CreateVideo, format_seconds
from app.settings import Settings
from app.webhooks import InvalidReceiver, receiver_url

# Random seeds stay below the range in which JavaScript loses digits, so a page can show and send them back.
_RANDOM_SEEDS = 2**32


def parse_create(fields: Mapping[str, Any]) -> CreateVideo:
    """The request model of a body. Raises `APIError` 400."""
    # A name nobody knows explains most other complaints, so it comes first.
    for name in fields:
        if name not in CreateVideo.model_fields:
            raise unknown_parameter(name)
    try:
        return CreateVideo.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_context=False)) from error


def digest(request: CreateVideo) -> str:
    """What tells two request bodies apart, however they were written."""
    text = json.dumps(request.model_dump(mode="json", exclude_none=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def specify(request: CreateVideo, cards: Mapping[str, ModelCard], settings: Settings) -> VideoSpec:
    """The video that a request asks for, every default filled in.

    Raises `APIError`: 400 for what cannot be made, 503 while no worker has registered a model.
    """
    card = _model(request.model, cards, settings)
    seconds = _seconds(request.seconds, card, settings)
    width, height = _size(request.size, card)
    steps = request.num_inference_steps
    if steps is not None and steps % card.chunks_in_flight:
        raise invalid(
            f"num_inference_steps must be a multiple of {card.chunks_in_flight} for this model.",
            param="num_inference_steps",
        )
    negative = request.negative_prompt or ""
    _limit(negative, settings, "negative_prompt")
    return VideoSpec(
        id=new_video_id(),
        created_at=time.time(),
        model=card.name,
        prompts=_timeline(request, seconds, settings),
        negative_prompt=negative,
        seconds=seconds,
        fps=card.fps,
        frames=_frames(seconds, card),
        width=width,
        height=height,
        seed=secrets.randbelow(_RANDOM_SEEDS) if request.seed is None else request.seed,
        guidance_scale=request.guidance_scale,
        num_inference_steps=steps,
        priority=request.priority or "normal",
        metadata=_metadata(request, settings),
        webhook_url=_webhook_url(request, settings),
        webhook_events=tuple(dict.fromkeys(request.webhook_events or ENDED.values())),
    )


def _model(name: str | None, cards: Mapping[str, ModelCard], settings: Settings) -> ModelCard:
    if not cards:
        raise unavailable(
            "No worker has registered a model yet. Try again soon.", code="no_model", retry_after_seconds=5
        )
    if name is None:
        # The configured model under its own name, else the newest a worker has told of.
        return cards.get(settings.model) or max(cards.values(), key=lambda card: card.created_at)
    if name not in cards:
        raise invalid(
            f"There is no model {quoted(name)}. Registered: {', '.join(sorted(cards))}.",
            param="model",
            code="model_not_found",
        )
    return cards[name]


def _seconds(seconds: float | None, card: ModelCard, settings: Settings) -> float:
    if seconds is None:
        return min(settings.default_seconds, settings.max_seconds)
    low, high = settings.min_seconds, settings.max_seconds
    if not low <= seconds <= high:
        raise invalid(
            f"seconds must be between {format_seconds(low)} and {format_seconds(high)}.", param="seconds"
        )
    if _frames(seconds, card) < 1:
        raise invalid(f"seconds is less than one frame at {card.fps} frames per second.", param="seconds")
    return seconds


def _frames(seconds: float, card: ModelCard) -> int:
    return round(seconds * card.fps)


def _size(size: str | None, card: ModelCard) -> tuple[int, int]:
    size = card.default_size if size is None else size.strip().lower()
    if size not in card.sizes:
        raise invalid(f"This model makes the sizes {', '.join(card.sizes)}.", param="size")
    width, height = size.split("x")
    return int(width), int(height)


def _timeline(request: CreateVideo, seconds: float, settings: Settings) -> tuple[TimedPrompt, ...]:
    prompts = [TimedPrompt(at=0, text=request.prompt)] if request.prompt is not None else []
    for index, prompt in enumerate(request.prompts or ()):
        where = f"prompts[{index}].at"
        if not 0 <= prompt.at < seconds:
            raise invalid(f"It must be between 0 and the video's {format_seconds(seconds)} s.", param=where)
        if prompts and prompt.at <= prompts[-1].at:
            # `prompt` beside a timeline that repeats it (SDKs insist on sending one) is no contradiction.
            if index == 0 and prompt.text == request.prompt:
                continue
            raise invalid("The prompts of a timeline must be in order, each at its own second.", param=where)
        prompts.append(TimedPrompt(at=prompt.at, text=prompt.text))
        _limit(prompt.text, settings, f"prompts[{index}].text")
    if not prompts:
        raise invalid("Missing parameter: prompt.", param="prompt", code="missing_required_parameter")
    if prompts[0].at != 0:
        raise invalid("The first prompt of a timeline must be at 0.", param="prompts[0].at")
    _limit(prompts[0].text, settings, "prompt")
    return tuple(prompts)


def _limit(text: str, settings: Settings, param: str) -> None:
    if len(text) > settings.max_prompt_chars:
        raise invalid(
            f"{param} has {len(text)} characters, {settings.max_prompt_chars} are allowed.",
            param=param,
            code="text_too_long",
        )


def _metadata(request: CreateVideo, settings: Settings) -> dict[str, str]:
    metadata = request.metadata or {}
    size = sum(len(text.encode()) for pair in metadata.items() for text in pair)
    if size > settings.max_metadata_bytes:
        raise invalid(
            f"metadata has {size} bytes, {settings.max_metadata_bytes} are allowed.",
            param="metadata",
            code="metadata_too_large",
        )
    return metadata


def _webhook_url(request: CreateVideo, settings: Settings) -> str | None:
    if request.webhook_url is None:
        if request.webhook_events is not None:
            raise invalid("webhook_events needs a webhook_url.", param="webhook_events")
        return None
    try:
        return receiver_url(request.webhook_url, settings)
    except InvalidReceiver as error:
        raise invalid(f"Invalid webhook_url: {error}.", param="webhook_url", code=error.code) from error
