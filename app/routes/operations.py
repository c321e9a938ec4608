"""Models, liveness, readiness, metrics."""

from __future__ import annotations

import hmac
import logging
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from redis.exceptions import RedisError

from app import __version__
from app.auth import bearer_token
from app.context import Context, Ctx
from app.errors import APIError, from_redis, from_storage, keys_unavailable, not_found, quoted, unauthorized
from app.jobs.job import ModelCard
from app.keys import KeysError
from app.routes.documentation import errors
from app.schemas import ModelList, ModelObject, model_object
from app.storage import StorageError

router = APIRouter()
log = logging.getLogger(__name__)


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
    version: str = __version__


class Readiness(BaseModel):
    """Whether requests can be served. No worker is no obstacle: videos wait in line for one."""

    status: Literal["ready"] = "ready"
    redis: Literal["ok"] = "ok"
    storage: Literal["ok"] = "ok"
    keys: Literal["ok"] = "ok"
    workers: int
    models: list[str]


@router.get(
    "/v1/models", response_model=ModelList, responses=errors(503), tags=["models"], summary="List models"
)
def list_models(ctx: Ctx) -> ModelList:
    """Models that workers have registered, with what can be asked of them."""
    return ModelList(data=_wire(list(ctx.videos.models().values()), ctx))


@router.get(
    "/v1/models/{model:path}",
    response_model=ModelObject,
    responses=errors(404, 503),
    tags=["models"],
    summary="Look at a model",
)
def retrieve_model(model: str, ctx: Ctx) -> ModelObject:
    """One model. Its name may hold slashes, as those of a model hub do."""
    card = ctx.videos.models().get(model)
    if card is None:
        raise not_found(f"There is no model {quoted(model)}.", code="model_not_found", param="model")
    return _wire([card], ctx)[0]


def _wire(cards: list[ModelCard], ctx: Context) -> list[ModelObject]:
    limits, served = ctx.settings, ctx.videos.line.served(card.name for card in cards)
    return [
        model_object(
            card,
            served=card.name in served,
            default_seconds=min(limits.default_seconds, limits.max_seconds),
            min_seconds=limits.min_seconds,
            max_seconds=limits.max_seconds,
        )
        for card in cards
    ]


@router.get("/healthz", response_model=Health, tags=["operations"], summary="Liveness")
async def healthz() -> Health:
    """Liveness: says nothing about Redis or the store, whose absence a restart would not cure."""
    return Health()


@router.get(
    "/readyz", response_model=Readiness, responses=errors(503), tags=["operations"], summary="Readiness"
)
def readyz(ctx: Ctx) -> Readiness | Response:
    """Readiness: Redis and the store answer, and API keys can be checked where they are on.

    How many workers live is said, and does not count.
    """
    checks: dict[str, Any] = {"redis": "ok", "storage": "ok", "keys": "ok"}
    failure: APIError | None = None
    if ctx.keyring is not None:
        try:
            ctx.keyring.check()
        except KeysError:
            failure, checks["keys"] = keys_unavailable(), "keys_unavailable"
    try:
        ctx.objects.check()
    except StorageError as error:
        log.warning("not ready: %s", error)
        failure, checks["storage"] = from_storage(error), error.code
    try:
        workers, models = len(ctx.videos.workers()), list(ctx.videos.models())
    except RedisError as error:
        log.warning("not ready: %s", type(error).__name__)
        failure, checks["redis"] = from_redis(error), "redis_unavailable"
    if failure is not None:
        body = {**failure.body(), "status": "unavailable", **checks}
        return JSONResponse(body, failure.status, {"Cache-Control": "no-store", **failure.headers})
    return Readiness(workers=workers, models=models)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "The figures.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **errors(401, 404),
    },
    tags=["operations"],
    summary="Figures",
)
def metrics(request: Request, ctx: Ctx) -> Response:
    """Figures for Prometheus. Takes a token of its own; without one it is there only while API keys are off.

    Those of `longtake_http_*`, `longtake_sse_*` and `process_*` are of this process. All others are of the whole
    service, the same from every replica: take their maximum, not their sum.
    """
    token = ctx.settings.metrics_token
    if token is None and ctx.keyring is not None:
        raise not_found("There is nothing at this address.")
    if token is not None:
        given = bearer_token(request.headers) or ""
        if not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
            raise unauthorized("The token is wrong, or there is none.", code="invalid_metrics_token")
    text, media_type = ctx.metrics.exposition(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": media_type, "Cache-Control": "no-store"})
