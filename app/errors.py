"""Errors of the HTTP surface, in the shape stock OpenAI SDKs understand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
        """The JSON body of the answer."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def invalid(message: str, *, param: str | None, code: str = "invalid_value") -> APIError:
    """400: the request asks for something that cannot be."""
    return APIError(400, message, code=code, param=param)


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
