"""What can be asked of a video while it is made, and made of it afterwards: on the page, against the real worker."""

from __future__ import annotations

import math
import re
from typing import Any

from playwright.sync_api import Page, expect

from tests.page.easel import PAPERS
from tests.page.test_page import HEADLINE, ask, position, wait_until, wait_until_played

FINISHED = re.compile(r"^Finished in")


def corner(page: Page) -> list[int]:
    """Red, green and blue in a corner of the picture that is on the screen."""
    return list(
        page.evaluate(
            """() => {
                const canvas = document.createElement("canvas");
                canvas.width = canvas.height = 8;
                const context = canvas.getContext("2d");
                context.drawImage(document.querySelector("video"), 0, 0, 8, 8);
                return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
            }"""
        )
    )


def shows(page: Page, paper: str) -> bool:
    return all(abs(a - b) < 40 for a, b in zip(corner(page), PAPERS[paper], strict=True))


def prompts(page: Page) -> list[str]:
    return page.get_by_role("list", name="Prompts of this video").locator(".text").all_inner_texts()


def test_a_timeline_is_asked_for_steered_while_it_plays_and_jumped_in(service: Any, visitor: Any) -> None:
    service.easel.hold_at = 2.0
    page = visitor.open()
    page.get_by_role("button", name="Add a later prompt").click()
    page.keyboard.type("this one goes again")
    page.get_by_role("button", name="Remove prompt 2").click()
    page.get_by_role("button", name="Add a later prompt").click()
    expect(page.get_by_label("Prompt 2", exact=True)).to_be_focused()
    page.keyboard.type("a yellow circle on a navy background")
    page.get_by_label("Second from which prompt 2 counts").fill("9")
    video = ask(page, "a red circle on a black background", seconds="12")
    wait_until_played(page, 0.5)
    assert shows(page, "black")

    page.get_by_label("Change what happens next").fill("a white circle on a teal background")
    page.keyboard.press("Enter")
    listed = page.get_by_role("list", name="Prompts of this video")
    expect(listed.get_by_role("button")).to_have_count(3)
    expect(page.get_by_label("Change what happens next")).to_be_focused()
    expect(page.get_by_label("Change what happens next")).to_have_value("")
    told = service.get(f"/v1/videos/{video}")["prompts"]
    assert [prompt["text"] for prompt in told] == prompts(page)
    steered = told[1]["at"]
    assert 2 < steered < 9
    assert page.locator("#marks i").count() == 2
    assert "a white circle on a teal background" in page.locator("#announcer").inner_text()

    service.easel.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    wait_until_played(page, steered + 0.3)
    expect(listed.locator("[aria-current]")).to_contain_text("teal")
    assert shows(page, "teal")
    listed.get_by_role("button", name=re.compile("navy")).click()
    wait_until_played(page, 9.1)
    assert shows(page, "navy")
    listed.get_by_role("button", name=re.compile("black")).click()
    wait_until(page, "document.querySelector('video').currentTime < 2")


def test_mistakes_in_a_timeline_and_in_steering_are_shown_at_their_fields(service: Any, visitor: Any) -> None:
    visitor.expected.append("status of 400")
    service.easel.hold_at = 1.0
    page = visitor.open()
    page.get_by_label("What should happen?").fill("a red circle")
    page.get_by_role("button", name="Add a later prompt").click()
    for field, mistake, right in (
        ("text", "", "a green circle"),
        ("at", "soon", "5"),
        ("at", "0", "5"),
        ("at", "99", "5"),
    ):
        wrong = page.locator(f"#scene-1-{field}")
        wrong.fill(mistake)
        page.get_by_role("button", name="Make the video").click()
        expect(page.locator(f"#scene-1-{field}-error")).to_have_text(re.compile(r"\w+ \w+"))
        expect(wrong).to_be_focused()
        expect(wrong).to_have_attribute("aria-invalid", "true")
        wrong.fill(right)
        expect(page.locator(f"#scene-1-{field}-error")).to_be_hidden()
    page.get_by_role("button", name="Make the video").click()
    page.wait_for_url(re.compile("#video_"))

    page.get_by_role("button", name="Steer").click()
    expect(page.locator("#steer-text-error")).to_have_text(re.compile("empty"))
    expect(page.get_by_label("Change what happens next")).to_be_focused()
    page.get_by_label("Change what happens next").fill("a cyan circle")
    page.get_by_label("from second").fill("1000")
    page.get_by_role("button", name="Steer").click()
    expect(page.locator("#steer-at-error")).to_have_text(re.compile("between 0 and"))
    expect(page.get_by_label("Change what happens next")).to_have_value("a cyan circle")


def test_an_endless_video_has_no_end_until_it_is_finished(service: Any, visitor: Any) -> None:
    service.easel.hold_at = 5.0
    page = visitor.open()
    page.get_by_label("What should happen?").fill("a green circle on a maroon background")
    page.get_by_text("Endless", exact=True).click()
    page.get_by_role("button", name="Make the video").click()
    page.wait_for_url(re.compile("#video_"))
    wait_until_played(page, 1.5)
    expect(page.locator(HEADLINE)).to_have_text("4.8 s ready")
    expect(page.locator("#timecode")).to_have_text(re.compile("^0:0[1-5] / ∞$"))
    expect(page.get_by_role("slider")).to_have_attribute("aria-valuetext", re.compile("of an endless video"))
    assert page.locator("#seek").get_attribute("max") == "30"
    assert re.search("NaN|undefined|Infinity|null", page.locator("body").inner_text()) is None
    assert "NaN" not in page.locator("body").evaluate("body => body.outerHTML")

    service.easel.hold_at = 27.0  # the strip makes room
    expect(page.locator(HEADLINE)).to_have_text("26 s ready")
    assert page.locator("#seek").get_attribute("max") == "60"
    page.get_by_role("button", name="Finish here").click()
    expect(page.locator(HEADLINE)).to_have_text("Finishing")
    expect(page.get_by_role("button", name="Steer")).to_be_hidden()
    service.await_wish(page.url.partition("#")[2], "finish")
    service.easel.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    seconds = float(service.get(f"/v1/videos/{page.url.partition('#')[2]}")["seconds"])
    assert 27 < seconds < 35
    expect(page.locator("#timecode")).to_have_text(re.compile(f" / 0:{math.floor(seconds)}$"))
    assert "NaN" not in page.locator("body").evaluate("body => body.outerHTML")
    assert position(page) < seconds


def test_a_video_is_paused_and_goes_on_where_it_was(service: Any, visitor: Any) -> None:
    service.easel.hold_at = 2.5
    page = visitor.open()
    video = ask(page, "a red circle on a navy background", seconds="8")
    wait_until_played(page, 0.3)
    page.get_by_role("button", name="Pause making").click()
    expect(page.locator(HEADLINE)).to_have_text("Pausing")
    service.await_wish(video, "pause")
    service.easel.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text("Paused")
    made = service.get(f"/v1/videos/{video}")["seconds_ready"]
    assert 1 <= made < 8
    expect(page.locator("#stage-note")).to_have_text("Paused here. Resume it to go on")
    page.reload()
    expect(page.locator(HEADLINE)).to_have_text("Paused")
    expect(page.locator(".card .facts")).to_contain_text("paused")

    page.get_by_role("button", name="Resume making").click()
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    wait_until_played(page, made + 0.5)
    expect(page.get_by_role("button", name="Resume making")).to_be_hidden()
