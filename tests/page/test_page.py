"""The page in a real browser, against the real API."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

HEADLINE = "#headline"


def ask(page: Page, prompt: str, *, seconds: str = "10") -> str:
    """Fills in the form, sends it, and returns the id of the video that is then on the screen."""
    page.get_by_label("What should happen?").fill(prompt)
    page.get_by_text("Custom").click()
    page.get_by_label("Length in seconds").fill(seconds)
    page.get_by_role("button", name="Make the video").click()
    page.wait_for_url(re.compile("#video_"))
    return page.url.partition("#")[2]


def position(page: Page) -> float:
    """Seconds of the video that have been played."""
    return float(page.evaluate("document.querySelector('video').currentTime"))


def wait_until(page: Page, expression: str) -> None:
    """Waits until the expression is true. Playwright's own wait needs eval in the page, which its policy forbids."""
    deadline = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"still not true: {expression}"
        page.wait_for_timeout(30)


def wait_until_played(page: Page, seconds: float) -> None:
    wait_until(page, f"document.querySelector('video').currentTime >= {seconds}")


def test_a_video_plays_while_it_is_still_being_made(service: Any, visitor: Any) -> None:
    service.painter.hold_at = 3.0
    page = visitor.open()
    video = ask(page, "a red circle bouncing on a navy background", seconds="6")

    wait_until_played(page, 0.05)
    first = position(page)
    wait_until_played(page, 2.0)  # six chunks further
    assert position(page) > first
    assert service.get(f"/v1/videos/{video}")["status"] == "in_progress"
    expect(page.locator(HEADLINE)).to_have_text("3 s of 6 s ready")
    assert page.evaluate("document.querySelector('video').videoWidth") == 64

    service.painter.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text(re.compile(r"^Finished in \d+ s$"))
    wait_until_played(page, 5.9)


def test_playback_that_catches_up_waits_and_goes_on_by_itself(service: Any, visitor: Any) -> None:
    service.painter.hold_at = 1.0
    page = visitor.open()
    video = ask(page, "a cyan triangle on a maroon background", seconds="4")

    note = page.get_by_text("Waiting for the next moment")
    expect(note).to_be_visible()
    assert 0.5 < position(page) <= 1.0
    assert service.get(f"/v1/videos/{video}")["status"] == "in_progress"
    service.painter.hold_at = 3.0
    wait_until_played(page, 2.0)
    assert service.get(f"/v1/videos/{video}")["status"] == "in_progress"
    service.painter.hold_at = math.inf
    wait_until_played(page, 3.9)
    expect(note).to_be_hidden()


def test_the_form_works_from_the_keyboard_alone(service: Any, visitor: Any) -> None:
    page = visitor.open()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the prompt")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("a white cross on a teal background")
    for _ in range(1 + page.locator("#examples button").count()):  # over the examples to the length
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # opens the options
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("7")
    page.keyboard.press("Enter")

    page.wait_for_url(re.compile("#video_"))
    video = service.get(f"/v1/videos/{page.url.partition('#')[2]}")
    assert (video["prompt"], video["seconds"], video["seed"]) == (
        "a white cross on a teal background",
        "10",
        7,
    )
    wait_until_played(page, 0.5)

    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Play").first).to_be_visible()
    wait_until(page, "document.querySelector('video').paused")
    page.get_by_role("slider", name="Position in the video").focus()
    page.keyboard.press("Home")
    wait_until(page, "document.querySelector('video').currentTime === 0")


def test_an_example_fills_the_prompt_and_enter_sends_it(service: Any, visitor: Any) -> None:
    page = visitor.open()
    box = page.get_by_label("What should happen?")
    example = page.locator("#examples button").nth(1)
    text = example.inner_text()
    example.click()
    expect(box).to_have_value(text)
    expect(box).to_be_focused()
    box.press("Shift+Enter")
    expect(box).to_have_value(text + "\n")
    box.press("Enter")
    page.wait_for_url(re.compile("#video_"))
    assert service.get(f"/v1/videos/{page.url.partition('#')[2]}")["prompt"] == text


def test_a_mistake_is_shown_at_its_field(visitor: Any) -> None:
    visitor.expected.append("status of 400")
    page = visitor.open()
    page.get_by_text("Custom").click()
    right = {"prompt": "a green disc", "seconds": "5", "seed": "7"}
    for field, mistake in (
        ("prompt", "   "),
        ("seconds", "a while"),
        ("seconds", "-3"),
        ("seconds", "1e9"),
        ("seed", "-1"),
        ("seed", "x"),
    ):
        page.evaluate("document.querySelector('#options').open = true")
        for other, value in right.items():
            page.locator(f"#{other}").fill(mistake if other == field else value)
        page.get_by_text("Options").click()  # closed: it has to open for its mistake
        page.get_by_role("button", name="Make the video").click()

        expect(page.locator(f"#{field}-error")).to_have_text(re.compile(r"\w+ \w+"))
        expect(page.locator(f"#{field}")).to_be_focused()
        expect(page.locator(f"#{field}")).to_have_attribute("aria-invalid", "true")
        page.locator(f"#{field}").fill(right[field])
        expect(page.locator(f"#{field}-error")).to_be_hidden()
    assert "#video_" not in page.url


def test_cancel_keeps_what_is_made(service: Any, visitor: Any, tmp_path: Path) -> None:
    service.painter.hold_at = 2.0
    page = visitor.open()
    ask(page, "a purple circle on black", seconds="30")
    expect(page.locator(HEADLINE)).to_have_text("2 s of 30 s ready")
    page.get_by_role("button", name="Cancel").click()

    expect(page.locator(HEADLINE)).to_have_text("Cancelled")
    expect(page.locator("#detail")).to_have_text("the first 2 s are kept")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    wait_until_played(page, 1.9)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download 2 s").click()
    download.value.save_as(tmp_path / "part.mp4")
    assert (tmp_path / "part.mp4").read_bytes()[4:8] == b"ftyp"


def test_a_reload_continues_where_one_was(service: Any, visitor: Any) -> None:
    service.painter.hold_at = 5.0
    page = visitor.open()
    video = ask(page, "a red circle on black", seconds="30")
    wait_until_played(page, 1.5)
    before = position(page)
    page.reload()

    wait_until(page, "document.querySelector('video').readyState >= 2")
    assert position(page) >= before - 0.2
    wait_until_played(page, before + 0.7)
    assert service.get(f"/v1/videos/{video}")["status"] == "in_progress"


def test_a_finished_video_can_be_downloaded_watched_again_and_deleted(
    service: Any, visitor: Any, tmp_path: Path
) -> None:
    page = visitor.open()
    video = ask(page, "a yellow circle on navy", seconds="3")
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == f"{video}.mp4"
    download.value.save_as(tmp_path / "video.mp4")
    assert b"moov" in (tmp_path / "video.mp4").read_bytes()[:64]

    card = page.get_by_role("listitem").filter(has_text="a yellow circle on navy")
    wait_until(page, "document.querySelector('.card img')?.naturalWidth > 0")
    page.get_by_role("link", name="longtake, new video").click()
    expect(page.get_by_role("heading", name="Describe a scene.")).to_be_visible()
    card.get_by_role("link").click()
    wait_until_played(page, 0.5)

    card.hover()
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep it").click()
    expect(card).to_be_visible()
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(card).to_have_count(0)
    expect(page.get_by_role("heading", name="Describe a scene.")).to_be_visible()
    assert service.get("/v1/videos")["data"] == []
    assert "#video_" not in page.url


def test_a_waiting_video_says_how_many_are_before_it(service: Any, visitor: Any) -> None:
    service.painter.resting.set()
    service.make("a red circle", 5)
    page = visitor.open()
    second = ask(page, "a white cross", seconds="3")
    expect(page.locator(HEADLINE)).to_have_text("Waiting in line, 1 video before yours")
    assert service.get(f"/v1/videos/{second}")["status"] == "queued"

    service.painter.resting.clear()
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))


def test_a_failure_is_told_in_plain_words(service: Any, visitor: Any) -> None:
    page = visitor.open()
    ask(page, "explode", seconds="5")
    expect(page.locator(HEADLINE)).to_have_text("This video could not be made")
    expect(page.locator("#detail")).to_have_text("The GPU ran out of memory. The first 1 s are kept.")
    wait_until_played(page, 0.8)


def test_a_video_that_does_not_exist_is_told_and_left(visitor: Any) -> None:
    visitor.expected.append("status of 404")
    page = visitor.open("#video_00000000000000000000000000000000")
    expect(page.get_by_role("alert").filter(has_text="does not exist")).to_be_visible()
    expect(page.get_by_role("heading", name="Describe a scene.")).to_be_visible()


def test_when_the_service_goes_away_the_page_says_so_and_recovers(service: Any, visitor: Any) -> None:
    visitor.expected += ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE", "ERR_CONNECTION_RESET", "ERR_EMPTY"]
    service.painter.hold_at = 1.0
    page = visitor.open()
    ask(page, "a red circle on gray", seconds="4")
    wait_until_played(page, 0.3)
    service.stop()
    away = page.get_by_role("alert").filter(has_text="cannot be reached")
    expect(away).to_be_visible()
    service.painter.hold_at = math.inf
    service.start()
    expect(away).to_be_hidden()
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))
    wait_until_played(page, 2.5)


def test_without_events_the_page_asks(service: Any, visitor: Any) -> None:
    visitor.expected.append("ERR_FAILED")
    service.painter.hold_at = 1.0
    page = visitor.open()
    page.route("**/events*", lambda route: route.abort())
    ask(page, "a green circle on black", seconds="3")
    expect(page.locator(HEADLINE)).to_have_text("1 s of 3 s ready")
    service.painter.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))


def test_a_phone_shows_everything_without_scrolling_sideways(service: Any, visitor: Any) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    page = visitor.open(**phone)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 390
    ask(page, "a red circle on a maroon background " + "w" * 200, seconds="2")
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))
    page.get_by_text("Options").tap()
    assert page.evaluate(width) == 390
    stage = page.locator("#stage").bounding_box()
    assert stage is not None
    assert stage["width"] == 390
    for control in ("#play", "#seek", "#fullscreen", "#download", "#submit"):
        box = page.locator(control).bounding_box()
        assert box is not None
        assert box["height"] >= 40, control


def test_every_control_has_a_name(service: Any, visitor: Any) -> None:
    page = visitor.open()
    ask(page, "a red circle", seconds="1")
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))
    page.get_by_text("Options").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, select, textarea, video")].filter((element) => {
            const label = element.labels?.[0]?.innerText ?? element.closest("label")?.innerText;
            return !(element.getAttribute("aria-label") || label || element.innerText)?.trim();
        }).map((element) => element.outerHTML)"""
    )
    assert nameless == []


def test_turning_points_are_spoken_but_not_every_chunk(service: Any, visitor: Any) -> None:
    page = visitor.open()
    page.evaluate(
        """() => {
            window.spoken = [];
            const place = document.querySelector("#announcer");
            new MutationObserver(() => window.spoken.push(place.textContent)).observe(place, {childList: true});
        }"""
    )
    ask(page, "a white cross on teal", seconds="4")
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))
    spoken = [text for text in page.evaluate("window.spoken") if text]
    assert spoken[-1].startswith("Finished in")
    assert 3 <= len(spoken) <= 9, spoken  # of 12 chunks and as many progress events
