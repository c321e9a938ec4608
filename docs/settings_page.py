"""Writes docs/settings.md, the table of all settings, from the class that reads them: python docs/settings_page.py"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.settings import Settings

PAGE = Path(__file__).with_name("settings.md")

_HEAD = """# Settings

Every setting is an environment variable. Durations are in seconds and sizes in bytes, unless the name says otherwise. What is not set, or empty, has the default. Give the API and the workers the same ones: some are read by both. `longtake up`, `api` and `worker` have flags for some; a flag comes before its variable. Commands that are clients of a service (`watch` and others) read `LONGTAKE_URL` and `LONGTAKE_API_KEY`.

<!-- Written by docs/settings_page.py from app/settings.py; a test compares the two. -->
"""  # noqa: E501


def page() -> str:
    """The text of the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    properties = Settings.model_json_schema()["properties"]
    yield _HEAD.rstrip()
    # A comment of one line between an empty line and a field is the title of the group that begins there.
    groups = re.findall(r"\n\n    # (\w.*?)\.?\n    (\w+): ", inspect.getsource(Settings))
    titles = {first: title for title, first in groups}
    for name, schema in properties.items():
        if name in titles:
            yield f"\n## {titles[name]}\n\n| variable | values | default | what it is |\n|---|---|---|---|"
        cells = (_values(schema), _default(schema), schema.get("description", ""))
        yield f"| `LONGTAKE_{name.upper()}` | {' | '.join(_cell(cell) for cell in cells)} |"


def _values(schema: dict[str, Any]) -> str:
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    if "enum" in kinds[0]:
        return ", ".join(f"`{value}`" for value in kinds[0]["enum"])
    words = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}
    bounds = [
        f"{sign} {kinds[0][bound]:.15g}"
        for bound, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
        if bound in kinds[0]
    ]
    return " ".join([words[kinds[0]["type"]], *bounds])


def _default(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    if default is None or default == "":
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:.15g}`" if isinstance(default, int | float) else f"`{default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
