"""Standard output and error that nobody takes: a pipe whose reader went, as in ``| head -1``, a full disk, none."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from typing import Final, TextIO

CLOSED_PIPE: Final = 141  # exit status of a program that SIGPIPE ended, as a shell sees it


def until_pipes_close(command: Callable[[], int]) -> int:
    """Run a command and return its exit status; `CLOSED_PIPE`, and no word more, once nobody reads what it prints.

    What cannot be written otherwise, as on a full disk, is an error, with status 1.

    Raises:
        BrokenPipeError: another pipe broke, such as that of a worker process.
    """
    try:
        try:
            status = command()
        except SystemExit:  # of --help
            flush()
            raise
        flush()
    except BrokenPipeError:
        if not any([is_closed(stream) for stream in (sys.stdout, sys.stderr)]):
            raise
        return CLOSED_PIPE
    except OSError as error:
        if not is_full(sys.stdout):
            raise
        print(f"optex-rl: error: standard output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return status


def flush() -> None:
    """Write what is held back, if there is a standard output."""
    if sys.stdout is not None:
        sys.stdout.flush()


def is_closed(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe whose reader is gone; what it still holds, and all that follows, is discarded then."""
    if stream is None:
        return False
    try:
        stream.flush()  # fails again, unless nothing was held back
        closed = hasattr(select, "poll") and has_no_reader(stream.fileno())
    except BrokenPipeError:
        closed = True
    if closed:
        discard(stream)
    return closed


def is_full(stream: TextIO | None) -> bool:
    """Whether a stream takes nothing more, as a file on a full disk; what it still holds is discarded then."""
    if stream is None:
        return False
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        discard(stream)
        return True
    return False


def discard(stream: TextIO) -> None:
    """Forget what a stream holds, and all that follows."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def has_no_reader(descriptor: int) -> bool:
    """Whether the system says so of a descriptor that is written to."""
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are reported in any case
    return bool(poll.poll(0))
