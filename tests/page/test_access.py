"""For everybody: keyboard and screen reader, small screens, light and dark."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Page, expect

from tests.page.test_page import HEADLINE, ask, wait_until_played

FINISHED = re.compile(r"^Finished in")
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong: the rule and the elements."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']}: {node['target']} {node['failureSummary']}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_any_state(service: Any, visitor: Any, scheme: str) -> None:
    service.easel.hold_at = 1.0
    page = visitor.open(color_scheme=scheme)
    page.get_by_role("button", name="Add a later prompt").click()
    page.get_by_text("Custom").click()
    page.get_by_text("Options").click()
    assert violations(page) == []
    page.get_by_role("button", name="Remove prompt 2").click()
    ask(page, "a red circle on a black background", seconds="endless")
    expect(page.locator(HEADLINE)).to_have_text("0.8 s ready")
    page.get_by_label("Change what happens next").fill("a white circle")
    page.get_by_label("from second").fill("60")
    page.get_by_role("button", name="Steer").click()
    expect(page.get_by_role("list", name="Prompts of this video").get_by_role("button")).to_have_count(2)
    assert violations(page) == []
    page.get_by_role("button", name="Finish here").click()
    service.easel.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    assert violations(page) == []
    page.get_by_role("button", name="Extend").click()
    assert violations(page) == []


def test_a_phone_shows_everything_without_scrolling_sideways(service: Any, visitor: Any) -> None:
    service.easel.hold_at = 1.0
    page = visitor.open(**PHONE)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 360
    page.get_by_role("button", name="Add a later prompt").tap()
    page.get_by_label("Prompt 2", exact=True).fill("w" * 200)
    page.get_by_text("Options").tap()
    assert page.evaluate(width) == 360
    ask(page, "a red circle on a maroon background " + "w" * 200, seconds="20")
    expect(page.locator(HEADLINE)).to_have_text("0.8 s of 20 s ready")
    page.get_by_label("Change what happens next").fill("v" * 200)
    page.get_by_role("button", name="Steer").tap()
    expect(page.get_by_role("list", name="Prompts of this video").get_by_role("button")).to_have_count(3)
    assert page.evaluate(width) == 360
    _large_enough(
        page, "#play", "#seek", "#fullscreen", "#finish", "#cancel", "#steer button", "#submit", "#add-scene"
    )

    page.get_by_role("button", name="Finish here").tap()
    service.easel.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    assert page.evaluate(width) == 360
    _large_enough(page, "#download", "#extend", "#remix", "#again")
    page.get_by_role("button", name="Extend").tap()
    dialog = page.get_by_role("dialog", name="Continue this video").bounding_box()
    assert dialog is not None
    assert dialog["x"] >= 0
    assert dialog["x"] + dialog["width"] <= 360
    stage = page.locator("#stage").bounding_box()
    assert stage is not None
    assert stage["width"] == 360


def _large_enough(page: Page, *controls: str) -> None:
    for control in controls:
        box = page.locator(control).bounding_box()
        assert box is not None, control
        assert box["height"] >= 40, control


def test_a_video_is_directed_from_the_keyboard_alone(service: Any, visitor: Any) -> None:
    service.easel.hold_at = 1.0
    page = visitor.open()
    ask(page, "a red circle on a black background", seconds="30")
    wait_until_played(page, 0.2)
    page.get_by_role("button", name="Pause", exact=True).focus()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if reached[-1] == "prompt":
            break
    order = ["seek", "fullscreen", "finish", "cancel", "steer-text", "steer-at", "prompt"]
    assert [name for name in reached if name in order] == order

    page.get_by_label("Change what happens next").focus()
    page.keyboard.type("a white circle on teal")
    page.keyboard.press("Enter")
    expect(page.get_by_role("list", name="Prompts of this video").get_by_role("button")).to_have_count(2)
    page.get_by_role("button", name="Finish here").focus()
    page.keyboard.press("Space")
    expect(page.locator(HEADLINE)).to_be_focused()
    service.easel.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)

    page.get_by_role("button", name="Remix").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("What should happen instead?")).to_be_focused()
    for _ in range(6):  # the dialog keeps the focus from what lies behind it
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Remix")).to_be_focused()
