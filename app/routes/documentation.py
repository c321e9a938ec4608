"""What the OpenAPI document says about errors, the same for every route that can give them."""

from __future__ import annotations

from typing import Any

from app.schemas import ErrorObject

_REASONS = {
    400: "The request asks for something that cannot be; `param` names the field.",
    401: "There is no API key, or it is wrong; or the URL's signature is.",
    403: "The API key may only look, or another web site asks.",
    404: "There is no such thing (yet).",
    408: "Nothing of the body came for too long.",
    409: "The video is not in a state that allows this.",
    413: "The body is larger than this server reads.",
    415: "The body is neither JSON nor a form.",
    416: "The range lies behind the end of the file.",
    421: "The service does not go by the name in Host.",
    422: "The Idempotency-Key was used before with another body.",
    429: "A limit is reached; see Retry-After.",
    503: "Redis, the object store or every worker is away; nothing is lost. See Retry-After.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that can answer with these errors."""
    return {status: {"model": ErrorObject, "description": _REASONS[status]} for status in statuses}


def body(schema: str, *, required: bool = True) -> dict[str, Any]:
    """`openapi_extra=` of a route that reads its body with `app.forms.read_body`, by the name of its schema."""
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    media_types = ("application/json", "multipart/form-data")
    return {"requestBody": {"required": required, "content": dict.fromkeys(media_types, content)}}


def file(description: str, *media_types: str) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that answers with bytes of one of these types."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media_types}
    return {
        200: {"description": description, "content": content},
        206: {"description": "A part of it, as asked for with Range.", "content": content},
        304: {"description": "The client's copy is still good."},
    }
