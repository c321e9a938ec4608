"""What the page carries from others is what its notes say."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import app

PAGE = Path(app.__file__).parent / "page"
VENDOR = PAGE / "vendor"


def test_the_vendored_player_is_the_pinned_version_with_its_licence() -> None:
    version = json.loads((PAGE / "package.json").read_text())["dependencies"]["hls.js"]
    locked = json.loads((PAGE / "package-lock.json").read_text())["packages"]["node_modules/hls.js"]
    assert locked["version"] == version
    assert f'"{version}"' in (VENDOR / "hls.js").read_text()
    assert f"| {version} |" in (VENDOR / "README.md").read_text()
    assert "Apache License" in (VENDOR / "LICENSE.hls.js").read_text()
    assert "TERMS AND CONDITIONS" in (VENDOR / "LICENSE.Apache-2.0").read_text()


def test_the_lockfile_names_no_registry() -> None:
    assert "http" not in (PAGE / "package-lock.json").read_text()


def test_every_file_of_the_page_is_installed_with_the_package() -> None:
    project = tomllib.loads((PAGE.parent.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    for file in filter(Path.is_file, PAGE.rglob("*")):
        assert any(fnmatch(file.name, pattern) for pattern in patterns), file


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_inline() -> None:
    html = (PAGE / "index.html").read_text()
    for forbidden in ("http://", "https://", " style=", "<style", " onclick=", "javascript:"):
        assert forbidden not in html
    assert html.count("<script") == html.count('<script type="module" src="static/') == 1
    assert not re.findall('(?:src|href|action)="/', html)  # it may lie under a path
    for source in (*PAGE.glob("*.js"), *PAGE.glob("*.css")):
        text = source.read_text()
        assert "//cdn" not in text
        assert "https://" not in text
        assert "innerHTML" not in text, source
