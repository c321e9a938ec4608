"""The documents tell the truth: every example of docs/api.md is run, in order, against a running service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from app.client import LongtakeClient
from tests.conformance.conftest import ROOT, Service, environment

DOCUMENT = ROOT / "docs" / "api.md"
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Each shell example is a script of its own; what it sets is there in the next.
SCRIPT = "set -aeu -o pipefail\n{example}\nenv -0 > {state}\n"


def examples() -> list[tuple[int, str, str]]:
    """Line, language and text of every example."""
    text = DOCUMENT.read_text()
    found = [(text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in FENCED.finditer(text)]
    assert {language for _, language, _ in found} == {"sh", "python", "text"}
    return [one for one in found if one[1] != "text"]


def test_every_example_of_the_api_document_runs(
    open_service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save("photo.png")
    variables = environment()
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    namespace: dict[str, Any] = {}
    ran = {"sh": 0, "python": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the OpenAI SDK
        for line, language, text in examples():
            example = text.replace("http://127.0.0.1:8000", open_service.url)
            assert "8000" not in example
            if language == "python":
                exec(compile("\n" * line + example, str(DOCUMENT), "exec"), namespace)
            else:
                variables = run_shell(example, variables, tmp_path / "state", f"{DOCUMENT.name}, line {line}")
            ran[language] += 1
    assert min(ran.values()) > 10

    for name in ("video.mp4", "ball.mp4", "cross.mp4", "sdk.mp4", "first.mp4"):
        with av.open(name) as container:
            assert sum(1 for _ in container.decode(video=0)) > 0, name
    for name in ("thumbnail.jpg", "spritesheet.jpg", "cross.jpg"):
        assert Path(name).read_bytes()[:2] == b"\xff\xd8", name
    assert Path("head.bin").stat().st_size == 100
    with LongtakeClient(open_service.url) as client:
        for video in list(client.list()):
            client.delete(video.id)


def run_shell(example: str, variables: dict[str, str], state: Path, where: str) -> dict[str, str]:
    """Runs an example and returns the variables as it leaves them."""
    done = subprocess.run(
        ["bash", "-c", SCRIPT.format(example=example, state=state)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{where}\n{example}\n{done.stdout}\n{done.stderr}"
    return dict(pair.split("=", 1) for pair in state.read_text().split("\0") if pair)
