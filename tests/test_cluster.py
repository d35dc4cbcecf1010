"""Points spread over workers: the same run as in one process, whatever the shares and whoever is lost; without Ray."""

from __future__ import annotations

import csv
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optex_rl import ConfigError, TrainConfig, WorkerError, WorkerWarning, resume, train
from optex_rl.agents import Batch
from optex_rl.cluster import evaluator as cluster_evaluator
from optex_rl.cluster.combine import count_bytes
from optex_rl.cluster.crew import check_versions
from optex_rl.cluster.evaluator import spread
from optex_rl.cluster.session import one_line
from optex_rl.cluster.shares import Share, cut_state, divide, join_environments, join_states
from optex_rl.cluster.worker import versions
from optex_rl.envs import SlowVectorEnv, make_vec
from optex_rl.training import Trainer, fuse
from optex_rl.training.builders import build_collector

from .helpers import same
from .local_ray import Hangs, LocalSession, RayError
from .test_resume import assert_same_runs, rows_of

SIZES: dict[str, Any] = {"n_envs": 3, "n_steps": 16, "net_arch": (6,), "parallelism": 4, "iterations": 4}
QUIET: dict[str, Any] = {"eval_freq": 0, "progress_bar": False, "logdir": None}


def config(**options: Any) -> TrainConfig:
    return TrainConfig(**SIZES | QUIET | options)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> LocalSession:
    """All evaluators of the test are on this one."""
    shared = LocalSession()
    monkeypatch.setattr(cluster_evaluator, "Session", lambda address, workers: shared)
    return shared


def trainer(**options: Any) -> Trainer:
    made = config(**options)
    return Trainer(made, make_evaluator=fuse if made.workers is None else spread)


def test_shares_cover_all_parts_in_order() -> None:
    assert divide(7, 3, 2) == [Share(0, 3, 2), Share(3, 2, 2), Share(5, 2, 2)]
    assert divide(7, 3, 2)[1].envs == slice(6, 10)
    for parts in range(1, 20):
        for workers in range(1, parts + 1):
            shares = divide(parts, workers, 1)
            assert [p for s in shares for p in range(s.first, s.first + s.size)] == list(range(parts))
            assert max(s.size for s in shares) - min(s.size for s in shares) <= 1


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_states_are_split_and_joined(env: str) -> None:
    state = build_collector(config(env=env), 5, 3).state_dict()
    parts = [cut_state(state, share) for share in divide(5, 2, 3)]
    assert same(join_states(parts), state)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in (parts[0]["obs"], parts[1]["obs"]))
    build_collector(config(env=env), 2, 3, first_point=3).load_state_dict(parts[1])


def test_groups_of_environments_become_one_point() -> None:
    """Against a loop: environment e of group p is environment p·E + e, at the same step."""
    P, T, E, O, K = 3, 4, 2, 5, 3  # noqa: E741
    values = iter(range(10**6))

    def filled(*shape: int) -> torch.Tensor:
        return torch.tensor([float(next(values)) for _ in range(math.prod(shape))]).reshape(shape)

    index = torch.tensor([[0, 7, -1], [6, 7, 3], [-1, 5, 6]])
    steps = filled(P, T, E), filled(P, T, E), filled(P, T, E) > 3, filled(P, T, E) > 200
    batch = Batch(filled(P, T, E, O), *steps, filled(P, K, O), index)
    joined = join_environments(batch)
    assert joined.rewards.shape == (1, T, P * E)
    for p in range(P):
        for t in range(T):
            for e in range(E):
                assert torch.equal(joined.obs[0, t, p * E + e], batch.obs[p, t, e])
                assert joined.actions[0, t, p * E + e] == batch.actions[p, t, e]
                assert joined.truncated[0, t, p * E + e] == batch.truncated[p, t, e]
        for k in range(K):
            row = int(joined.final_index[0, p * K + k])
            if index[p, k] < 0:
                assert row == -1
            else:
                t, i = divmod(row, P * E)
                assert (t, i - p * E) == divmod(int(index[p, k]), E)
            assert torch.equal(joined.final_obs[0, p * K + k], batch.final_obs[p, k])


CASES: list[dict[str, Any]] = [
    {},
    {"env": "Pendulum-v1", "normalize_obs": True, "normalize_reward": True, "n_critic_updates": 2, "n_steps": 120},
    {"algo": "ppo", "n_epochs": 2, "batch_size": 32},
    {"algo": "reinforce", "selection": "last", "parallelism": 5},
    {"optimizer": "natural"},
]


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("options", CASES)
def test_workers_do_not_change_the_run(options: dict[str, Any]) -> None:
    """Trajectories are the same, gradients to rounding: each worker's products are of other shapes."""
    alone = trainer(**options)
    crews = [trainer(**options, workers=workers) for workers in (1, 2, 4)]
    for _ in range(2):
        for others in crews:
            assert torch.allclose(alone.optimizer.ask(), others.optimizer.ask(), atol=1e-5)
        rows = [each.iterate() for each in (alone, *crews)]
        for row in rows[1:]:
            assert {n for n in row if not n.startswith("cluster/")} == rows[0].keys()
            assert row["rollout/episodes"] == rows[0]["rollout/episodes"]
            assert all(row[n] == pytest.approx(rows[0][n], rel=1e-3, abs=1e-5, nan_ok=True) for n in rows[0])
            assert 0 <= row["cluster/slowest_point"] < alone.config.parallelism
    state = alone.evaluator.state_dict()
    for others in crews:
        for entry, expected in zip(others.evaluator.state_dict()["generators"], state["generators"], strict=True):
            assert entry == expected


@pytest.mark.usefixtures("session")
def test_one_evaluation_in_all_its_parts() -> None:
    options = {"env": "LunarLander-v3", "n_steps": 90, "normalize_obs": True, "n_critic_updates": 1}
    alone, others = trainer(**options), trainer(**options, workers=3)
    for _ in range(2):
        points = alone.optimizer.ask()
        one, other = alone.evaluator(points), others.evaluator(points)
        assert torch.allclose(one.gradients, other.gradients, rtol=1e-3, atol=1e-6)
        assert one.episodes == other.episodes != []
        assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(one.losses, other.losses, strict=True))
        assert torch.equal(one.batch.actions, other.batch.actions)
        assert torch.equal(one.batch.final_index.sort().values, other.batch.final_index.sort().values)
        assert (one.samples, one.broken.tolist()) == (other.samples, other.broken.tolist())
        alone.evaluator.end_iteration()
        others.evaluator.end_iteration()
        a, b = alone.evaluator.normalizer.obs_moments, others.evaluator.normalizer.obs_moments
        assert a.rows == b.rows
        assert np.allclose(a.mean, b.mean)
        assert np.allclose(a.var, b.var)


@pytest.mark.usefixtures("session")
def test_experience_travels_only_where_it_is_used() -> None:
    plain, critic = trainer(workers=2), trainer(workers=2, n_critic_updates=1)
    evaluation = plain.evaluator(plain.optimizer.ask())
    assert evaluation.batch.rewards.shape == (4, 0, 3)
    assert critic.evaluator(critic.optimizer.ask()).batch.rewards.shape == (4, 16, 3)


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("algo", ["a2c", "ppo"])
def test_data_parallel_is_the_same_on_any_number_of_workers(algo: str) -> None:
    """Its one point has as many groups of environments as optex has points, of the same random numbers."""
    crews = [trainer(method="data-parallel", algo=algo, n_epochs=2, workers=workers) for workers in (1, 3, 4)]
    points = trainer(parallelism=4)  # whose four points are the same at first
    together = crews[0].evaluator(crews[0].optimizer.ask()).batch
    assert together.rewards.shape == (1, 16, 12)
    apart = points.evaluator(points.optimizer.ask()).batch
    assert torch.equal(together.actions[0], apart.actions.transpose(0, 1).flatten(1))
    rows = [[each.iterate() for _ in range(2)] for each in crews[1:]]
    for row, other in zip(*rows, strict=True):
        names = [n for n in row if not n.startswith("cluster/")]
        assert all(row[n] == pytest.approx(other[n], rel=1e-3, abs=1e-5, nan_ok=True) for n in names)


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("method", ["vanilla", "target"])
def test_one_worker_for_one_point(method: str) -> None:
    alone, other = trainer(method=method), trainer(method=method, workers=1)
    for _ in range(2):
        row, same_row = alone.iterate(), other.iterate()
        assert all(row[n] == pytest.approx(same_row[n], nan_ok=True) for n in row)


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("first", [None, 1, 4])
def test_a_run_is_resumed_exactly_with_other_workers(tmp_path: Path, first: int | None) -> None:
    """The halves have other workers, or none; where the shares are the same, so is every bit."""
    where: dict[str, Any] = {"logdir": str(tmp_path), "lr_schedule": "constant"}
    whole = train(config(**where, workers=2, run_name="whole"))
    train(config(**where, workers=first, iterations=2, run_name="run"))
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["evaluator"].keys() == {
        *("generators", "obs", "envs")
    }
    with pytest.raises(ConfigError, match="cluster may hold workers, ray_address, worker_timeout, and not seed"):
        resume(tmp_path / "run", cluster={"seed": 2})
    second = resume(tmp_path / "run", iterations=4, cluster={"workers": 2})
    pairs = zip(whole.policy.parameters(), second.policy.parameters(), strict=True)
    assert all(torch.allclose(p, q, rtol=1e-4, atol=1e-6) for p, q in pairs)
    names = ("env_steps", "episodes", "ep_rew_mean", "ep_len_mean")
    assert [[row[n] for n in names] for row in rows_of(tmp_path / "run")] == [
        [row[n] for n in names] for row in rows_of(tmp_path / "whole")
    ]


@pytest.mark.usefixtures("session")
def test_the_same_workers_give_the_same_bits(tmp_path: Path) -> None:
    where: dict[str, Any] = {"logdir": str(tmp_path), "lr_schedule": "constant", "workers": 2, "eval_freq": 2}
    train(config(**where, run_name="whole"))
    train(config(**where, iterations=2, run_name="run"))
    resume(tmp_path / "run", iterations=4)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def lose(session: LocalSession, error: Exception, calls: set[int]) -> None:
    """Let some of the evaluations of workers end in an error, counted from 1."""

    def before(first: int) -> None:
        if session.ray.calls in calls:
            raise error

    session.ray.before = before


@pytest.mark.parametrize("error", [RayError("the actor died"), Hangs()])
@pytest.mark.parametrize("calls", [{1}, {4, 5, 6}, {2, 9, 10}])
def test_native_tasks_go_on_bit_for_bit(
    tmp_path: Path, session: LocalSession, error: Exception, calls: set[int]
) -> None:
    where: dict[str, Any] = {"logdir": str(tmp_path), "workers": 2, "worker_timeout": 0.01, "eval_freq": 2}
    train(config(**where, run_name="whole"))
    session.ray.calls = 0
    lose(session, error, calls)
    with pytest.warns(WorkerWarning, match="the run goes on exactly") as caught:
        train(config(**where, run_name="run"))
    assert len(caught) == 1
    assert session.ray.calls == 2 * 4 + len(calls)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_head_that_is_gone_is_found_again(tmp_path: Path, session: LocalSession) -> None:
    where: dict[str, Any] = {"logdir": str(tmp_path), "workers": 2, "eval_freq": 2}
    train(config(**where, run_name="whole"))
    session.ray.calls = 0

    def before(first: int) -> None:
        if session.ray.calls == 4:
            session.alive = False
            raise RayError("the node died")

    session.ray.before = before
    with pytest.warns(WorkerWarning, match="because RayError: the node died; its points were evaluated again"):
        train(config(**where, run_name="run"))
    assert session.restarts == 1
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_other_tasks_drop_the_points_and_start_new_episodes(session: LocalSession) -> None:
    lose(session, RayError("it died"), {3})
    task = {"env": "LunarLander-v3", "n_steps": 40, "normalize_obs": True, "workers": 2}
    with pytest.warns(WorkerWarning) as caught:
        result = train(config(**task))
    texts = [str(w.message) for w in caught]
    assert texts == [
        "a worker was lost, because RayError: it died; its points are dropped from this iteration and start new "
        "episodes (cluster/deaths counts how often)",
        "1 workers were lost in all, and 2 evaluations of points with them",
    ]
    assert [row["train/dropped_points"] for row in result.rows] == [0, 2, 0, 0]
    assert [row["cluster/deaths"] for row in result.rows] == [0, 1, 1, 1]
    steps = np.diff([row["time/env_steps"] for row in result.rows])
    assert steps.tolist() == [240, 480, 480]


def test_data_parallel_does_with_the_groups_that_are_left(session: LocalSession) -> None:
    lose(session, RayError("it died"), {3})
    task = {"env": "LunarLander-v3", "n_steps": 40, "method": "data-parallel", "workers": 2}
    with pytest.warns(WorkerWarning):
        result = train(config(**task))
    assert [row["train/dropped_points"] for row in result.rows] == [0, 0, 0, 0]
    assert np.diff([row["time/env_steps"] for row in result.rows]).tolist() == [240, 480, 480]
    session.ray.calls = 0
    lose(session, RayError("it died"), {3, 4})
    with pytest.warns(WorkerWarning):
        result = train(config(**task))  # nothing is left of the second evaluation, which is repeated
    assert np.diff([row["time/env_steps"] for row in result.rows]).tolist() == [480, 480, 480]


def test_too_many_deaths_stop_the_run_with_its_state_saved(tmp_path: Path, session: LocalSession) -> None:
    where: dict[str, Any] = {"logdir": str(tmp_path), "workers": 2, "lr_schedule": "constant"}
    train(config(**where, run_name="whole"))
    session.ray.calls = 0
    lose(session, RayError("no memory"), set(range(5, 100)))
    with pytest.raises(
        WorkerError, match="worker 0 of 2 was lost 4 times in a row, the last time because RayError: no"
    ):
        train(config(**where, max_bad_iterations=3, run_name="run"))
    assert len(rows_of(tmp_path / "run")) == 2
    session.ray.before = lambda first: None
    resume(tmp_path / "run")
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "run")


def test_numbers_that_are_not_finite_are_found_with_their_experience(
    tmp_path: Path, session: LocalSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    from .test_faults import corrupt_evaluations

    corrupt_evaluations(monkeypatch, {4: [1]})  # point 3, in the second iteration
    result = train(config(workers=2, logdir=str(tmp_path), run_name="run"))
    assert [row["train/dropped_points"] for row in result.rows] == [0, 1, 0, 0]
    evidence = torch.load(tmp_path / "run" / "faults_2.pt", weights_only=True)
    assert evidence["points"].tolist() == [3]
    assert evidence["batch"]["obs"].shape == (1, 16, 3, 4)
    assert evidence["batch"]["obs"].any()


@pytest.mark.usefixtures("session")
def test_the_log_has_a_section_and_the_table_no_columns_of_the_cluster(tmp_path: Path) -> None:
    result = train(config(workers=2, logdir=str(tmp_path), run_name="run"))
    tags = {n for row in result.rows for n in row if n.startswith("cluster/")}
    words = ("seconds_waited", "slowest_seconds", "slowest_point", "bytes_sent", "bytes_received", "deaths")
    assert tags == {f"cluster/{word}" for word in words}
    with (tmp_path / "run" / "progress.csv").open(newline="") as file:
        assert not set(next(csv.reader(file))) & set(words)
    assert "12 x CartPole-v1: native" in result.backend
    assert result.backend.endswith("on 2 Ray workers")


def test_bytes_worked_by_hand() -> None:
    assert count_bytes([(np.zeros((2, 3), np.float32), 7), {"a": torch.zeros(5, dtype=torch.float64)}, None]) == 64


@pytest.mark.usefixtures("session")
def test_what_plain_optex_sends_and_receives() -> None:
    """Points out, gradients and five losses back, and the states of the environments."""
    each = trainer(workers=2)
    row = each.iterate()
    d, rows = each.optimizer.ask().shape[1], 4 * 3
    assert row["cluster/bytes_sent"] == 4 * 4 * d
    state = rows * (4 * 8 + 4 * 4 + 8 + 8)  # state, observation, elapsed steps and return of an environment
    assert row["cluster/bytes_received"] == 4 * 4 * d + 5 * 4 * 4 + rows + state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 5}, "workers must be at most 4 with method optex and parallelism 4, got 5"),
        ({"workers": 2, "method": "vanilla"}, "workers must be at most 1 with method vanilla"),
        ({"ray_address": "auto"}, "ray_address needs workers, the number of processes; got 'auto' alone"),
        ({"workers": 2, "ray_address": "here"}, "ray_address must be 'auto' or HOST:PORT, got 'here'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**options)


def test_workers_with_other_versions_are_refused() -> None:
    check_versions(0, versions())
    with pytest.raises(
        ConfigError, match=r"worker 3 has Python 3\.9, and this process has .*: install the same on all"
    ):
        check_versions(3, versions() | {"Python": "3.9"})
    with pytest.raises(ConfigError, match="worker 1 has optex-rl None, and this process has 0"):
        check_versions(1, {"Python": versions()["Python"]})


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ConfigError, match=r"workers need Ray, which is not installed: pip install 'optex-rl\[cluster\]'"
    ):
        train(config(workers=2))


def test_errors_in_one_line() -> None:
    error = RayError("The actor died.\nsecond")
    assert one_line(error) == "RayError: The actor died"
    error.cause = ValueError("what the environment said\nand more")  # type: ignore[attr-defined]
    assert one_line(error) == "ValueError: what the environment said"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_delay_changes_nothing_but_the_time() -> None:
    envs = SlowVectorEnv(make_vec("CartPole-v1", 2), 0.02)
    assert envs.delay == 0.02
    started = time.perf_counter()
    one, other = trainer(), trainer(step_delay=1e-4)
    rows = one.iterate(), other.iterate()
    assert rows[0] == pytest.approx(rows[1], nan_ok=True)
    assert other.evaluator.is_exact
    assert same(one.evaluator.state_dict(), other.evaluator.state_dict())
    assert time.perf_counter() - started > 16 * 4e-4
