"""Workers of a real Ray cluster: processes and nodes are killed, hang and fail, and the run goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from optex_rl import ConfigError, TrainConfig, WorkerError, WorkerWarning, resume, train
from optex_rl.cluster import evaluator as cluster_evaluator
from optex_rl.cluster.session import OWN
from optex_rl.cluster.worker import versions
from optex_rl.training import Trainer

from .helpers import registered
from .local_ray import LocalSession
from .test_resume import assert_same_runs

ray = pytest.importorskip("ray")

ROOT = Path(__file__).parents[1]
OPTIONS: dict[str, Any] = {
    **{"n_envs": 2, "n_steps": 8, "net_arch": (4,), "parallelism": 2, "workers": 2},
    **{"eval_freq": 2, "eval_episodes": 2, "progress_bar": False, "checkpoint_freq": 1, "lr_schedule": "constant"},
}


def config(logdir: Path, name: str, **options: Any) -> TrainConfig:
    return TrainConfig(**OPTIONS | {"logdir": str(logdir), "run_name": name} | options)


@pytest.fixture(scope="module")
def local_cluster() -> Iterator[None]:
    """One for several tests, which takes seconds to start."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(**OWN, num_cpus=2, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def undisturbed(monkeypatch: pytest.MonkeyPatch, options: TrainConfig) -> Path:
    """The folder of a run of the same shares in this process."""
    with monkeypatch.context() as patch:
        patch.setattr(cluster_evaluator, "Session", LocalSession)
        run_dir = train(options).run_dir
    assert run_dir is not None
    return run_dir


def processes() -> dict[int, tuple[int, str]]:
    """All that run, by number: the number of the parent, and the command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                found[int(folder.name)] = int(fields[1]), b" ".join(words).decode(errors="replace")
    return found


def descendants(pid: int) -> dict[int, str]:
    """Processes that came from one, and their command lines."""
    known = processes()
    family, grown = {pid}, True
    while grown:
        more = {child for child, (parent, _) in known.items() if parent in family} - family
        family, grown = family | more, bool(more)
    return {number: known[number][1] for number in family - {pid} if number in known}


def workers_of(pid: int) -> list[int]:
    return [number for number, words in descendants(pid).items() if words.startswith("ray::Worker")]


def kill_one(generator: random.Random) -> None:
    """SIGKILL to a worker of this process; if all are being replaced, to the first that is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        alive = workers_of(os.getpid())
        if alive:
            os.kill(generator.choice(sorted(alive)), signal.SIGKILL)
            return
        time.sleep(0.05)


class Disturbance:
    """Lets something happen at random moments from the beginnings of some iterations on, one after the other.

    It happens in a thread; ``prepare`` is called before, in the thread that trains.
    """

    def __init__(
        self, action: Callable[[], None], iterations: set[int], most_seconds: float, prepare: Callable[[], None]
    ) -> None:
        self.action, self.iterations, self.most_seconds, self.prepare = action, iterations, most_seconds, prepare
        self.generator, self.happened = random.Random(0), 0
        self.timer: threading.Timer | None = None

    def act(self) -> None:
        self.action()
        self.happened += 1

    def begin(self, iteration: int) -> None:
        if iteration in self.iterations:
            self.end()
            self.prepare()
            self.timer = threading.Timer(self.generator.uniform(0.0, self.most_seconds), self.act)
            self.timer.start()

    def end(self) -> None:
        """Wait for the last one."""
        if self.timer is not None:
            self.timer.join()


@pytest.fixture
def disturb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Disturbance]]:
    made = []

    def arrange(
        action: Callable[[], None],
        iterations: set[int],
        most_seconds: float = 0.02,
        prepare: Callable[[], None] = lambda: None,
    ) -> Disturbance:
        iterate, disturbance = Trainer.iterate, Disturbance(action, iterations, most_seconds, prepare)
        made.append(disturbance)

        def disturbed(self: Trainer, *with_ceiling: bool) -> dict[str, float]:
            disturbance.begin(self.iteration + 1)
            return iterate(self, *with_ceiling)

        monkeypatch.setattr(Trainer, "iterate", disturbed)
        return disturbance

    yield arrange
    for disturbance in made:
        disturbance.end()


@pytest.mark.usefixtures("local_cluster")
def test_a_killed_worker_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturb: Any) -> None:
    """The run on Ray, a worker of which is killed, is the one of the same shares in one process, bit for bit."""
    whole = undisturbed(monkeypatch, config(tmp_path, "whole", iterations=40))
    disturbance = disturb(lambda: kill_one(random.Random(1)), {5}, 0.0)
    with pytest.warns(WorkerWarning, match="a worker was lost, because ActorDiedError"):
        result = train(config(tmp_path, "run", iterations=40))
    assert disturbance.happened == 1
    assert result.rows[-1]["cluster/deaths"] == 1
    assert_same_runs(whole, tmp_path / "run")
    assert ray.is_initialized()  # it was there before


@pytest.mark.cluster
@pytest.mark.usefixtures("local_cluster")
def test_thirty_killed_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturb: Any) -> None:
    whole = undisturbed(monkeypatch, config(tmp_path, "whole", iterations=90))
    generator = random.Random(2)
    disturbance = disturb(lambda: kill_one(generator), set(range(2, 62, 2)))
    with pytest.warns(WorkerWarning):
        result = train(config(tmp_path, "run", iterations=90))
    assert disturbance.happened == 30
    assert result.rows[-1]["cluster/deaths"] >= 25  # a worker may be hit twice before that is noticed
    assert_same_runs(whole, tmp_path / "run")


@pytest.mark.cluster
def test_ten_lost_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturb: Any) -> None:
    """Raylets with their workers are killed, each time one that has a worker; before it another one joins."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    whole = undisturbed(monkeypatch, config(tmp_path, "whole", iterations=40))
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2)]

    def lose_one() -> None:
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
        hosts = [node for pid, node in raylets.items() if workers_of(pid)] or nodes
        nodes.remove(hosts[0])
        cluster.remove_node(hosts[0], allow_graceful=False)

    def add_one() -> None:
        nodes.append(cluster.add_node(num_cpus=2))

    disturbance = disturb(lose_one, set(range(2, 32, 3)), prepare=add_one)
    try:
        with pytest.warns(WorkerWarning):
            result = train(config(tmp_path, "run", iterations=40, ray_address=cluster.address))
    finally:
        disturbance.end()
        ray.shutdown()
        cluster.shutdown()
    assert disturbance.happened == 10
    assert result.rows[-1]["cluster/deaths"] >= 5
    assert_same_runs(whole, tmp_path / "run")


@pytest.mark.cluster
def test_a_lost_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturb: Any) -> None:
    """The run starts a cluster anew and goes on. Where the learner's own raylet dies, Ray ends the learner, too."""
    ray.shutdown()
    whole = undisturbed(monkeypatch, config(tmp_path, "whole", iterations=40))

    def lose() -> None:
        for number, words in descendants(os.getpid()).items():
            if "/gcs_server " in words or words.startswith("ray::Worker"):
                os.kill(number, signal.SIGKILL)

    disturb(lose, {4}, 0.0)
    with pytest.warns(WorkerWarning, match="the run goes on exactly"):
        train(config(tmp_path, "run", iterations=40))
    assert not ray.is_initialized()
    assert_same_runs(whole, tmp_path / "run")


class Unreliable(gymnasium.Env[Any, Any]):
    """A task of short episodes that fails or hangs once, at a step that comes in the second iteration."""

    def __init__(self, once: str, hangs: bool) -> None:
        self.observation_space, self.action_space = Box(-1, 1, (3,), np.float32), Discrete(2)
        self.once, self.hangs, self.count = Path(once), hangs, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        if self.count == 12 and not self.once.exists():
            self.once.touch()
            if self.hangs:
                time.sleep(10**6)
            raise ValueError("the arm has\nfallen off")
        return self._obs(), 1.0, self.count % 5 == 0, False, {}

    def _obs(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


@pytest.mark.cluster
@pytest.mark.usefixtures("local_cluster")
@pytest.mark.parametrize(
    ("hangs", "reason"), [(False, "ValueError: the arm has"), (True, "it has not answered for 5 se")]
)
def test_an_environment_that_fails_or_hangs(tmp_path: Path, hangs: bool, reason: str) -> None:
    """Its point is dropped once, and the run ends and says so."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    once = {"once": str(tmp_path / "once"), "hangs": hangs}
    with registered("Unreliable-v0", Unreliable, kwargs=once), pytest.warns(WorkerWarning) as caught:
        result = train(config(tmp_path, "run", iterations=4, env="Unreliable-v0", worker_timeout=5, eval_freq=0))
    texts = [str(w.message) for w in caught]
    assert texts[0].startswith(f"a worker was lost, because {reason}")
    assert texts[1] == "1 workers were lost in all, and 1 evaluations of points with them"
    assert [row["train/dropped_points"] for row in result.rows] == [0, 1, 0, 0]
    assert not result.interrupted


ITERATIONS = 300
COMMAND = [sys.executable, "-m", "optex_rl", "train", "--n-envs", "2", "--n-steps", "8", "--net-arch", "4"]
COMMAND += ["--parallelism", "2", "--workers", "2", "--eval-freq", "2", "--eval-episodes", "2", "--no-progress-bar"]
COMMAND += ["--checkpoint-freq", "1", "--lr-schedule", "constant", "--iterations", str(ITERATIONS), "--run-name", "run"]


def started(tmp_path: Path) -> tuple[subprocess.Popen[str], dict[int, str]]:
    """A run in a process group of its own, some iterations later, and all that came from it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""}
    run = subprocess.Popen(
        [*COMMAND, "--logdir", str(tmp_path)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    progress, deadline = tmp_path / "run" / "progress.csv", time.monotonic() + 400
    while not progress.exists() or progress.read_bytes().count(b"\n") < 5:
        if run.poll() is not None or time.monotonic() > deadline:
            os.killpg(run.pid, signal.SIGKILL)
            raise AssertionError(run.communicate())
        time.sleep(0.05)
    family = descendants(run.pid)
    assert sum(words.startswith("ray::Worker") for words in family.values()) == 2
    return run, family


def gone(family: dict[int, str], seconds: float) -> bool:
    """Whether all of them end within so many seconds."""
    deadline = time.monotonic() + seconds
    while left := {n: w for n, (_, w) in processes().items() if family.get(n, "")[:5] == w[:5] != ""}:
        if time.monotonic() > deadline:
            print(left)
            return False
        time.sleep(0.2)
    return True


@pytest.mark.cluster
def test_sigkill_of_the_learner_leaves_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the run is resumed exactly, here in this process with the same shares."""
    run, family = started(tmp_path)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert gone({number: words for number, words in family.items() if words.startswith("ray::Worker")}, 60)
    assert gone(family, 240)  # Ray's own agents look for their parent now and then
    same_options = OPTIONS | {"logdir": str(tmp_path), "run_name": "whole", "iterations": ITERATIONS}
    whole = undisturbed(monkeypatch, TrainConfig.recommended(**same_options))  # as the command has them
    monkeypatch.setattr(cluster_evaluator, "Session", LocalSession)
    assert len(resume(tmp_path / "run").rows) > 0
    assert_same_runs(whole, tmp_path / "run")


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches the whole process group."""
    run, family = started(tmp_path)
    if number == signal.SIGINT:
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert "Traceback" not in err
    assert "worker was lost" not in err
    assert gone(family, 20)


def test_an_address_without_a_cluster_is_refused(tmp_path: Path) -> None:
    ray.shutdown()
    with pytest.raises(
        ConfigError, match="there is no Ray cluster at ray_address '127\\.0\\.0\\.1:1' that can be used"
    ):
        train(config(tmp_path, "run", ray_address="127.0.0.1:1"))
    assert not (tmp_path / "run").exists()


@pytest.mark.cluster
@pytest.mark.usefixtures("local_cluster")
def test_a_worker_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = versions()
    monkeypatch.setattr("optex_rl.cluster.crew.versions", lambda: here | {"optex-rl": "9.9"})
    with pytest.raises(ConfigError, match=r"worker 0 has optex-rl 0.*, and this process has 9\.9: install the same"):
        train(config(tmp_path, "run", workers=1))
    assert not (tmp_path / "run").exists()


@pytest.mark.cluster
@pytest.mark.usefixtures("local_cluster")
def test_an_environment_that_always_fails_stops_the_run(tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    once = {"once": str(tmp_path / "missing" / "once"), "hangs": False}  # which cannot be made
    options = {"env": "Unreliable-v0", "n_steps": 16, "max_bad_iterations": 2}  # each evaluation comes to step 12
    with (
        registered("Unreliable-v0", Unreliable, kwargs=once),
        pytest.warns(WorkerWarning),
        pytest.raises(
            WorkerError, match=r"worker 0 of 1 was lost 3 times in a row, the last time because FileNotFound"
        ),
    ):
        train(config(tmp_path, "run", iterations=9, workers=1, eval_freq=0, **options))
    assert (tmp_path / "run" / "checkpoint.pt").exists()
