"""What must not be read in logs and messages: the secrets of API keys and of signed URLs."""

from __future__ import annotations

import re

_SECRET = re.compile(r"(lt_[0-9a-f]{1,12}_)[0-9a-f]{8,}|((?:api_key|access_token|sig)=)[^&\s\"'\\]+")


def redact(text: str) -> str:
    """The text without the secret of any API key or signed URL in it."""
    return _SECRET.sub(lambda found: f"{found[1] or found[2]}…", text)
