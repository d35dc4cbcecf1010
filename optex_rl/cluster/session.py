"""The connection to Ray: a cluster of our own on this machine, or one that is there."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..common.errors import ConfigError, WorkerError

CHECK_SECONDS: Final = 5.0  # between two looks whether the cluster is there
RECONNECT_SECONDS: Final = 60.0  # for which a cluster that is gone is awaited
# A cluster of our own: whatever RAY_ADDRESS says, with shared memory for arrays of more than 100 kB, and with workers
# that are as important as the learner, which waits for them: Ray's own put every other program on the machine first.
OWN: Final[dict[str, Any]] = {
    "address": "local",
    "include_dashboard": False,
    "object_store_memory": 2**28,
    "_system_config": {"worker_niceness": 0},
}


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=CHECK_SECONDS):
            return True
    except OSError:
        return False


class Session:
    """A connection to Ray; where there was one already it is used, and left as it was.

    Args:
        address: "auto" or HOST:PORT of a running cluster; None to start one on this machine.
        workers: processes that a cluster of our own has room for.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster that can be used at the address.
    """

    def __init__(self, address: str | None, workers: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("workers need Ray, which is not installed: pip install 'optex-rl[cluster]'") from error
        self.ray: Any = ray
        self.address, self.workers = address, workers
        self.owned = not ray.is_initialized()
        if self.owned:
            self._connect()
        self._note()

    def _note(self) -> None:
        """Remember where the head is."""
        self.head: str = self.ray.get_runtime_context().gcs_address
        self._checked = time.monotonic()

    def _connect(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "address": self.address}
        if self.address is None:
            options |= OWN | {"num_cpus": self.workers}
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of one machine reports to nobody
        try:
            if self.address not in (None, "auto") and not answers(self.address):
                raise ConnectionError("nothing answers there")  # at once, where Ray asks again for minutes
            with _signals_kept():
                self.ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            self.ray.shutdown()
            where = "on this machine" if self.address is None else f"at ray_address {self.address!r}"
            raise ConfigError(f"there is no Ray cluster {where} that can be used: {one_line(error)}") from error

    def cpus_each(self, workers: int) -> float:
        """Processors that each of so many workers asks Ray for: 1, or none where fewer are free, which they share."""
        return 1.0 if self.ray.available_resources().get("CPU", 0) >= workers else 0.0

    def is_alive(self) -> bool:
        """Whether the head answers."""
        self._checked = time.monotonic()
        return answers(self.head)

    def is_gone(self) -> bool:
        """Whether the head no longer answers; looked up now and then, as Ray ends a process that has lost it."""
        return time.monotonic() - self._checked > CHECK_SECONDS and not self.is_alive()

    def restart(self) -> None:
        """Connect anew, after the cluster has gone.

        Raises:
            WorkerError: there is none for `RECONNECT_SECONDS`.
        """
        self.ray.shutdown()
        deadline = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                self._connect()
            except ConfigError as error:
                if time.monotonic() > deadline:
                    raise WorkerError(f"the Ray cluster is gone, and {error}") from error
                time.sleep(1.0)
            else:
                self.owned = True
                self._note()
                return

    def close(self) -> None:
        """End the connection, and a cluster of our own."""
        if self.owned:
            with _signals_kept():
                self.ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM, for which Ray sets one of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def one_line(error: BaseException) -> str:
    """What an error of Ray says, in one line: of one that came from a worker, what was raised there."""
    cause = getattr(error, "cause", None)
    origin = cause if isinstance(cause, BaseException) else error
    lines = [line.strip() for line in str(origin).splitlines() if line.strip()]
    kind = type(origin).__name__
    return f"{kind}: {lines[0].rstrip('.')}" if lines else kind
