"""A service for one call of `longtake generate`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from app.cli.grammar import CommandError
from app.client import LongtakeError
from app.embedded import end, spawn
from app.supervisor import longtake_command

_END_SECONDS = 90.0

# It shares nothing with others.
_SHARED = frozenset({"LONGTAKE_REDIS_URL", "LONGTAKE_STORAGE_URL", "LONGTAKE_API_KEYS_FILE"})


class OwnService:
    """A service for one call: `longtake up` as a child, on a folder that is removed unless it holds something."""

    def __init__(self, data: Path | None, model: str | None) -> None:
        """With `data` None the folder is a temporary one."""
        self._temporary = data is None
        self._data = data
        self._model = model
        self._keep = False
        self.url = ""

    def __enter__(self) -> OwnService:
        self.folder = self._data or Path(tempfile.mkdtemp(prefix="longtake-"))
        self._said = tempfile.TemporaryFile()
        arguments = ["up", "--host", "127.0.0.1", "--port", "0", "--data", str(self.folder)]
        if self._model is not None:
            arguments += ["--model", self._model]
        self._process = spawn(
            longtake_command(*arguments),
            env={name: value for name, value in os.environ.items() if name not in _SHARED},
            output=subprocess.PIPE,
            errors=self._said,
            on_parent_death=signal.SIGTERM,
        )
        try:
            assert self._process.stdout is not None
            self.url = self._process.stdout.readline().decode().removeprefix("ready ").strip()
            if not self.url:
                self._process.wait(_END_SECONDS)
                raise CommandError(self._last_words() or "the service does not start")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._close()

    def explain(self, error: Exception) -> None:
        """Called when the video was not delivered: what was made is kept, and a dead service tells why it died."""
        self._keep = True
        if self._process.poll() is not None and isinstance(error, LongtakeError):
            raise CommandError(self._last_words() or "the service ended unexpectedly") from error

    def _close(self) -> None:
        end(self._process, _END_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said.close()
        if not self._temporary:
            return
        if self._keep:
            print(f"longtake: what was made is in {self.folder}", file=sys.stderr)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("longtake: ") if lines else ""
