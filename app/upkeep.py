"""What an API process does all the time beside answering: a thread that goes round a few chores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from redis.exceptions import RedisError

from app.keys import KeysError
from app.storage import StorageError

log = logging.getLogger(__name__)


class Upkeep:
    """Does every chore at once and then again and again; what cannot be done while something is away waits a round.

    Each has to be safe to repeat, and for any number of processes to do at the same time.
    """

    def __init__(self, chores: Mapping[str, Callable[[], object]], every_seconds: float) -> None:
        """`chores` by what the log calls them."""
        self._chores, self._every_seconds = chores, every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 0.5) -> None:
        """Ends it. A chore it is in the middle of may be cut off by the end of the process, and is repeated."""
        self._stop.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            for name, chore in self._chores.items():
                try:
                    chore()
                except RedisError as error:
                    log.warning("%s: put off, %s", name, type(error).__name__)
                except (StorageError, KeysError) as error:
                    log.warning("%s: put off, %s: %s", name, type(error).__name__, error)
                except Exception:  # without this thread nothing would ever expire
                    log.exception("%s: unexpected error; put off", name)
            self._stop.wait(self._every_seconds)
