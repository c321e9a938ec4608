"""Temporary folders of workers that live, end and die."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from worker.scratch import scratch_folder, sweep_scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_there_while_it_is_used_and_gone_afterwards(temporary: Path) -> None:
    with scratch_folder() as folder:
        (folder / "video.mp4").write_bytes(b"frames")
        assert folder.parent == temporary
        assert sweep_scratch() == 0, "it is in use"
        assert (folder / "video.mp4").exists()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_worker_leaves_is_removed_by_the_next_and_nothing_else_is(temporary: Path) -> None:
    program = (
        "import os, signal\nfrom worker.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'video.mp4').write_bytes(b'frames')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    [left] = temporary.iterdir()
    (temporary / "somebody else's").mkdir()
    with scratch_folder() as mine:
        assert sweep_scratch() == 1
        assert mine.exists()
    assert not left.exists()
    assert [path.name for path in temporary.iterdir()] == ["somebody else's"]
