"""The page where API keys are on: it asks for one, plays through signed URLs, and keeps what it has to itself."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Request, Route, expect

from app.signatures import Signer
from tests.page.test_page import HEADLINE, ask, hold_list, wait_until, wait_until_played

REFUSED = "status of 401"
FINISHED = re.compile(r"^Finished in")


def enter(page: Page, token: str, *, remember: bool = False) -> None:
    """Types the key into the dialog and sends it."""
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Your API key").fill(token)
    if remember:
        dialog.get_by_label("Remember it on this device").check()
    page.keyboard.press("Enter")


@pytest.fixture
def sent(visitor: Any, tenants: Any) -> Callable[..., tuple[Page, list[Request]]]:
    """Opens the page of the service with keys; returns it and the list of all requests it makes."""
    visitor.expected.append(REFUSED)

    def open_page(hash: str = "", **options: Any) -> tuple[Page, list[Request]]:  # noqa: A002
        page = visitor.open(hash, url=tenants.url, ready="#gate[open]", **options)
        requests: list[Request] = []

        def note(
            request: Request,
        ) -> None:  # Playwright marks what it calls, and a list's own method cannot be marked
            requests.append(request)

        page.on("request", note)
        return page, requests

    return open_page


def test_the_page_asks_for_a_key_and_what_it_makes_is_seen_by_nobody_else(
    service: Any, tenants: Any, sent: Any, visitor: Any
) -> None:
    service.easel.hold_at = 3.0
    page, requests = sent()
    field = page.get_by_label("Your API key")
    expect(field).to_be_focused()
    assert field.get_attribute("type") == "password"
    almost = tenants.alice[:-1] + ("1" if tenants.alice.endswith("0") else "0")
    for wrong in ("nonsense", "ключ", almost):
        enter(page, wrong)
        expect(page.locator("#key-error")).to_have_text(re.compile(r"\w+ \w+"))
        expect(field).to_be_focused()
    enter(page, tenants.alice)
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.locator("#examples button").first.wait_for()

    video = ask(page, "a red circle on a black background", seconds="4")
    wait_until_played(page, 1.0)
    assert [mine["id"] for mine in tenants.videos(tenants.alice)] == [video]
    service.easel.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    wait_until_played(page, 3.0)
    wait_until(
        page, "document.querySelector('.card img')?.naturalWidth > 0"
    )  # an element that sends no header
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.failure() is None

    keyless = [r for r in requests if "authorization" not in r.headers and "/v1/" in r.url]
    assert any("stream.m3u8" in request.url for request in keyless)
    assert all("sig=" in request.url for request in keyless)
    assert not any(tenants.alice in request.url for request in requests)
    assert page.evaluate("localStorage.length") == 0

    other, _ = sent(f"#{video}")
    visitor.expected.append("status of 404")
    enter(other, tenants.bob)
    expect(other.get_by_role("alert").filter(has_text="does not exist")).to_be_visible()
    expect(other.get_by_text("Nothing here yet")).to_be_visible()
    assert tenants.videos(tenants.bob) == []


def test_signing_out_leaves_nothing_and_signing_in_opens_it_again(
    service: Any, tenants: Any, sent: Any
) -> None:
    page, _ = sent()
    page.keyboard.press("Escape")  # no trap: the page can be left alone
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_label("What should happen?").fill("a white circle on teal")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="API key")).to_be_visible()
    enter(page, tenants.alice, remember=True)
    page.locator("#examples button").first.wait_for()
    expect(page.get_by_label("What should happen?")).to_have_value("a white circle on teal")
    video = ask(page, "a white circle on teal", seconds="1")
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    page.reload()
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)  # remembered

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("dialog", name="API key")).to_be_visible()
    assert page.evaluate("[localStorage.length, Object.values(sessionStorage).join()]")[0] == 0
    assert tenants.alice not in page.evaluate("Object.values(sessionStorage).join()")
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#deck")).to_be_hidden()
    enter(page, tenants.alice)
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    assert page.url.endswith(f"#{video}")
    expect(page.locator(".card")).to_have_count(1)


def test_a_list_that_comes_after_signing_out_is_not_shown(service: Any, tenants: Any, sent: Any) -> None:
    page, _ = sent()
    enter(page, tenants.alice)
    page.locator("#examples button").first.wait_for()
    ask(page, "a white circle on teal", seconds="1")
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    let_go = hold_list(page)
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator(".card")).to_have_count(0)
    let_go()
    assert page.locator(".card").count() == 0


def test_a_signature_that_has_expired_is_replaced(service: Any, tenants: Any, sent: Any) -> None:
    page, requests = sent()
    enter(page, tenants.alice)
    page.locator("#examples button").first.wait_for()
    video = ask(page, "a yellow circle on navy", seconds="3")
    expect(page.locator(HEADLINE)).to_have_text(FINISHED)
    page.get_by_role("link", name="longtake, new video").click()

    owner = tenants.alice.split("_")[1]
    expired = Signer(service.redis, None, -100).sign(video, owner).query
    answers = []

    def old(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        body["playlist_url"] = f"/v1/videos/{video}/stream.m3u8?{expired}"
        answers.append(body["playlist_url"])
        route.fulfill(response=answer, body=json.dumps(body))

    page.route(f"**/v1/videos/{video}", old, times=1)
    requests.clear()
    page.locator(".card a").click()
    wait_until_played(page, 1.0)
    playlists = [request.response() for request in requests if "stream.m3u8" in request.url]
    assert len(answers) == 1
    assert [answer.status for answer in playlists if answer][:2] == [401, 200]


def test_too_many_requests_are_told_with_the_time(
    service: Any, tenants: Any, sent: Any, visitor: Any
) -> None:
    visitor.expected.append("status of 429")
    page, requests = sent()
    enter(page, tenants.carol)  # who may ask four times a minute
    page.locator("#examples button").first.wait_for()
    page.get_by_label("What should happen?").fill("a white circle on teal")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("#video_"))  # the fourth
    told = page.get_by_role("alert").filter(has_text="4 requests a minute")
    expect(told).to_have_text(re.compile(r"Try again in \d+ s\.$"))
    seconds = int(re.findall(r"\d+", told.inner_text())[-1])
    requests.clear()
    page.wait_for_timeout(min(2500, 500 * seconds))  # nothing is due by then, however slow all of this was
    assert [request.url for request in requests if "/v1/" in request.url] == []  # it waits
    page.get_by_role("button", name="Make the video").click()
    expect(page.locator("#composer-error")).to_have_text(re.compile(r"Try again in \d+ s\.$"))
