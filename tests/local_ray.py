"""A stand-in for Ray in one process, whose actors fail on request: what tests of the cluster's logic run on.

Like Ray it hands over copies, and answers come from `wait` and `get`; unlike Ray it computes when it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cloudpickle

from optex_rl.cluster.worker import Worker


class RayError(Exception):
    """As ray.exceptions.RayError."""


class Hangs(Exception):  # noqa: N818
    """Makes a call never answer."""


class LocalRay:
    """The part of Ray's interface that the package uses.

    Attributes:
        before: called before each evaluation with the first part of the worker's share; what it raises, happens.
        calls: evaluations so far.
    """

    class exceptions:  # noqa: N801
        RayError = RayError

    def __init__(self) -> None:
        self.before: Callable[[int], None] = lambda first: None
        self.calls = 0
        self.killed = 0

    def remote(self, cls: type[Worker]) -> LocalRay:
        assert cls is Worker
        self.make = lambda spec: _Actor(self, Worker(_copy(spec)))
        return self

    def options(self, **options: Any) -> Any:
        make = self.make
        return type("Maker", (), {"remote": staticmethod(make)})

    def wait(self, refs: list[_Ref], num_returns: int, timeout: float) -> tuple[list[_Ref], list[_Ref]]:
        ready = [ref for ref in refs if not ref.hangs]
        return ready[:1], [ref for ref in refs if ref not in ready[:1]]

    def get(self, ref: _Ref) -> Any:
        if ref.error is not None:
            raise ref.error
        return ref.value

    def kill(self, actor: Any, no_restart: bool) -> None:
        self.killed += 1


class _Ref:
    """An answer to come."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: Exception | None = None
        self.hangs = False
        try:
            self.value = _copy(compute())
        except RayError as error:
            self.error = error
        except Hangs:
            self.hangs = True


class _Actor:
    def __init__(self, ray: LocalRay, worker: Worker) -> None:
        def evaluate(order: Any) -> Any:
            ray.calls += 1
            ray.before(worker.spec.share.first)
            return worker.evaluate(_copy(order))

        self.info = type("Method", (), {"remote": staticmethod(lambda: _Ref(worker.info))})
        self.evaluate = type("Method", (), {"remote": staticmethod(lambda order: _Ref(lambda: evaluate(order)))})


class LocalSession:
    """A `Session` on `LocalRay`."""

    def __init__(self, address: str | None = None, workers: int = 1) -> None:
        self.ray = LocalRay()
        self.alive = self.owned = True
        self.restarts = 0

    def cpus_each(self, workers: int) -> float:
        return 1.0

    def is_alive(self) -> bool:
        return self.alive

    def is_gone(self) -> bool:
        return not self.alive

    def restart(self) -> None:
        self.alive = True
        self.restarts += 1

    def close(self) -> None:
        pass


def _copy(value: Any) -> Any:
    return cloudpickle.loads(cloudpickle.dumps(value))
