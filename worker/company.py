"""Which videos run together in a worker process, and which one runs alone.

A process that dies or hangs takes all its videos along, and each is charged with an attempt. So a video whose last
attempt came to nothing runs alone until it has made a chunk: if it is what ends its workers, nobody else pays for it.
"""

from __future__ import annotations

import threading


class Company:
    """The running videos of a process, by their leases."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: set[str] = set()
        self._alone: str | None = None

    @property
    def closed(self) -> bool:
        """Whether a video runs alone, or waits for the others to leave: no other may join."""
        return self._alone is not None

    def join(self, lease: str, *, alone: bool) -> bool:
        """Takes a video in; False where it is closed. One that is to run `alone` closes it."""
        with self._lock:
            if self.closed:
                return False
            self._members.add(lease)
            if alone:
                self._alone = lease
            return True

    def is_alone(self, lease: str) -> bool:
        """Whether this video is the only one."""
        with self._lock:
            return self._members == {lease}

    def makes_way(self, lease: str) -> bool:
        """Whether this video should rest, because another is to run alone."""
        return self._alone not in (None, lease)

    def open(self, lease: str) -> None:
        """This video need not run alone any more."""
        with self._lock:
            if self._alone == lease:
                self._alone = None

    def leave(self, lease: str) -> None:
        """This video does not run any more."""
        self.open(lease)
        with self._lock:
            self._members.discard(lease)
