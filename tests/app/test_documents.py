"""What the documents list is what there is: settings, error codes, and links between them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from redis import Redis

from app.settings import Settings
from docs.settings_page import PAGE, page
from tests.app.conftest import running_api
from worker.generate import GPU_ERROR, OUT_OF_MEMORY

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_page_of_settings_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python docs/settings_page.py"


def test_every_setting_is_listed_and_described() -> None:
    listed = re.findall(r"^\| `LONGTAKE_(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert listed == [name.upper() for name in Settings.model_fields]
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_setting_is_in_a_section_and_no_section_is_empty() -> None:
    _, *sections = PAGE.read_text().split("\n## ")
    counts = [section.count("\n| `LONGTAKE_") for section in sections]
    assert min(counts) > 0
    assert sum(counts) == len(Settings.model_fields)


def codes() -> Iterator[str]:
    """Every error code that the source of the API has as a constant."""
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", "")
                arguments = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                if name == "UploadError":
                    arguments += node.args[:1]
                if name == "InvalidReceiver":
                    arguments += node.args[1:]
                if name != "JobError":
                    yield from (str(one.value) for one in arguments if isinstance(one, ast.Constant))


def test_every_error_code_is_in_the_table() -> None:
    table = set(re.findall(r"`(\w+)`", (DOCS / "api.md").read_text().split("\n## Errors\n")[1]))
    found = set(codes())
    assert len(found) > 40
    assert found - table == set()


def codes_of_failed_videos() -> Iterator[str]:
    """Every error code that the source of the worker has as a constant."""
    for path in (ROOT / "worker").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found: list[ast.expr] = []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "JobError":
                found = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "StartLost":
                found = node.args[:1]
            elif isinstance(node, ast.FunctionDef) and node.name == "fault":
                answers = [one.value for one in ast.walk(node) if isinstance(one, ast.Return)]
                found = [answer.elts[0] for answer in answers if isinstance(answer, ast.Tuple)]
            yield from (str(one.value) for one in found if isinstance(one, ast.Constant))
    yield from (GPU_ERROR, OUT_OF_MEMORY)


def test_every_code_of_a_failed_video_is_in_its_table_and_no_other() -> None:
    table = (DOCS / "api.md").read_text().split("\n| `code` of a failed video |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(set(codes_of_failed_videos()))


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *DOCS.glob("*.md")]:
        text = document.read_text()
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in target:
                continue
            assert (document.parent / path).exists(), f"{document.name}: {target}"
            if anchor and (not path or path.endswith(".md")):
                linked = (document.parent / path).read_text() if path else text
                titles = re.findall(r"^#+ (.+)$", linked, re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in anchors, f"{document.name}: {target}"


def test_the_redis_user_of_the_documents_may_do_all_that_is_done(
    redis_user: Callable[[str], str], redis_url: str, settings: Callable[..., Settings]
) -> None:
    rules = re.search(
        r"^ACL SETUSER longtake on >secret (.+)$", (DOCS / "recovery.md").read_text(), re.MULTILINE
    )
    assert rules is not None
    with running_api(settings(redis_url=redis_user(rules[1]))) as api:
        api.worker.register()
        video_id = api.create(webhook_url="https://example.com/hook")["id"]
        api.worker.videos.take("builtin", "double", 60)
        api.worker.claim(video_id)
        api.worker.commit(video_id, 0)
        assert api.worker.videos.reconcile(60) == []
        api.worker.finish(video_id)
        assert "event: completed" in api.http.get(f"/v1/videos/{video_id}/events").text
        for path in ("/readyz", "/metrics", "/v1/videos"):
            assert api.http.get(path).is_success
        assert api.http.delete(f"/v1/videos/{video_id}").is_success
    with Redis.from_url(redis_url) as admin:
        assert admin.acl_log() == []
