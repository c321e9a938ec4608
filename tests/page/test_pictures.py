"""Makes the pictures of the page for the documentation, with the whole service and the model that comes with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page.test_page import HEADLINE, wait_until, wait_until_played
from tests.page.test_whole_service import up

IMAGES = Path(__file__).parents[2] / "docs" / "images"

pytestmark = pytest.mark.slow

FIRST = "a red circle bouncing off the walls on a black background"
SECOND = "a yellow square orbiting the center on a navy background"
THIRD = "a cyan triangle drifting to the left on a maroon background"
FOURTH = "a white cross spinning in place on a teal background"


@pytest.fixture
def look(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page of a service as somebody has it: light or dark, large or small."""
    contexts = []

    def open_page(url: str, **options: Any) -> Page:
        size = {"viewport": {"width": 1200, "height": 960}, "reduced_motion": "reduce"}
        context = browser.new_context(**{**size, **options})
        contexts.append(context)
        page = context.new_page()
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()


def picture(page: Page, name: str) -> None:
    page.evaluate("scrollTo(0, 0)")
    page.mouse.move(0, 0)
    page.screenshot(path=IMAGES / f"{name}.png")


def test_pictures_of_the_page(look: Callable[..., Page], tmp_path: Path) -> None:
    with up(tmp_path) as url:
        page = look(url, color_scheme="dark")
        page.get_by_label("What should happen?").fill(FIRST)
        page.get_by_role("button", name="Add a later prompt").click()
        page.keyboard.type(SECOND)
        page.get_by_label("Second from which prompt 2 counts").fill("8")
        page.get_by_role("button", name="Make the video").focus()
        page.locator("#composer").screenshot(path=IMAGES / "page-timeline.png")
        page.get_by_role("button", name="Make the video").click()
        page.wait_for_url(re.compile("#video_"))
        wait_until_played(page, 3.0)
        page.get_by_label("Change what happens next").fill(THIRD)
        page.get_by_label("from second").fill("30")
        page.get_by_role("button", name="Steer").click()
        listed = page.get_by_role("list", name="Prompts of this video")
        expect(listed.get_by_role("button")).to_have_count(3)
        wait_until_played(page, 10.0)
        page.get_by_label("Change what happens next").blur()
        picture(page, "page")

        phone = look(
            page.url,
            viewport={"width": 390, "height": 844},
            is_mobile=True,
            has_touch=True,
            color_scheme="light",
        )
        wait_until_played(phone, 2.0)
        picture(phone, "page-phone")
        page.get_by_role("button", name="Finish here").click()
        phone.context.close()
        expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"), timeout=120_000)

        page.emulate_media(color_scheme="light")
        page.get_by_label("What should happen?").fill(FOURTH)
        page.get_by_role("button", name="Remove prompt 2").click()
        page.get_by_text("Endless", exact=True).click()
        page.get_by_role("button", name="Make the video").click()
        expect(page.locator("#timecode")).to_contain_text("∞")
        wait_until_played(page, 5.0)
        wait_until(page, "document.querySelector('.card img')?.naturalWidth > 0")
        page.get_by_label("What should happen?").blur()
        picture(page, "page-endless")
        page.get_by_role("button", name="Finish here").click()
        expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"), timeout=120_000)
        page.get_by_role("button", name="Extend").click()
        page.get_by_label("What happens next?").fill(FIRST)
        picture(page, "page-extend")


def test_picture_of_the_key(look: Callable[..., Page], tenants: Any) -> None:
    page = look(tenants.url, color_scheme="dark")
    expect(page.get_by_role("dialog", name="API key")).to_be_visible()
    picture(page, "page-key")
