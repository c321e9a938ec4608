"""Makes the README's pictures with the product itself: `python -m docs.pictures`.

Needs Chromium (Debian: chromium) for the picture of the page.
"""

from __future__ import annotations

import shutil
import time
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import sync_playwright

from app.client import LongtakeClient
from benchmarks.service import running_service

IMAGES = Path(__file__).parent / "images"
PROMPTS = [
    "a red ball bouncing off the walls on a black background",
    "a yellow square orbiting the center on a navy background",
    "a green triangle drifting to the left on a gray background",
]
SECONDS = 60
STILLS = 16


def contact_sheet(sheets: list[bytes]) -> Image.Image:
    """Every video as a row of stills, evenly spaced in time, cut from the sprite sheets (5 x 5 stills) it came with."""
    rows = []
    for data in sheets:
        sheet = Image.open(BytesIO(data))
        side = sheet.width // 5
        tiles = [
            sheet.crop((n % 5 * side, n // 5 * side, (n % 5 + 1) * side, (n // 5 + 1) * side))
            for n in range(25)
        ]
        rows.append([tiles[round(n * 24 / (STILLS - 1))] for n in range(STILLS)])
    picture = Image.new("RGB", (STILLS * 80, len(rows) * 80))
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            picture.paste(tile.resize((80, 80), Image.Resampling.LANCZOS), (x * 80, y * 80))
    return picture


def main() -> None:
    """Writes docs/images."""
    IMAGES.mkdir(exist_ok=True)
    with (
        running_service("builtin") as service,
        LongtakeClient(service.url) as client,
        sync_playwright() as engine,
    ):
        sheets = []
        for seed, prompt in enumerate(PROMPTS, start=1):
            video = client.wait(client.create(prompt, seconds=SECONDS, seed=seed).id)
            url = f"{service.url}/v1/videos/{video.id}/content?variant=spritesheet"
            sheets.append(httpx.get(url).raise_for_status().content)
        contact_sheet(sheets).save(IMAGES / "contact-sheet.png", optimize=True)

        chromium = shutil.which("chromium")
        browser = engine.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"],
        )
        page = browser.new_page(viewport={"width": 1200, "height": 860}, color_scheme="dark")
        video = client.create(
            "a cyan triangle drifting to the left on a maroon background", seconds=SECONDS, seed=7
        )
        page.goto(f"{service.url}/#{video.id}")
        playing = "[...document.querySelectorAll('video')].some(video => video.currentTime > 3)"
        while not page.evaluate(
            playing
        ):  # not wait_for_function: the page's policy forbids what that evaluates
            time.sleep(0.1)
        page.screenshot(path=IMAGES / "page.png")
        browser.close()


if __name__ == "__main__":
    main()
