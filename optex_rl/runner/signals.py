"""Ctrl-C and SIGTERM as requests: acknowledged at once, heeded between two steps of the environments."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

from ..common.errors import Interrupted

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
SAME_REQUEST: Final = 0.5
STANDARD_ERROR: Final = 2


class StopRequest:
    """Whether a stop was requested, and by which signal."""

    number: int | None = None
    came_at: float = 0.0  # on the monotonic clock

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def check(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.requested:
            raise Interrupted

    def comes_within(self, seconds: float) -> bool:
        """Whether a signal came, or comes in the next ``seconds``."""
        deadline = time.monotonic() + seconds
        while not self.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.requested


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request to stop; the next one acts at once, as it did before the block.

    What follows within `SAME_REQUEST` seconds is the same one: GNU timeout signals its child, and then its group.
    Does nothing outside the main thread, where Python allows no handlers.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        if stop.number is None:
            stop.number, stop.came_at = number, time.monotonic()
            acknowledge(signal.Signals(number).name)
        elif time.monotonic() - stop.came_at > SAME_REQUEST:
            restore()
            signal.raise_signal(number)

    before = {number: signal.signal(number, request) for number in SIGNALS}
    try:
        yield stop
    finally:
        restore()


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block, and from the processes that begin in it as long as they live.

    A child that is not held back prints a traceback if a Ctrl-C comes while it imports its modules. Windows has no such
    thing, and there nothing is held back.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def acknowledge(name: str) -> None:
    """Say on standard error that a signal was received: without Python's buffers, which its handler may not enter."""
    new_line = "\n" if os.isatty(STANDARD_ERROR) else ""  # behind a progress bar
    with suppress(OSError):  # where nobody reads it
        os.write(STANDARD_ERROR, f"{new_line}optex-rl: {name}: stopping; another one ends it at once\n".encode())
