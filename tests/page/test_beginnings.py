"""Videos that begin with something: an upload, or another video."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.page.easel import PAPERS
from tests.page.test_directing import FINISHED, prompts, shows
from tests.page.test_page import HEADLINE, ask, wait_until, wait_until_played


@pytest.fixture
def picture() -> dict[str, Any]:
    """An image all in teal, as Playwright takes files."""
    data = io.BytesIO()
    Image.new("RGB", (320, 240), PAPERS["teal"]).save(data, "PNG")
    return {"name": "teal.png", "mimeType": "image/png", "buffer": data.getvalue()}


def choose(page: Page, file: dict[str, Any] | str) -> None:
    page.get_by_label(re.compile("^Begin")).set_input_files(file)


def test_an_image_is_shown_sent_and_is_where_the_video_begins(
    service: Any, visitor: Any, picture: dict[str, Any]
) -> None:
    visitor.expected.append("status of 400")
    page = visitor.open()
    choose(page, {**picture, "buffer": b"<svg xmlns='http://www.w3.org/2000/svg'/>"})
    page.get_by_label("What should happen?").fill("a red circle on a maroon background")
    page.get_by_role("button", name="Make the video").click()
    error = page.locator("#input_reference-error")
    expect(error).to_have_text(re.compile(r"\w+ \w+"))
    expect(page.locator("#input_reference")).to_be_focused()
    page.get_by_role("button", name="Remove the image or clip").click()
    expect(error).to_be_hidden()

    choose(page, picture)
    wait_until(page, "document.querySelector('#reference-preview img')?.naturalWidth === 320")
    page.get_by_role("button", name="Add a later prompt").click()
    page.keyboard.type("a red circle on a navy background")
    page.get_by_label("Second from which prompt 2 counts").fill("3")
    video = ask(page, "a red circle on a maroon background", seconds="5")
    given = service.get(f"/v1/videos/{video}")["input_reference"]
    assert (given["kind"], given["width"], given["height"]) == ("image", 320, 240)
    expect(page.locator("#facts")).to_contain_text("begins with an image")
    expect(page.locator("#reference-preview > *")).to_have_count(0)
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    wait_until(page, "document.querySelector('video').ended")
    page.get_by_role("slider").focus()
    page.keyboard.press("Home")
    wait_until(page, "(video => video.currentTime === 0 && !video.seeking)(document.querySelector('video'))")
    assert shows(page, "teal")


def test_a_finished_video_goes_on_and_is_made_again_differently(service: Any, visitor: Any) -> None:
    visitor.expected.append("status of 400")
    page = visitor.open()
    first = ask(page, "a red circle on a black background", seconds="2")
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    page.get_by_role("button", name="Extend").click()
    dialog = page.get_by_role("dialog", name="Continue this video")
    dialog.get_by_label("What happens next?").fill("a white circle on a teal background")
    dialog.get_by_label("How much longer?").fill("-1")
    dialog.get_by_role("button", name="Make it").click()
    expect(dialog.locator("#sequel-more-error")).to_have_text(re.compile("more than"))
    dialog.get_by_label("How much longer?").fill("3")
    expect(dialog).to_contain_text("5 s in all")
    dialog.get_by_role("button", name="Make it").click()
    page.wait_for_url(lambda url: "#video_" in url and first not in url)
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    longer = service.get(f"/v1/videos/{page.url.partition('#')[2]}")
    assert (longer["extended_from_video_id"], longer["seconds"]) == (first, "5")
    assert prompts(page) == ["a red circle on a black background", "a white circle on a teal background"]
    page.get_by_role("list", name="Prompts of this video").get_by_role("button").last.click()
    wait_until_played(page, 4.0)
    assert shows(page, "teal")

    page.get_by_role("link", name="continues another video").click()
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    page.get_by_role("button", name="Remix").click()
    dialog = page.get_by_role("dialog", name="Make it again, differently")
    dialog.get_by_label("What should happen instead?").fill("a cyan circle on a maroon background")
    dialog.get_by_role("button", name="Make it").click()
    expect(page.get_by_role("link", name="remix of another video")).to_be_visible()
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    again = service.get(f"/v1/videos/{page.url.partition('#')[2]}")
    seed = service.get(f"/v1/videos/{first}")["seed"]
    assert (again["remixed_from_video_id"], again["seed"]) == (first, seed)
    assert again["prompt"] == "a cyan circle on a maroon background"
