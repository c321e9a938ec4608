"""The page in a real browser, against the real API."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, Request, Route, expect

from app.jobs.job import new_video_id
from app.jobs.store import MODELS_KEY, VideoStore

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
    deadline = time.monotonic() + 120
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"still not true: {expression}"
        page.wait_for_timeout(30)


def wait_until_played(page: Page, seconds: float) -> None:
    """On a busy machine playback may catch up before that: then it goes on once 1.5 s are made ahead, later 3 s."""
    wait_until(page, f"document.querySelector('video').currentTime >= {seconds}")


def hold_list(page: Page) -> Callable[[], None]:
    """Has the page ask for the list of videos, and holds the answer. What is returned lets the page read it."""
    held = []

    def hold(route: Route) -> None:
        held.append((route, route.fetch()))

    page.route("**/v1/videos?*", hold, times=1)
    page.evaluate(
        """() => {
            const read = Response.prototype.json;
            Response.prototype.json = async function () {
                const told = await read.call(this);
                window.listRead ||= this.url.includes("/v1/videos?");
                return told;
            };
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    deadline = time.monotonic() + 60
    while not held:
        assert time.monotonic() < deadline, "the page has not asked"
        page.wait_for_timeout(30)

    def let_go() -> None:
        page.evaluate("window.listRead = false")
        [(route, answer)] = held
        route.fulfill(response=answer)
        wait_until(page, "window.listRead")

    return let_go


def test_a_video_plays_while_it_is_still_being_made(service: Any, visitor: Any) -> None:
    service.easel.hold_at = 3.0
    page = visitor.open()
    video = ask(page, "a red circle bouncing on a navy background", seconds="6")

    wait_until_played(page, 0.05)
    first = position(page)
    wait_until_played(page, 1.5)  # four chunks further
    assert position(page) > first
    assert service.get(f"/v1/videos/{video}")["status"] == "in_progress"
    expect(page.locator(HEADLINE)).to_have_text("2.8 s of 6 s ready")
    assert page.evaluate("document.querySelector('video').videoWidth") == 64

    service.easel.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text(re.compile(r"^Finished in \d+ s$"))
    wait_until_played(page, 5.9)


def test_it_all_works_under_a_path_of_a_proxy(
    service: Any, visitor: Any, another: Callable[..., Any]
) -> None:
    api = another("/films")
    page = visitor.open(url=api.url)
    video = ask(page, "a red circle on a navy background", seconds="1,5")
    expect(page.locator(HEADLINE)).to_have_text(re.compile(r"^Finished in \d+ s$"))
    wait_until_played(page, 1.4)
    assert service.get(f"/v1/videos/{video}")["seconds"] == "1.5"
    thumbnail = f"document.querySelector('.card[data-id={video}] img')"
    wait_until(page, f"{thumbnail}?.naturalWidth > 0")
    assert page.evaluate(f"{thumbnail}.src").startswith(f"{api.url}/v1/videos/")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).stat().st_size > 1000


def test_where_no_length_on_offer_is_allowed_one_is_typed(visitor: Any, another: Callable[..., Any]) -> None:
    page = visitor.open(url=another(max_seconds=8.0).url)
    expect(page.get_by_label("Length in seconds")).to_be_visible()
    expect(page.get_by_text("seconds, up to 8 s")).to_be_visible()
    expect(page.get_by_text("10 s", exact=True)).to_be_hidden()


def test_playback_that_catches_up_waits_and_goes_on_by_itself(service: Any, visitor: Any) -> None:
    service.easel.hold_at = 2.5
    page = visitor.open()
    video = ask(page, "a cyan triangle on a maroon background", seconds="8")

    wait_until_played(page, 0.51)  # by then it may have waited for the first moments
    note = page.get_by_text("Waiting for the next moment")
    expect(note).to_be_visible()
    assert 0.5 < position(page) <= 2.5
    assert service.get(f"/v1/videos/{video}")["status"] == "in_progress"
    service.easel.hold_at = 6.0
    wait_until_played(page, 4.0)
    assert service.get(f"/v1/videos/{video}")["status"] == "in_progress"
    service.easel.hold_at = math.inf
    wait_until_played(page, 7.9)
    expect(note).to_be_hidden()


def test_the_form_works_from_the_keyboard_alone(service: Any, visitor: Any) -> None:
    page = visitor.open()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the prompt")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("a white cross on a teal background")
    # Over "Add a later prompt", the file and the examples to the length.
    for _ in range(3 + page.locator("#examples button").count()):
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

    page.get_by_role("button", name="Pause", exact=True).focus()
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


def test_a_model_that_no_worker_has_says_so_in_the_menu(service: Any, visitor: Any) -> None:
    videos = VideoStore(service.redis)
    card = videos.models()["easel"]
    videos.register_model(card.model_copy(update={"name": "org/xl", "created_at": time.time()}))
    try:
        page = visitor.open()
    finally:
        service.redis.hdel(MODELS_KEY, "org/xl")
    page.get_by_text("Options").click()
    menu = page.get_by_label("Model", exact=True)
    expect(menu).to_be_visible()
    assert menu.evaluate("menu => [...menu.options].map((option) => [option.value, option.label])") == [
        ["easel", "easel"],
        ["org/xl", "org/xl (no worker)"],
    ]
    assert menu.evaluate("menu => menu.value") == "easel"


def test_cancel_keeps_what_is_made(service: Any, visitor: Any, tmp_path: Path) -> None:
    service.easel.hold_at = 2.0
    page = visitor.open()
    video = ask(page, "a purple circle on black", seconds="30")
    expect(page.locator(HEADLINE)).to_have_text("1.8 s of 30 s ready")
    page.get_by_role("button", name="Cancel").focus()
    page.keyboard.press("Enter")
    expect(page.locator(HEADLINE)).to_have_text("Stopping")
    expect(page.locator(HEADLINE)).to_be_focused()  # the button that had the focus is gone
    service.await_wish(video, "cancel")
    service.easel.hold_at = math.inf

    expect(page.locator(HEADLINE)).to_have_text("Cancelled")
    kept = math.floor(10 * service.get(f"/v1/videos/{video}")["seconds_ready"]) / 10
    assert kept < 5
    expect(page.locator("#detail")).to_have_text(f"the first {kept:g} s are kept")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    wait_until_played(page, kept - 0.1)
    with page.expect_download() as download:
        page.get_by_role("link", name=f"Download {kept:g} s").click()
    download.value.save_as(tmp_path / "part.mp4")
    assert (tmp_path / "part.mp4").read_bytes()[4:8] == b"ftyp"


def test_a_reload_continues_where_one_was(service: Any, visitor: Any) -> None:
    service.easel.hold_at = 5.0
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

    card = page.locator(".card").filter(has_text="a yellow circle on navy")
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


def test_a_list_that_comes_late_brings_no_deleted_video_back_and_takes_no_new_one_away(
    visitor: Any,
) -> None:
    page = visitor.open()
    cards = page.locator(".card")
    ask(page, "a red circle on black", seconds="1")
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))
    page.get_by_role("link", name="longtake, new video").click()
    let_go = hold_list(page)
    cards.hover()
    cards.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(cards).to_have_count(0)
    let_go()
    assert cards.count() == 0

    let_go = hold_list(page)
    ask(page, "a white circle on teal", seconds="1")
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))
    let_go()
    assert cards.count() == 1


def hold_the_list(page: Any) -> list[Route]:
    """The page's next request for the list, once it has been sent: it waits until the test lets it go."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/videos?*", hold, times=1)
    return held


def test_a_list_that_comes_after_the_video_of_the_address_is_shown_whole(service: Any, visitor: Any) -> None:
    service.easel.hold_at = 1.0
    running, _ = (service.make(f"a {colour} circle", 5) for colour in ("red", "yellow"))
    page = visitor.open(f"#{running}")
    held = hold_the_list(page)
    page.reload()
    expect(page.locator(HEADLINE)).to_have_text("0.8 s of 5 s ready")
    expect(page.locator(".card")).to_have_count(1)
    held[0].continue_()
    expect(page.locator(".card")).to_have_text([re.compile("yellow"), re.compile("red")])


def test_other_cards_are_kept_current_while_a_video_is_being_made(service: Any, visitor: Any) -> None:
    made = service.make("a red circle", 3600)  # its progress is told several times a second
    other = service.make("a yellow circle", 5)
    page = visitor.open(f"#{made}")
    card = page.locator(".card").filter(has_text="yellow")
    expect(card).to_contain_text("In line")
    service.post(f"/v1/videos/{other}/cancel")
    expect(card).to_contain_text("Cancelled", timeout=15_000)
    assert service.get(f"/v1/videos/{made}")["status"] == "in_progress"


def line_up(service: Any, count: int) -> list[str]:
    """Has so many videos wait in line, a millisecond apart, and returns their ids from the newest to the oldest."""
    service.easel.hold_at = 0.0
    videos = VideoStore(service.redis)
    running = videos.get(service.make("a red circle", 5))
    assert running is not None
    ids = []
    for number in range(1, count + 1):
        created_at = (int(running.spec.created_at * 1000) + number + 0.5) / 1000
        ids.append(new_video_id(created_at))
        videos.create(running.spec.model_copy(update={"id": ids[-1], "created_at": created_at}))
    return ids[::-1]


def cards(page: Page) -> list[str]:
    """Ids of the videos on the shelf, in order."""
    return list(page.evaluate("[...document.querySelectorAll('.card')].map((card) => card.dataset.id)"))


def show_older(page: Page, count: int) -> None:
    """Presses the button until there are so many cards."""
    while (shown := len(cards(page))) < count:
        page.get_by_role("button", name="Show older").click()
        expect(page.locator(".card").nth(shown)).to_be_attached()


def test_older_cards_stay_and_are_kept_current_while_videos_are_being_made(
    service: Any, visitor: Any
) -> None:
    ids = line_up(service, 130)
    page = visitor.open()
    show_older(page, 120)
    service.post(f"/v1/videos/{ids[3]}/cancel")
    service.post(f"/v1/videos/{ids[115]}/cancel")
    service.delete(ids[110])
    for place in (3, 115):
        card = page.locator(f".card[data-id={ids[place]}]")
        expect(card).to_contain_text("Cancelled")
    expect(page.locator(f".card[data-id={ids[110]}]")).to_have_count(0)
    assert cards(page)[:119] == [video for video in ids[:120] if video != ids[110]]


def test_all_between_the_newest_and_the_old_video_of_the_address_can_be_reached(
    service: Any, visitor: Any
) -> None:
    ids = line_up(service, 30)
    page = visitor.open(f"#{ids[-1]}")
    held = hold_the_list(page)
    page.reload()
    expect(page.locator(".card")).to_have_count(1)
    held[0].continue_()
    expect(page.locator(".card")).to_have_count(13)
    show_older(page, 30)
    assert cards(page)[:30] == ids


def test_all_that_was_made_while_nobody_looked_can_be_reached(service: Any, visitor: Any) -> None:
    old = line_up(service, 15)
    for video in old:
        service.post(f"/v1/videos/{video}/cancel")
    page = visitor.open()
    show_older(page, 15)
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    new = line_up(service, 30)
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator(".card").first).to_have_attribute("data-id", new[0])
    show_older(page, 30 + 1 + 15)
    assert [video for video in cards(page) if video in {*new, *old}] == new + old


def test_a_waiting_video_says_how_many_are_before_it_and_keeps_what_is_asked_of_it(
    service: Any, visitor: Any
) -> None:
    service.easel.hold_at = 0.0
    service.make("a red circle", 1)  # runs
    service.make("a red circle", 1)
    page = visitor.open()
    waiting = ask(page, "a white cross on black", seconds="4")
    expect(page.locator(HEADLINE)).to_have_text("Waiting in line, 1 video before yours")
    page.get_by_label("Change what happens next").fill("a yellow circle on navy")
    page.get_by_label("from second").fill("2")
    page.get_by_role("button", name="Steer").click()
    pending = page.get_by_role("list", name="Prompts of this video").get_by_text("from 0:02")
    expect(pending).to_be_visible()
    assert service.get(f"/v1/videos/{waiting}")["status"] == "queued"

    service.easel.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))
    expect(pending).to_have_count(0)
    prompts = service.get(f"/v1/videos/{waiting}")["prompts"]
    assert [prompt["text"] for prompt in prompts] == ["a white cross on black", "a yellow circle on navy"]


def test_a_failure_says_what_is_kept_and_what_to_do(service: Any, visitor: Any) -> None:
    page = visitor.open()
    video = ask(page, "explode", seconds="5")
    expect(page.locator(HEADLINE)).to_have_text("This video could not be made")
    kept = math.floor(10 * service.get(f"/v1/videos/{video}")["seconds_ready"]) / 10
    expect(page.locator("#detail")).to_have_text(
        "The model produced values that are not a picture (not finite numbers). "
        f"The first {kept:g} s are kept. Another seed or other words may help."
    )
    assert kept > 0
    wait_until_played(page, kept - 0.1)
    page.get_by_role("button", name="Use prompt again").click()
    expect(page.get_by_label("What should happen?")).to_have_value("explode")


def test_a_video_that_is_gone_is_told_and_left(service: Any, visitor: Any) -> None:
    visitor.expected.append("status of 404")
    page = visitor.open("#video_00000000000000000000000000000000")
    told = page.get_by_role("alert").filter(has_text="does not exist")
    expect(told).to_be_visible()
    expect(page.get_by_role("heading", name="Describe a scene.")).to_be_visible()

    service.easel.hold_at = 1.0
    video = ask(page, "a red circle on black", seconds="5")
    expect(told).to_be_hidden()
    expect(page.locator(HEADLINE)).to_have_text("0.8 s of 5 s ready")
    service.delete(video)  # elsewhere, while it is on the screen
    expect(told).to_be_visible()
    expect(page.get_by_role("heading", name="Describe a scene.")).to_be_visible()
    assert "#video_" not in page.url


def test_when_the_service_goes_away_the_page_says_so_and_recovers(service: Any, visitor: Any) -> None:
    visitor.expected += ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE", "ERR_CONNECTION_RESET", "ERR_EMPTY"]
    service.easel.hold_at = 2.5
    page = visitor.open()
    ask(page, "a red circle on gray", seconds="4")
    wait_until_played(page, 0.3)
    service.stop()
    away = page.get_by_role("alert").filter(has_text="cannot be reached")
    expect(away).to_be_visible()
    service.easel.hold_at = math.inf
    service.start()
    expect(away).to_be_hidden()
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))
    wait_until_played(page, 2.5)


def test_what_is_sent_again_after_an_error_is_made_once(service: Any, visitor: Any) -> None:
    visitor.expected += ["status of 503", "status of 429"]
    page = visitor.open()

    def make_and_tell_of_trouble(route: Route) -> None:
        route.fetch()
        route.fulfill(status=503)

    def refuse(route: Route) -> None:
        route.fulfill(status=429)

    def press_until_it_is_answered(button: Locator, complaint: str) -> None:
        for status, answer in ((503, make_and_tell_of_trouble), (429, refuse)):
            page.route(re.compile("/v1/videos(/[^/]+/remix)?$"), answer, times=1)
            button.click()
            expect(page.locator(complaint)).to_have_text(f"The service answered {status}.")
        button.click()
        page.wait_for_url(lambda url: "#video_" in url and url != before)

    before = page.url
    page.get_by_label("What should happen?").fill("a red circle on black")
    press_until_it_is_answered(page.get_by_role("button", name="Make the video"), "#composer-error")
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))
    assert len(service.get("/v1/videos")["data"]) == 1

    before = page.url
    page.get_by_role("button", name="Remix").click()
    press_until_it_is_answered(page.get_by_role("button", name="Make it", exact=True), "#sequel-error")
    assert len(service.get("/v1/videos")["data"]) == 2


def test_without_events_the_page_asks(service: Any, visitor: Any) -> None:
    visitor.expected.append("ERR_FAILED")
    service.easel.hold_at = 1.0
    page = visitor.open()
    page.route("**/events*", lambda route: route.abort())
    ask(page, "a green circle on black", seconds="3")
    expect(page.locator(HEADLINE)).to_have_text("0.8 s of 3 s ready")
    service.easel.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))


def test_a_tab_that_nobody_looks_at_holds_no_connection_and_follows_its_video(
    service: Any, visitor: Any
) -> None:
    service.easel.hold_at = 1.0
    page = visitor.open()

    def of_events(request: Request) -> bool:
        return "/events" in request.url

    with page.expect_request(of_events):
        ask(page, "a green circle on black", seconds="3")
    expect(page.locator(HEADLINE)).to_have_text("0.8 s of 3 s ready")
    with page.expect_event("requestfailed", of_events):  # the page has closed it
        page.evaluate(
            """() => {
                Object.defineProperty(document, "hidden", {value: true, configurable: true});
                document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )
    service.easel.hold_at = 2.0
    expect(page.locator(HEADLINE)).to_have_text("1.8 s of 3 s ready")  # it has asked
    with page.expect_request(of_events) as again:
        page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    assert "last_event_id=" in again.value.url
    service.easel.hold_at = math.inf
    expect(page.locator(HEADLINE)).to_have_text(re.compile("^Finished in"))


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
    assert 2 <= len(spoken) <= 9, spoken  # of 13 chunks and as many progress events
