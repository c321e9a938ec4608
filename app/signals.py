"""Signals as something a main thread waits for."""

from __future__ import annotations

import select
import signal
import socket
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Self


class Signals:
    """Counts signals while it is entered, which only the main thread may do.

    The handler takes no lock: it runs in the middle of whatever the main thread does, and one that set a
    `threading.Event` could wait for the very thread it interrupted. `wait` sleeps on a pipe that the interpreter writes
    to at once, whichever thread of the process the kernel has given the signal to.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self.count = 0
        """Signals so far."""
        self.numbers = numbers
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._awake, waker = (stack.enter_context(end) for end in socket.socketpair())
            self._awake.setblocking(False)
            waker.setblocking(False)
            stack.callback(
                signal.set_wakeup_fd, signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
            )
            for number in self.numbers:
                stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait(self, seconds: float) -> bool:
        """Whether there has been a signal, waiting for the next at most this long."""
        if select.select([self._awake], [], [], seconds)[0]:
            with suppress(BlockingIOError):
                self._awake.recv(4096)
        return self.count > 0

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
