"""Standard output and standard error as pipes whose reader may go, as in ``optex-rl train --help | head -1``."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from typing import Final, TextIO

CLOSED_PIPE: Final = 141  # exit status of a program that SIGPIPE ended, as a shell sees it


def until_pipes_close(command: Callable[[], int]) -> int:
    """Run a command and return its exit status; `CLOSED_PIPE`, and no word more, once nobody reads what it prints.

    Raises:
        BrokenPipeError: another pipe broke, such as that of a worker process.
    """
    try:
        try:
            status = command()
        except SystemExit:  # of --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        if not any([is_closed(stream) for stream in (sys.stdout, sys.stderr)]):
            raise
        return CLOSED_PIPE
    return status


def is_closed(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader is gone; what it still holds, and all that follows, is discarded then."""
    try:
        stream.flush()  # fails again, unless nothing was held back
        closed = hasattr(select, "poll") and has_no_reader(stream.fileno())
    except BrokenPipeError:
        closed = True
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return closed


def has_no_reader(descriptor: int) -> bool:
    """Whether the system says so of a descriptor that is written to."""
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are reported in any case
    return bool(poll.poll(0))
