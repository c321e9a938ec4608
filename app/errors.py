"""Errors of the HTTP surface, in the shape stock OpenAI SDKs understand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from redis.exceptions import RedisError
from starlette.responses import Response

from app.jobs.migrations import RecordError
from app.redaction import redact
from app.storage.objects import (
    InvalidKey,
    ObjectNotFound,
    RangeNotSatisfiable,
    StorageError,
    StoreFull,
)

# Longest piece of the client's own input that an error repeats, in characters.
_QUOTED = 80

# Pydantic's complaints that are made of Python, in words of JSON.
_OF_JSON = {
    "model_type": "it must be an object",
    "dict_type": "it must be an object",
    "list_type": "it must be a list",
    "too_short": "it must not be empty",
    "int_parsing_size": "it has too many digits",
}


class APIError(Exception):
    """An answer other than success: HTTP status plus ``{"error": {message, type, param, code}}``."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        type: str = "invalid_request_error",  # noqa: A002 - the field's name on the wire
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.type = type
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON body of the answer. It may quote what the client sent, but no key out of that."""
        param = None if self.param is None else redact(self.param)
        return {
            "error": {"message": redact(self.message), "type": self.type, "param": param, "code": self.code}
        }

    def response(self) -> Response:
        """The whole answer. ASCII only, as a message may quote text that has no UTF-8 form."""
        return Response(
            json.dumps(self.body()),
            status_code=self.status,
            media_type="application/json",
            headers={"Cache-Control": "no-store", **self.headers},
        )


def invalid(message: str, *, param: str | None, code: str = "invalid_value") -> APIError:
    """400: the request asks for something that cannot be."""
    return APIError(400, message, code=code, param=param)


def unauthorized(message: str, *, code: str) -> APIError:
    """401: nobody we know asks."""
    return APIError(
        401, message, code=code, type="authentication_error", headers={"WWW-Authenticate": "Bearer"}
    )


def not_found(message: str, *, code: str = "not_found", param: str | None = None) -> APIError:
    """404: no such thing, or it is somebody else's."""
    return APIError(404, message, code=code, param=param)


def conflict(message: str, *, code: str, param: str | None = None) -> APIError:
    """409: the video is not in a state that allows this."""
    return APIError(409, message, code=code, param=param)


def too_many(message: str, *, code: str, retry_after_seconds: int) -> APIError:
    """429: a limit is reached; try again later."""
    return APIError(
        429,
        message,
        code=code,
        type="rate_limit_error",
        headers={"Retry-After": str(retry_after_seconds)},
    )


def unavailable(message: str, *, code: str, retry_after_seconds: int = 2) -> APIError:
    """503: Redis, the store or every worker is away for the moment; nothing is lost."""
    return APIError(
        503,
        message,
        code=code,
        type="server_error",
        headers={"Retry-After": str(retry_after_seconds)},
    )


def keys_unavailable() -> APIError:
    """503: the file of API keys cannot be read. Nobody is let in; the log has the reason."""
    return unavailable("API keys cannot be checked right now. Try again soon.", code="keys_unavailable")


def body_too_large(limit_bytes: int) -> APIError:
    """413: the body has more bytes than this server reads."""
    return APIError(
        413,
        f"The body is larger than {limit_bytes} bytes.",
        code="body_too_large",
        headers={"Connection": "close"},
    )


def body_stalled(idle_seconds: float) -> APIError:
    """408: the rest of the body does not come."""
    return APIError(
        408,
        f"Nothing of the body came for {idle_seconds:g} seconds.",
        code="request_timeout",
        headers={"Connection": "close"},
    )


def internal() -> APIError:
    """500: a fault of ours. The log has the reason, the client does not."""
    return APIError(500, "The server made a mistake.", code="internal_error", type="server_error")


def unknown_parameter(name: str) -> APIError:
    """400: a field that this server does not know, or does not support. It is never ignored."""
    param = _param([name])
    return invalid(f"Unknown or unsupported parameter: {param}.", param=param, code="unknown_parameter")


def quoted(text: str) -> str:
    """The client's own words, short enough for a message."""
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "…")


def from_redis(_error: RedisError) -> APIError:
    """What a client is told while Redis is away."""
    return unavailable("The job store is not available right now. Try again soon.", code="redis_unavailable")


def from_record(error: RecordError) -> APIError:
    """What a client is told of a video whose record this server cannot read."""
    return APIError(500, str(error), code="record_unreadable", type="server_error")


def from_storage(error: StorageError) -> APIError:
    """What a client is told when the object store fails."""
    if isinstance(error, ObjectNotFound):
        return not_found("The file does not exist (any more).", code="file_not_found")
    if isinstance(error, InvalidKey):
        return not_found("There is no such file.", code="file_not_found")
    if isinstance(error, RangeNotSatisfiable):
        return APIError(
            416, "The range lies behind the end of the file.", code="range_not_satisfiable", param="Range"
        )
    if isinstance(error, StoreFull):
        return unavailable("The object store is full.", code="storage_full", retry_after_seconds=30)
    return unavailable(
        "The object store is not available right now. Try again soon.", code="storage_unavailable"
    )


def from_status(status: int, headers: Mapping[str, str] | None = None) -> APIError:
    """The framework's own refusals: no such route, wrong method, and the like."""
    reason = HTTPStatus(status).phrase
    known = {
        404: ("not_found", "There is nothing at this address."),
        405: ("method_not_allowed", "This address does not take that method."),
    }
    code, message = known.get(status, (reason.lower().replace(" ", "_").replace("-", "_"), f"{reason}."))
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return APIError(status, message, code=code, type=kind, headers=headers)


def from_validation(errors: Sequence[Mapping[str, Any]], *, skip: int = 0) -> APIError:
    """The first of pydantic's complaints as a 400. `skip` leading parts of its location are not the client's."""
    error = errors[0]
    param = _param(error["loc"][skip:])
    if error["type"] == "extra_forbidden":
        return unknown_parameter(param)
    if error["type"] == "missing":
        return invalid(f"Missing parameter: {param}.", param=param, code="missing_required_parameter")
    reason = _OF_JSON.get(error["type"]) or error["msg"].replace("Input should be", "it must be")
    return invalid(f"Invalid {param}: {reason}.", param=param)


def _param(location: Sequence[str | int]) -> str:
    """`("prompts", 1, "text")` as `prompts[1].text`."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += f".{part}" if name else part
    return name if len(name) <= _QUOTED else name[:_QUOTED] + "…"
