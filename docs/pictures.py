"""Makes the README's contact sheet with the product itself: `python -m docs.pictures`.

The pictures of the page are made by a test, `pytest tests/page/test_pictures.py`.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image

from app.client import LongtakeClient
from benchmarks.service import running_service

IMAGES = Path(__file__).parent / "images"
PROMPTS = [
    "a red ball bouncing past a green square over a meadow by day",
    "a yellow square orbiting the center on a navy background",
    "a white triangle drifting to the left over a field at sunset",
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
    """Writes docs/images/contact-sheet.png."""
    IMAGES.mkdir(exist_ok=True)
    with running_service("builtin") as service, LongtakeClient(service.url) as client:
        sheets = []
        for seed, prompt in enumerate(PROMPTS, start=1):
            video = client.wait(client.create(prompt, seconds=SECONDS, seed=seed).id)
            url = f"{service.url}/v1/videos/{video.id}/content?variant=spritesheet"
            sheets.append(httpx.get(url).raise_for_status().content)
        contact_sheet(sheets).save(IMAGES / "contact-sheet.png", optimize=True)


if __name__ == "__main__":
    main()
