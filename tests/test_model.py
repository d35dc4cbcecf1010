"""A policy back from its run folder: it acts, is evaluated, resumed and exported, also with a network of one's own."""

from __future__ import annotations

import math
import subprocess
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy as sb3_evaluate
from torch import Tensor, nn

import optex_rl
from optex_rl import ConfigError, RunFolderError, TrainConfig, load, plot, resume, train
from optex_rl.agents import MlpPolicy, Reinforce, sample_observations
from optex_rl.cli import main
from optex_rl.training.builders import build_normalizer

from .helpers import registered, same
from .own_code import Net, network

SMALL: dict[str, Any] = {
    "n_envs": 2,
    "n_steps": 16,
    "parallelism": 2,
    "iterations": 3,
    "eval_episodes": 2,
    "eval_freq": 1,
    "lr_schedule": "constant",
    "progress_bar": False,
}


def make_run(folder: Path, policy: nn.Module | None = None, agent: Any = None, **options: Any) -> Path:
    run_dir = train(TrainConfig(**SMALL | options, logdir=str(folder), run_name="run"), policy, agent).run_dir
    assert run_dir is not None
    return run_dir


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with continuous actions and normalised observations."""
    return make_run(tmp_path_factory.mktemp("pendulum"), env="Pendulum-v1", normalize_obs=True, learning_rate=0.03)


@pytest.fixture
def cartpole(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def by_hand(model: optex_rl.Model, obs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The mean of a Gaussian for observations [B, O], in float64, before clipping."""
    moments = model.normalizer.obs_moments
    rows = torch.from_numpy(np.clip((obs - moments.mean) / np.sqrt(moments.var + 1e-8), -10, 10))
    policy: Any = model.policy
    network = MlpPolicy(policy.observation_space, policy.action_space)
    network.load_state_dict(policy.state_dict())
    means: np.ndarray[Any, Any] = network.double().actor(rows)[:, :1].detach().numpy()
    return means


def test_predict_normalises_and_takes_one_or_many(pendulum: Path) -> None:
    model = load(pendulum)
    obs = np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
    actions, state = model.predict(obs, deterministic=True)
    assert state is None
    assert (actions.shape, actions.dtype) == ((5, 1), np.float32)
    np.testing.assert_allclose(actions, np.clip(by_hand(model, obs), -2, 2), atol=1e-5)
    single, state = model.predict(obs[3], state=("kept",), episode_start=np.zeros(1))
    np.testing.assert_allclose(single, actions[3], atol=1e-6)
    assert state == ("kept",)
    np.testing.assert_allclose(model.predict(obs.tolist())[0], actions, atol=1e-6)


def test_drawn_actions_are_those_of_the_distribution(pendulum: Path) -> None:
    """Of a Gaussian, from numbers of a generator: the same numbers, the same actions."""
    model, other = load(pendulum), load(pendulum)
    obs = np.zeros((4000, 3), np.float32)
    drawn = model.predict(obs, deterministic=False)[0]
    np.testing.assert_array_equal(drawn, other.predict(obs, deterministic=False)[0])
    assert not np.array_equal(drawn, model.predict(obs, deterministic=False)[0])
    deviation = math.exp(model.policy.state_dict()["actor_net.gaussian.log_std"].item())
    inside = np.abs(drawn) < 2
    normal = torch.distributions.Normal(torch.from_numpy(by_hand(model, obs[:1])[0]), deviation)
    expected = float(normal.cdf(torch.tensor(2.0)) - normal.cdf(torch.tensor(-2.0)))  # type: ignore[no-untyped-call]
    assert abs(inside.mean() - expected) < 0.03


@pytest.mark.parametrize("shape", [(4,), (2, 2), (1, 1, 3), ()])
def test_what_is_no_observation(pendulum: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"an observation must have the shape \[3\], or a batch \['B', 3\], got"):
        load(pendulum).predict(np.zeros(shape))


def space_model(space: gymnasium.Space[Any]) -> optex_rl.Model:
    """An untrained policy for observations of a space."""
    actions, config = Discrete(2), TrainConfig(logdir=None, cnn="none")
    normalizer, policy = build_normalizer(config, space, 1), MlpPolicy(space, actions)
    return optex_rl.Model(policy, normalizer, config, Path(), 0, space, actions, np.random.default_rng(0), False)


MIXED = spaces.Dict(img=Box(0, 255, (3, 4, 4), np.uint8), vec=Box(-1, 1, (2,)), one=Discrete(3))


def test_a_dictionary_is_one_observation_or_a_batch() -> None:
    model = space_model(MIXED)
    obs = sample_observations(MIXED, 3)
    actions = model.predict(obs)[0]
    assert actions.shape == (3,)
    assert [model.predict({key: part[i] for key, part in obs.items()})[0] for i in range(3)] == actions.tolist()
    message = "the entries of an observation must all be of one, or batches of one size, got img: 3, "
    for other in (obs["vec"][0], obs["vec"][:2]):
        with pytest.raises(ConfigError, match=message):
            model.predict({**obs, "vec": other})
    for wrong in ({"img": obs["img"]}, {**obs, "more": 1}, obs["vec"]):
        with pytest.raises(ConfigError, match="must have the entries img, vec, one"):
            model.predict(wrong)


@pytest.mark.parametrize(
    ("space", "obs", "words"),
    [
        (MIXED["vec"], [[0], [1, 2]], "an observation must be an array of float32: setting an array element"),
        (MIXED["vec"], "ab", "an observation must be an array of float32, got <U2"),
        (MIXED["vec"], None, "an observation must be an array of float32, got object"),
        (MIXED["img"], np.full((3, 4, 4), 0.5), "an observation must be an array of uint8, got float64"),
        (Discrete(3, start=5), 1.5, "an observation must be an array of int64, got float64"),
        (Discrete(3, start=5), 8, r"an observation must be of Discrete\(3, start=5\), got 8"),
        (Discrete(3, start=5), [5, 4, 6], r"an observation must be of Discrete\(3, start=5\), got 4"),
        (spaces.MultiDiscrete([2, 3]), [[1, 2], [2, 0]], r"must be of MultiDiscrete\(\[2 3\]\), got 2"),
        (spaces.MultiBinary(2), [0, 2], r"must be of MultiBinary\(2\), got 2"),
    ],
)
def test_numbers_that_are_none_of_the_space(space: gymnasium.Space[Any], obs: Any, words: str) -> None:
    """They would be taken as others: fractions of an image as black, choices that there are not as none at all."""
    with pytest.raises(ConfigError, match=words):
        space_model(space).predict(obs)


def test_discrete_tasks(tmp_path: Path) -> None:
    """Observations and actions counted from elsewhere than 0."""

    class Named(gymnasium.Env[Any, Any]):
        observation_space, action_space = Discrete(3, start=5), Discrete(2, start=-1)

        def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.int64, dict[str, Any]]:
            return np.int64(6), {}

        def step(self, action: Any) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
            assert action in (-1, 0)
            return np.int64(5), 1.0, True, False, {}

    with registered("Named-v0", Named) as env:
        model = load(make_run(tmp_path, env=env))
        action, _ = model.predict(6)
        assert action in (-1, 0)
        actions, _ = model.predict(np.array([5, 6, 7, 6]))
        assert actions.shape == (4,)
        assert actions[1] == actions[3] == action
        assert model.evaluate(3) == [1.0, 1.0, 1.0]
        model.export(tmp_path / "named.pt2")
        program = torch.export.load(tmp_path / "named.pt2").module()
        assert program(torch.tensor([5, 6, 7, 6])).tolist() == actions.tolist()


def test_the_evaluation_of_stable_baselines3_takes_it(cartpole: Path) -> None:
    model: Any = load(cartpole)
    mean: Any = sb3_evaluate(model, make_vec_env("CartPole-v1", 2, seed=0), n_eval_episodes=4, warn=False)[0]
    assert mean > 5


def test_evaluate_plays_the_runs_task_or_another(pendulum: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(pendulum)
    returns = model.evaluate(3, seed=7)
    assert main(["evaluate", str(pendulum), "--episodes", "3", "--seed", "7"]) == 0
    assert f"mean return {np.mean(returns):.2f} ± {np.std(returns):.2f}" in capsys.readouterr().out
    assert model.evaluate(3, env="optex_rl/Pendulum-v1", seed=7) == returns
    assert model.evaluate(2, env=lambda: gymnasium.make("Pendulum-v1", max_episode_steps=1))[0] > -20
    for other, words in (
        ("MountainCarContinuous-v0", r"observations of MountainCar\w+-v0 are Box"),
        ("Acrobot-v1", "observations of"),
    ):
        with pytest.raises(ConfigError, match=words):
            model.evaluate(2, env=other)
    for episodes, seed in ((0, 0), (1, -1)):
        with pytest.raises(ConfigError, match="must be a whole number between"):
            model.evaluate(episodes, seed=seed)


def test_the_best_policy_and_one_trained_elsewhere(cartpole: Path) -> None:
    """The device of the run, which may not be here, does not matter to one who uses its policy."""
    config = cartpole / "config.yml"
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"device": "cuda:99"}))
    best = torch.load(cartpole / "best_model.pt", weights_only=True)
    model = load(cartpole, best=True)
    assert model.iteration == best["iteration"]
    assert all(torch.equal(value, best["policy"][name]) for name, value in model.policy.state_dict().items())
    assert load(cartpole).iteration == 3


def test_resume_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    whole = train(TrainConfig(**SMALL | {"iterations": 6}, logdir=None, normalize_obs=True))
    model = load(make_run(tmp_path, normalize_obs=True))
    before = model.predict(np.ones(4))[0]
    assert model.resume(6).iterations == model.iteration == 6
    assert same(whole.policy.state_dict(), model.policy.state_dict())
    np.testing.assert_array_equal(whole.normalizer.obs_moments.mean, model.normalizer.obs_moments.mean)
    assert before in (0, 1)
    assert load(tmp_path / "run").iteration == 6


def own_network() -> Net:
    torch.manual_seed(0)
    return Net(Box(-1, 1, (4,)), Discrete(2))


def test_a_network_of_ones_own_given_as_an_instance(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, own_network())
    message = r"another network than config\.yml describes \(Net, not MlpPolicy\): give the run's own, as policy="
    for use in (load, resume):
        with pytest.raises(RunFolderError, match=message):
            use(run_dir)
        with pytest.raises(RunFolderError, match=r"another network than config\.yml describes"):
            use(run_dir, policy=Net(Box(-1, 1, (4,)), Discrete(2), width=4))
    empty = own_network()
    nn.init.zeros_(empty.trunk.weight)
    model = load(run_dir, empty)
    assert model.policy is empty
    saved = torch.load(run_dir / "checkpoint.pt", weights_only=True)["policy"]
    assert all(torch.equal(value, saved[name]) for name, value in model.policy.state_dict().items())
    obs = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    np.testing.assert_array_equal(model.predict(obs)[0], empty.actor(torch.from_numpy(obs)).argmax(1).numpy())
    assert model.resume(4).iterations == 4
    assert resume(run_dir, 5, policy=own_network()).iterations == 5
    assert load(run_dir, own_network()).iteration == 5


@pytest.mark.parametrize("policy", [Net, 3])
def test_what_is_no_network(cartpole: Path, policy: Any) -> None:
    """It is not the checkpoint that does not fit."""
    message = "policy must be an instance of torch.nn.Module, or 'module:factory' in the options, in load and in resume"
    for use in (lambda: load(cartpole, policy), lambda: resume(cartpole, 4, policy)):
        with pytest.raises(ConfigError, match=message):
            use()
    with pytest.raises(ConfigError, match=message):
        train(TrainConfig(logdir=None, **SMALL), policy)


@pytest.mark.parametrize("name", ["Net", "tests.own_code:Nobody"])
def test_names_of_no_network(cartpole: Path, name: str, importable: str) -> None:
    for use in (lambda: load(cartpole, name), lambda: resume(cartpole, 4, name)):
        with pytest.raises(
            ConfigError, match=r"^policy must be of the form|^the module 'tests.own_code' has no 'Nobody'"
        ):
            use()


def test_there_may_be_no_best_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path, eval_freq=0)
    assert main(["evaluate", str(run_dir), "--best"]) == 1
    message = f"there is no {run_dir / 'best_model.pt'}: no evaluation wrote it (eval_freq); use the last policy"
    assert capsys.readouterr().err == f"optex-rl: error: {message}\n"
    with pytest.raises(RunFolderError, match="no evaluation wrote it"):
        load(run_dir, best=True)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name under which a factory is found."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    return "tests.own_code"


def test_a_network_of_ones_own_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], importable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--policy module:factory` of train is recorded; evaluate and resume take it, too, if the run does not name it."""
    name = f"{importable}:network"
    sizes = ["--n-envs", "2", "--n-steps", "16", "--iterations", "2", "--eval-freq", "0", "--n-critic-updates", "0"]
    arguments = ["train", *sizes, "--logdir", str(tmp_path), "--run-name", "named", "--policy", name]
    assert main(arguments) == 0
    before = torch.get_rng_state()
    assert main([*arguments[:-3], "again", "--policy", name]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    first, second = (torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("named", "again"))
    assert first["network"]["class"] == "Net"
    assert torch.equal(first["policy"]["trunk.weight"], second["policy"]["trunk.weight"])
    assert main(["evaluate", str(tmp_path / "named"), "--episodes", "2", "--trust"]) == 0
    assert main(["train", "--resume", str(tmp_path / "named"), "--iterations", "3", "--trust"]) == 0
    instance = make_run(tmp_path, network(Box(-1, 1, (4,)), Discrete(2)))
    assert main(["evaluate", str(instance), "--episodes", "2"]) == 1
    assert "give the run's own, as policy=… or --policy module:factory" in capsys.readouterr().err
    assert main(["evaluate", str(instance), "--episodes", "2", "--policy", name]) == 0
    assert main(["train", "--resume", str(instance), "--iterations", "4", "--policy", name]) == 0
    assert load(instance, trust=True).iteration == 4  # which is recorded with the raised number
    assert main(["train", "--resume", str(instance), "--trust", "--seed", "1"]) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("network", "policy must be of the form module:name, got 'network'"),
        ("no_such_module:network", "cannot import 'no_such_module', which policy names"),
        ("tests.own_code:nothing", "the module 'tests.own_code' has no 'nothing', which policy names"),
        ("tests.own_code:make", "must take an observation space and an action space: too many"),
        ("tests.own_code:no_network", "must make a torch.nn.Module, and it made a dict"),
        ("tests.own_code:Half", "must take an observation space and an action space"),
    ],
)
def test_factories_that_are_none(name: str, words: str, importable: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--policy", name, "--logdir", "none", "--iterations", "1"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert words in line


def test_a_run_whose_agent_has_no_critic_where_that_of_its_options_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path, agent=Reinforce(baseline=False), algo="a2c")
    assert main(["evaluate", str(run_dir), "--episodes", "2"]) == 0
    assert "2 episodes: mean return" in capsys.readouterr().out
    assert not load(run_dir).policy.has_critic
    assert load(run_dir).resume(4, agent=Reinforce(baseline=False)).iterations == 4


def test_an_export_acts_as_predict_does(pendulum: Path, tmp_path: Path) -> None:
    """Also for other numbers of rows than it was made with, and in a process that has only torch."""
    model, path = load(pendulum), tmp_path / "policy.pt2"
    model.export(path)
    program = torch.export.load(path).module()
    for rows in (1, 2, 77):
        obs = np.random.default_rng(rows).normal(0, 3, (rows, 3)).astype(np.float32)
        np.testing.assert_allclose(program(torch.from_numpy(obs)).numpy(), model.predict(obs)[0], rtol=0, atol=1e-6)
    script = (
        "import sys, torch; program = torch.export.load(sys.argv[1]).module();"
        "assert 'optex_rl' not in sys.modules; print(program(torch.zeros(1, 3)).item())"
    )
    out = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True).stdout
    assert float(out) == pytest.approx(model.predict(np.zeros(3))[0].item(), abs=1e-6)


class Unexportable(Net):
    """Fixes the number of rows."""

    def actor(self, obs: Tensor) -> Tensor:
        return super().actor(obs.reshape(len(obs), 4))


class Branching(Net):
    """Looks at its data."""

    def actor(self, obs: Tensor) -> Tensor:
        return super().actor(obs) if obs.sum() > 0 else -super().actor(obs)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Unexportable, r"torch cannot export Unexportable to \.pt2: it works for one number of rows only; obs.shape"),
        (Branching, r"torch cannot export Branching to \.pt2: "),
    ],
)
def test_networks_that_cannot_be_exported(cls: type[Net], words: str, tmp_path: Path) -> None:
    own = cls(Box(-1, 1, (4,)), Discrete(2))
    with pytest.warns(optex_rl.PerformanceWarning) if cls is Branching else nullcontext():
        run_dir = make_run(tmp_path, own)
    model = load(run_dir, own)
    with pytest.raises(ConfigError, match=words):
        model.export(tmp_path / "policy.pt2")
    assert not (tmp_path / "policy.pt2").exists()


def test_an_export_that_acts_differently_is_refused(
    cartpole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(cartpole)
    monkeypatch.setattr(model, "predict", lambda obs: (1 - load(cartpole).predict(obs)[0], None))
    with pytest.raises(ConfigError, match="the program exported from MlpPolicy does not act as the policy does"):
        model.export(tmp_path / "policy.pt2")
    assert not (tmp_path / "policy.pt2").exists()


def test_names_of_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path, n_steps=64)
    assert plot(run_dir) == run_dir / "learning_curve.png"
    assert plot([run_dir, str(run_dir)], tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="at least one run folder"):
        plot([])
    assert optex_rl.__version__ == version("optex-rl")
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"optex-rl {optex_rl.__version__}\n"
    out = subprocess.run([sys.executable, "-m", "optex_rl", "--version"], check=True, capture_output=True, text=True)
    assert out.stdout == f"optex-rl {optex_rl.__version__}\n"
