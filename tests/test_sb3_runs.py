"""stable-baselines3 as a baseline: rl_zoo3's hyperparameters reach it, evaluations are not timed, returns are right."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from optex_rl import ConfigError
from optex_rl.cli import main
from optex_rl.compare.results import read_runs
from optex_rl.compare.rl_zoo3 import Sb3Config
from optex_rl.compare.sb3_runs import EvaluationClock, follow_sb3, make_model, schedule
from optex_rl.envs import make_vec
from optex_rl.training.rollouts.evaluation import play_episodes

CELLS = [
    (env, algo)
    for env in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1", "LunarLander-v3")
    for algo in ("a2c", "ppo")
]


@pytest.mark.parametrize(("env", "algo"), CELLS)
def test_every_entry_of_the_table_makes_a_model(env: str, algo: str) -> None:
    config = Sb3Config(algo=algo, env=env)
    options, shared = config.options(), config.shared_options()
    model: Any = make_model(config)
    assert config.shared_options() == shared  # the table is not what the algorithm writes its own defaults into
    assert model.n_envs == options["n_envs"]
    for name in ("n_steps", "gamma", "gae_lambda", "ent_coef", "vf_coef", "n_epochs", "batch_size", "use_sde"):
        if name in options:
            assert getattr(model, name) == options[name]
    normalize = model.get_vec_normalize_env()
    assert (normalize is not None) == options.get("normalize", False)
    if normalize is not None:
        assert (normalize.norm_obs, normalize.norm_reward, normalize.gamma) == (True, True, model.gamma)
    model.env.close()


def test_linear_schedules() -> None:
    linear = schedule("lin_0.002")
    assert (linear(1.0), linear(0.25), linear(0.0)) == (0.002, 0.0005, 0.0)
    assert schedule(0.002) == 0.002


def test_the_curve_of_a_cut_run() -> None:
    """8 environments × 5 steps a rollout: 400 steps are 10 rollouts, evaluated every second one."""
    curve = follow_sb3(Sb3Config(algo="a2c", env="CartPole-v1", steps=400, evaluations=5, eval_episodes=2))
    assert curve.iterations == (0, 2, 4, 6, 8, 10)
    assert curve.env_steps == tuple(40 * i for i in curve.iterations)
    assert list(curve.wall_time) == sorted(set(curve.wall_time))


def test_a_cut_run_is_the_beginning_of_the_whole() -> None:
    """Schedules are those of the whole run, and evaluations leave no trace."""
    options: dict[str, Any] = {"algo": "ppo", "env": "CartPole-v1", "eval_episodes": 2}
    short = follow_sb3(Sb3Config(**options, steps=1024, evaluations=4))
    longer = follow_sb3(Sb3Config(**options, steps=2048, evaluations=4))
    assert short.iterations == (0, 1, 2, 3, 4)
    assert longer.iterations == (0, 2, 4, 6, 8)
    assert longer.returns[:3] == short.returns[::2]


def test_the_clock_stands_still_and_the_last_policy_is_evaluated() -> None:
    def slow() -> float:
        time.sleep(0.3)
        return 1.0

    model = A2C("MlpPolicy", make_vec_env("CartPole-v1", 2), device="cpu")
    clock = EvaluationClock(slow, every=3)
    model.learn(40, clock)
    curve = clock.curve(4)
    assert curve.iterations == (0, 3, 4)
    assert curve.env_steps == (0, 30, 40)
    assert curve.wall_time[-1] < 0.6


def test_a_run_that_holds_its_threshold_is_cut_off_there() -> None:
    """Evaluated before the rollouts 0, 2, 4: the third evaluation confirms the second; the rest stays as it was."""
    returns = iter([0.0, 9.0, 11.0])
    model = A2C("MlpPolicy", make_vec_env("CartPole-v1", 2), device="cpu")
    clock = EvaluationClock(lambda: next(returns), every=2, until=10.0)
    model.learn(90, clock)
    curve = clock.curve(9)
    assert curve.iterations == (0, 2, 4, 6, 8, 9)
    assert curve.returns == (0.0, 9.0, 11.0, 11.0, 11.0, 11.0)
    assert curve.env_steps == (0, 20, 40, 40, 40, 40)


def test_our_evaluation_agrees_with_theirs() -> None:
    """The same initial states, one episode each: the same returns, whatever the order in which episodes end."""
    model: Any = make_model(Sb3Config(algo="a2c", env="Pendulum-v1"))
    model.learn(256)
    normalize = model.get_vec_normalize_env()

    def act(obs: Any) -> Any:
        return model.predict(normalize.normalize_obs(obs), deterministic=True)[0]

    seeds: Any = list(range(3, 11))  # what make_vec_env makes of 3
    returns = play_episodes(act, make_vec("Pendulum-v1", 8), seeds)
    theirs = VecNormalize(make_vec_env("Pendulum-v1", 8, seed=3), training=False, norm_reward=False)
    theirs.obs_rms = normalize.obs_rms
    expected, _ = evaluate_policy(model, theirs, n_eval_episodes=8, deterministic=True, return_episode_rewards=True)
    assert isinstance(expected, list)
    assert len(set(returns)) == 8
    assert sorted(returns) == pytest.approx(sorted(expected), rel=1e-4)


def test_it_runs_in_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--methods", "vanilla", "sb3-a2c:steps=200,evaluations=2", "--learning-rates", "1", "--seeds", "2"]
    flags += ["--iterations", "2", "--n-steps", "16", "--eval-episodes", "2", "--workers", "1", "--no-progress-bar"]
    assert main(["compare", *flags, "--folder", str(tmp_path)]) == 0
    runs = [run for run in read_runs(tmp_path) if run.method.startswith("sb3")]
    assert [(run.setting, run.seed, run.curve.env_steps) for run in runs] == [
        ("rl_zoo3", seed, (0, 80, 160, 200)) for seed in range(2)
    ]
    out = capsys.readouterr().out
    assert out.index("| vanilla |") < out.index("| sb3-a2c:steps=200,evaluations=2 | rl_zoo3 * |")


def test_unknown_tasks_and_bad_numbers() -> None:
    with pytest.raises(ConfigError, match="rl_zoo3 has no hyperparameters for a2c on Ant-v5: choose CartPole-v1, "):
        Sb3Config(algo="a2c", env="Ant-v5")
    with pytest.raises(ConfigError, match="steps must be a whole number between 1 and 1000000000, got 0"):
        Sb3Config(algo="a2c", env="CartPole-v1", steps=0)


def test_it_is_said_that_stable_baselines3_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["compare", "--methods", "sb3-ppo", "--folder", str(tmp_path / "comparison")]) == 2
    assert "sb3-a2c and sb3-ppo need stable-baselines3: pip install 'optex-rl[sb3]'" in capsys.readouterr().err
