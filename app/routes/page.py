"""The web page and its files."""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.context import Context
from app.storage import StorageError

FOLDER = Path(__file__).parent.parent / "page"

# Python takes media types from the host's tables, where a script may be anything; browsers insist.
for _type, _extension in (("text/javascript", ".js"), ("text/css", ".css"), ("image/svg+xml", ".svg")):
    mimetypes.add_type(_type, _extension)

_SUFFIXES = {".css", ".html", ".ico", ".js", ".png", ".svg", ".webmanifest", ".webp", ".woff2"}

router = APIRouter(include_in_schema=False)


class PageFiles(StaticFiles):
    """The files of the page. Browsers ask each time whether theirs is still good, so an upgrade shows at once."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER, check_dir=False)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        # What builds the page, and what tells developers about it, lies beside it but is no part of it.
        if Path(path).suffix in _SUFFIXES or Path(path).name.startswith("LICENSE"):
            return super().lookup_path(path)
        return "", None


files = PageFiles()


@router.head("/")
@router.get("/")
async def page(request: Request) -> Response:
    """The page itself."""
    response = await files.get_response("index.html", request.scope)
    context: Context = request.app.state.context
    response.headers["Content-Security-Policy"] = await run_in_threadpool(content_policy, context)
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def content_policy(context: Context) -> str:
    """What the page may load: its own files and, where downloads are redirected there, the store's."""
    own = ["'self'"]
    if context.origin:
        own.append(_origin(context.origin))
    media = list(own)
    if context.settings.s3_presign:
        try:
            if url := context.objects.presign("probe", 60):
                media.append(_origin(url))
        except StorageError:
            pass  # there is nothing to load from a store that cannot be opened
    return "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "font-src 'self'",
            # Players that feed segments to the browser themselves do so under blob: addresses.
            f"connect-src {' '.join(own)}",
            f"img-src {' '.join(media)} data: blob:",
            f"media-src {' '.join(media)} blob:",
            "worker-src 'self' blob:",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        ]
    )


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
