"""The workers of a run: one actor for each share, replaced where it is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from ..common.errors import ConfigError, WorkerError
from .session import Session, one_line
from .worker import Info, Order, Reply, Spec, Worker, versions

START_SECONDS: Final = 120.0  # that a worker may take to start


class _Task(NamedTuple):
    """A call under way: which worker, until when, and whether it is to start (else to evaluate)."""

    worker: int
    deadline: float
    starts: bool


class _Lost(NamedTuple):
    """In place of an answer."""

    reason: str


class Crew:
    """W actors in processes of their own.

    Args:
        session: the connection to Ray.
        specs: what each worker is made from.
        timeout: seconds after which one that has not answered is lost.
        limit: how often in a row the same worker may be lost.

    Attributes:
        infos: what the workers said of themselves at the start.
        deaths: how often workers, or the head, were lost in the whole run.
        last_reason: why the last one was.

    Raises:
        ConfigError: a worker does not start, or has other versions than this process.
    """

    def __init__(self, session: Session, specs: Sequence[Spec], timeout: float, limit: int) -> None:
        self.session, self.specs, self.timeout, self.limit = session, specs, timeout, limit
        self.deaths, self.last_reason = 0, ""
        self._in_a_row = [0] * len(specs)
        cpus = session.cpus_each(len(specs))
        self._actors: list[Any] = [self._make(number, cpus) for number in range(len(specs))]
        self._starting: set[int] = set()  # whose start has not been confirmed
        self._stale: set[int] = set()  # which must be sent their state
        self.infos = self._confirm_start()

    def _make(self, number: int, cpus: float) -> Any:
        """A new actor, that asks for so many processors; without any it never waits for one."""
        options = {"num_cpus": cpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        return self.session.ray.remote(Worker).options(**options).remote(self.specs[number])

    def _confirm_start(self) -> list[Info]:
        """Wait for all actors, and compare versions."""
        infos: dict[int, Info] = {}
        tasks: dict[Any, _Task] = {}
        for number in range(len(self.specs)):
            self._start(tasks, number)
        while tasks:
            for task, outcome in self._next(tasks):
                if isinstance(outcome, _Lost):
                    raise ConfigError(f"worker {task.worker} of {len(self.specs)} does not start: {outcome.reason}")
                check_versions(task.worker, outcome.versions)
                infos[task.worker] = outcome
        return [infos[number] for number in range(len(self.specs))]

    def forget(self) -> None:
        """Send all workers their state with the next order."""
        self._stale = set(range(len(self.specs)))

    def run(self, orders: Sequence[Order], states: Sequence[dict[str, Any]], again: bool) -> list[Reply | None]:
        """The replies of all workers to an evaluation.

        Args:
            orders: one for each worker, without state.
            states: of the shares' collectors before it.
            again: whether a share whose worker is lost is evaluated again by its successor, from its state; else the
                reply is None.

        Raises:
            WorkerError: a worker was lost too often in a row, or the cluster is gone.
        """
        replies: dict[int, Reply | None] = {}
        tasks: dict[Any, _Task] = {}
        if self.session.is_gone():
            self.deaths, self.last_reason = self.deaths + 1, "the head of the cluster does not answer"
            self._begin_anew()
        for number in range(len(orders)):
            self._send(tasks, number, orders, states)
        while tasks:
            for task, outcome in self._next(tasks):
                if isinstance(outcome, _Lost):
                    for number in self._replace(tasks, task, outcome.reason):
                        replies[number] = None
                        if again:
                            self._start(tasks, number)
                elif task.starts:
                    self._starting.discard(task.worker)
                    self._send(tasks, task.worker, orders, states)
                else:
                    replies[task.worker] = outcome
                    self._in_a_row[task.worker] = 0
                    self._stale.discard(task.worker)
        return [replies[number] for number in range(len(orders))]

    def _start(self, tasks: dict[Any, _Task], number: int) -> None:
        """Wait for a new actor."""
        tasks[self._actors[number].info.remote()] = _Task(number, time.monotonic() + START_SECONDS, starts=True)

    def _send(self, tasks: dict[Any, _Task], number: int, orders: Sequence[Order], states: Sequence[Any]) -> None:
        """Send a worker its order, with its state if it does not have it; a new one must have started first."""
        if number in self._starting:
            return self._start(tasks, number)
        order = orders[number]._replace(state=states[number]) if number in self._stale else orders[number]
        tasks[self._actors[number].evaluate.remote(order)] = _Task(number, time.monotonic() + self.timeout, False)
        return None

    def _next(self, tasks: dict[Any, _Task]) -> Iterator[tuple[_Task, Any]]:
        """Wait for the next answers; each, or `_Lost`, with the task it is of, which is then no longer among them."""
        wait = min(task.deadline for task in tasks.values()) - time.monotonic()
        done, _ = self.session.ray.wait(list(tasks), num_returns=1, timeout=max(0.0, wait))
        if done:
            yield tasks.pop(done[0]), self._answer(done[0])
            return
        now = time.monotonic()
        for ref in [ref for ref, task in tasks.items() if task.deadline <= now]:
            task = tasks.pop(ref, None)
            if task is not None:
                seconds = START_SECONDS if task.starts else self.timeout
                yield task, _Lost(f"it has not answered for {seconds:g} seconds")

    def _answer(self, ref: Any) -> Any:
        try:
            return self.session.ray.get(ref)
        except self.session.ray.exceptions.RayError as error:
            return _Lost(one_line(error))

    def _replace(self, tasks: dict[Any, _Task], lost: _Task, reason: str) -> set[int]:
        """Make a successor of a lost worker; returns the workers whose answers are missing for it.

        Where the head is gone, or an actor does not start, all of them are made anew on a new connection.
        """
        number = lost.worker
        self.deaths, self.last_reason = self.deaths + 1, reason
        self._in_a_row[number] += 1
        if self._in_a_row[number] > self.limit:
            times = f"{self._in_a_row[number]} times in a row, the last time because"
            raise WorkerError(f"worker {number} of {len(self.specs)} was lost {times} {reason}")
        if lost.starts or not self.session.is_alive():
            missing = {number} | {task.worker for task in tasks.values()}
            tasks.clear()
            self._begin_anew()
            return missing
        self._kill(number)
        self._starting.add(number)
        self._actors[number] = self._make(number, self.session.cpus_each(len(self._starting)))
        self._stale.add(number)
        return {number}

    def _begin_anew(self) -> None:
        """New actors on a new connection."""
        self.session.restart()
        cpus = self.session.cpus_each(len(self.specs))
        self._actors = [self._make(number, cpus) for number in range(len(self.specs))]
        self._starting = set(range(len(self.specs)))
        self.forget()

    def _kill(self, number: int) -> None:
        self.session.ray.kill(self._actors[number], no_restart=True)

    def close(self) -> None:
        """End all workers, unless they end with the connection."""
        if not self.session.owned:
            for number in range(len(self._actors)):
                self._kill(number)


def check_versions(number: int, theirs: dict[str, str]) -> None:
    """Refuse a worker that has other versions than this process.

    Raises:
        ConfigError: naming the first that differs.
    """
    for name, version in versions().items():
        if theirs.get(name) != version:
            other = f"worker {number} has {name} {theirs.get(name)}, and this process has {version}"
            raise ConfigError(f"{other}: install the same on all machines of the cluster")
