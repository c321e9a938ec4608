"""The page on the whole service: its own Redis, its own worker, the model that comes with it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from worker.models.registry import BUILTIN, BUILTIN_FOLDER

MODEL = BUILTIN


@contextmanager
def up(folder: Path) -> Iterator[str]:
    """Address of `longtake up` on an empty folder."""
    if not (BUILTIN_FOLDER / "model_index.json").is_file():
        pytest.skip("this checkout has no built-in model")
    longtake = Path(sys.executable).parent / "longtake"
    process = subprocess.Popen(
        [longtake, "up", "--data", str(folder / "data"), "--port", "0", "--model", MODEL],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("ready http"), ready
        yield ready.split()[1]
    finally:
        process.terminate()
        assert process.wait(120) == 0


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with up(tmp_path) as url:
        yield url


def test_what_the_model_makes_plays_while_the_rest_is_made(browser: Browser, url: str) -> None:
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(url)
    page.locator("#examples button").first.click()
    page.get_by_role("button", name="Make the video").click()
    page.wait_for_url(re.compile("#video_"))

    def video() -> dict[str, Any]:
        return dict(httpx.get(f"{url}/v1/videos/{page.url.partition('#')[2]}").raise_for_status().json())

    deadline = time.monotonic() + 180
    while page.evaluate("document.querySelector('video').currentTime") < 1.0:
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)
    made = video()
    assert made["status"] == "in_progress"
    assert made["chunks_ready"] < made["chunks_total"]
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#headline")).to_have_text("Cancelled")
    assert complaints == []
    context.close()
