"""Webhooks as their owner sees them: what was delivered, and the secret that signs."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from app.context import Ctx
from app.errors import invalid, not_found
from app.forms import read_body
from app.jobs.store import video_key
from app.routes.documentation import body, errors
from app.schemas import (
    RotateSecret,
    WebhookBody,
    WebhookDelivery,
    WebhookDeliveryList,
    WebhookSecret,
    delivery_object,
    secret_object,
)
from app.specification import parse

router = APIRouter(prefix="/v1", tags=["webhooks"])

# What this service sends, for the OpenAPI document.
sent = APIRouter()


@sent.post("event", status_code=204, response_class=Response, summary="An event of a video")
def event(body: WebhookBody) -> None:
    """Sent to the video's `webhook_url` with the headers of Standard Webhooks. Any 2xx takes it."""


@router.get(
    "/videos/{video_id}/webhook_deliveries",
    response_model=WebhookDeliveryList,
    responses=errors(400, 404, 503),
    summary="List a video's webhooks",
)
def list_webhook_deliveries(
    video_id: str,
    ctx: Ctx,
    after: Annotated[str | None, Query(description="The `last_id` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> WebhookDeliveryList:
    """What was sent to the video's `webhook_url` and how it went, the newest first."""
    video = ctx.video(video_id)
    try:
        records, more = ctx.videos.deliveries.page(video.id, limit=limit, after=after)
    except KeyError as error:
        raise invalid("There is no such delivery.", param="after") from error
    data = [delivery_object(record) for record in records]
    return WebhookDeliveryList(
        data=data,
        has_more=more,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )


@router.post(
    "/videos/{video_id}/webhook_deliveries/{delivery_id}/retry",
    response_model=WebhookDelivery,
    responses=errors(404, 503),
    summary="Send a webhook again",
)
def retry_webhook_delivery(video_id: str, delivery_id: str, ctx: Ctx) -> WebhookDelivery:
    """Sends it at once, under the same id, and tries as often as with a new one, also if it was delivered before.

    A receiver that answered 410 gets the video's later events again.
    """
    video = ctx.video(video_id)
    record = ctx.videos.deliveries.retry(video.id, video_key(video.id), delivery_id)
    if record is None:
        raise not_found(
            "There is no such delivery (any more).", code="delivery_not_found", param="delivery_id"
        )
    return delivery_object(record)


@router.get(
    "/webhook_secret", response_model=WebhookSecret, responses=errors(503), summary="Look at the secret"
)
def retrieve_webhook_secret(response: Response, ctx: Ctx) -> WebhookSecret:
    """The secret that signs your webhooks; made when it is first asked for or needed."""
    response.headers["Cache-Control"] = "no-store"
    return secret_object(ctx.videos.deliveries.secret(ctx.owner), time.time())


@router.post(
    "/webhook_secret/rotate",
    response_model=WebhookSecret,
    responses=errors(400, 408, 413, 415, 503),
    openapi_extra=body("RotateSecret", required=False),
    summary="Replace the secret",
)
async def rotate_webhook_secret(request: Request, response: Response, ctx: Ctx) -> WebhookSecret:
    """A new secret. For a while every webhook carries a signature of both, so that receivers can change over."""
    asked = RotateSecret()
    if await request.body():
        async with read_body(request) as fields:
            asked = await run_in_threadpool(parse, RotateSecret, fields, ctx.settings)
    overlap = asked.overlap_seconds
    if overlap is None:
        overlap = ctx.settings.webhook_secret_overlap_seconds
    response.headers["Cache-Control"] = "no-store"
    secret = await run_in_threadpool(ctx.videos.deliveries.rotate_secret, ctx.owner, overlap)
    return secret_object(secret, time.time())
