"""Tasks of one's own: functions, batches, arguments, wrappers, and what a run folder may run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml

from optex_rl import ConfigError, RunFolderError, TrainConfig, load, resume, train
from optex_rl.cli import main
from optex_rl.envs import NATIVE, CartPole, NativeVectorEnv, SameStepVectorEnv, describe_backend, make_vec, register
from optex_rl.runner.folder import make_run_folder

from .helpers import same

SMALL: dict[str, Any] = {
    "n_envs": 2,
    "n_steps": 8,
    "parallelism": 2,
    "iterations": 2,
    "net_arch": (4,),
    "eval_episodes": 2,
    "progress_bar": False,
}
SIZES = ["--n-envs", "2", "--n-steps", "8", "--parallelism", "2", "--iterations", "2", "--net-arch", "4"]
FLAGS = [*SIZES, "--eval-episodes", "2", "--no-progress-bar"]


def forget() -> None:
    """As in a new process: what the module registered, and the module."""
    sys.modules.pop("own_code", None)
    for registry in (gymnasium.registry, NATIVE):
        registry.pop("Reach-v0", None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of one's own, which only the command line finds."""
    code = Path(__file__).with_name("own_code.py").read_text()
    (tmp_path / "own_code.py").write_text(f"{code}\n\nfrom optex_rl.envs import register\n\nregister(Reach)\n")
    monkeypatch.chdir(tmp_path)
    forget()
    yield tmp_path
    forget()


@pytest.fixture
def own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, imported by the program."""
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module("own_code")


def command(*arguments: str) -> int:
    """A command in a process of its own, as far as the module goes."""
    try:
        return main(list(arguments))
    finally:
        forget()


def options_of(run_dir: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((run_dir / "config.yml").read_text())
    return values


def test_a_function_makes_the_environments(own: ModuleType) -> None:
    env = make_vec(own.make, 3, length=4)
    assert isinstance(env, SameStepVectorEnv)
    assert describe_backend(env) == "3 x own_code:make: sync, Gymnasium's SyncVectorEnv steps one after the other"
    env.reset(seed=0)
    ended = [env.step(np.ones(3, dtype=int))[2].all() for _ in range(4)]
    assert ended == [False, False, False, True]
    assert describe_backend(make_vec("own_code:make", 1)).startswith("1 x own_code:make: sync")


def test_a_run_with_a_function_is_recorded_by_its_name_and_resumed(own: ModuleType) -> None:
    options = {**SMALL, "env_kwargs": {"length": 3}, "lr_schedule": "constant"}
    whole = train(TrainConfig(env=own.make, run_name="whole", **{**options, "iterations": 4}))
    train(TrainConfig(env=own.make, run_name="run", **options))
    assert (options_of(Path("runs/run"))["env"], options_of(Path("runs/run"))["env_kwargs"]) == (
        "own_code:make",
        {"length": 3},
    )
    with pytest.warns(match="own_code:make cannot save its state"):
        resumed = resume("runs/run", 4, trust=True)
    assert (resumed.iterations, whole.iterations) == (4, 4)
    assert resumed.rows[-1]["rollout/ep_len_mean"] == 3
    assert load("runs/run", trust=True).evaluate(2) == load("runs/run", trust=True).evaluate(
        2, env=partial(own.make, 3)
    )


def test_what_has_no_name_is_for_runs_that_write_nothing() -> None:
    def local() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("CartPole-v1")

    message = r"env must be a function or class at the top level of a module, .* got <lambda>: .* logdir=None"
    with pytest.raises(ConfigError, match=message):
        TrainConfig(env=lambda: gymnasium.make("CartPole-v1"))
    for env in (lambda: gymnasium.make("CartPole-v1"), local, partial(gymnasium.make, "CartPole-v1")):
        with pytest.raises(ConfigError, match="at the top level"):
            TrainConfig(env=env)
        assert train(TrainConfig(env=env, logdir=None, eval_freq=0, **SMALL)).iterations == 2


@pytest.mark.parametrize(
    ("env", "words"), [(3, "got 3"), ("own_code:nothing", "closest registered id"), ("a b:x", "'a b'")]
)
def test_what_is_no_task(env: Any, words: str, own: ModuleType) -> None:
    with pytest.raises(ConfigError, match=words):
        train(TrainConfig(env=env, logdir=None))


def test_functions_that_make_no_environment(own: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"dict must make a gymnasium\.Env, and it made a dict\."):
        make_vec(dict)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="made a SyncVectorEnv, and batches are subclasses of NativeVectorEnv"):
        make_vec(lambda: gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'own_code:make' does not take one of the arguments: .*'speed'"):
        make_vec(own.make, speed=3)


def test_arguments_of_the_task() -> None:
    config = TrainConfig(env="Pendulum-v1", env_kwargs={"g": 1.0, "max_episode_steps": 9}, logdir=None, **SMALL)
    assert train(config).rows[-1]["rollout/ep_len_mean"] == 9
    assert TrainConfig(env_kwargs={"a": (1, 2)}).env_kwargs == {"a": [1, 2]}  # as it comes back from the file
    assert TrainConfig(env_kwargs={}).env_kwargs is None
    for bad, words in (
        ({"seed": 1}, "names other than num_envs, seed"),
        ([1], r"must be a dictionary .* got \[1\]"),
        ({"f": np.ones(1)}, "env_kwargs must hold numbers, text, lists and dictionaries only"),
    ):
        with pytest.raises(ConfigError, match=words):
            TrainConfig(env_kwargs=bad)  # type: ignore[arg-type]


def test_wrappers_in_every_spelling(own: ModuleType) -> None:
    """CartPole pays 1 a step: half of it, and then at most 0.25."""
    clip = {"gymnasium.wrappers.ClipReward": {"max_reward": 0.25}}
    limit: dict[str, Any] = {"env_kwargs": {"max_episode_steps": 4}, "logdir": None, "eval_freq": 1}
    for wrapper, expected in (
        (own.Half, 2.0),
        ("own_code.Half", 2.0),
        ("own_code:Half", 2.0),
        (["own_code.Half", clip], 1.0),
        ([own.Half, own.Half], 1.0),
        ({own.Half: {}}, 2.0),
    ):
        config = TrainConfig(env_wrapper=wrapper, **limit, **SMALL)
        assert train(config).rows[-1]["eval/mean_reward"] == expected
        assert TrainConfig(env_wrapper=config.env_wrapper, **limit, **SMALL) == config
    wrong: list[Any] = [3, "", lambda env: env, {"a": 1}, {"a": {}, "b": {}}]
    for bad in wrong:
        with pytest.raises(ConfigError, match=r"env_wrapper must be 'module\.Class'"):
            TrainConfig(env_wrapper=bad)
    with pytest.raises(ConfigError, match="the module 'own_code' has no 'Third', which env_wrapper names"):
        train(TrainConfig(env_wrapper="own_code.Third", logdir=None))


def test_wrappers_that_are_none(own: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for wrapper, words in (
        ("own_code.Half.reward", r"module 'own_code\.Half'|own_code\.Half"),
        ("gymnasium.wrappers.TransformReward", "with an environment and {}: missing a required argument: 'func'"),
        (
            {own.Half: {"by": 2}},
            r"own_code:Half cannot be called with an environment and \{'by': 2\}: got an unexpected",
        ),
        ("builtins.str", r"env_wrapper builtins:str must make a gymnasium\.Env, and it made a str"),
        ("optex_rl.__version__", "env_wrapper optex_rl:__version__ cannot be called with .* is not a callable object"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(TrainConfig(env_wrapper=wrapper, logdir=None, **SMALL))
    assert main(["train", "--env-wrapper", "builtins.str", *FLAGS]) == 2
    assert "must make a gymnasium.Env, and it made a str" in capsys.readouterr().err


def test_a_function_that_needs_arguments(own: ModuleType) -> None:
    def needy(size: int) -> gymnasium.Env[Any, Any]:
        return own.Walk(size)  # type: ignore[no-any-return]

    with pytest.raises(
        ConfigError, match=r"environment 'needy' needs others: .* missing 1 required positional argument"
    ):
        train(TrainConfig(env=needy, logdir=None, **SMALL))
    assert train(TrainConfig(env=needy, env_kwargs={"size": 3}, logdir=None, **SMALL)).iterations == 2


def test_a_batch_of_ones_own_by_one_registration(own: ModuleType) -> None:
    env: Any = make_vec("Reach-v0", 5, step=0.5, max_episode_steps=7)
    assert (type(env), env.step_size, env.max_episode_steps) == (own.Reach, 0.5, 7)
    assert describe_backend(env) == "5 x Reach-v0: native, NumPy steps all of them as one batch"
    assert isinstance(gymnasium.make_vec("Reach-v0", 2, vectorization_mode="vector_entry_point"), own.Reach)
    assert type(make_vec(own.Reach, 2)) is own.Reach
    for options in ({"env": "Reach-v0"}, {"env": own.Reach}, {"env": "own_code:Reach"}):
        result = train(TrainConfig(**options, logdir=None, **SMALL))
        assert result.backend.endswith("8 x Reach-v0: native, NumPy steps all of them as one batch"[1:])


def test_a_batch_of_ones_own_is_resumed_exactly(own: ModuleType) -> None:
    options = {**SMALL, "lr_schedule": "constant", "env": own.Reach}
    whole = train(TrainConfig(run_name="whole", **{**options, "iterations": 4}))
    train(TrainConfig(run_name="run", **options))
    second = resume("runs/run", 4)  # the program has imported the class, so there is nothing to trust
    assert same(whole.policy.state_dict(), second.policy.state_dict())


def test_registrations_that_are_refused(own: ModuleType) -> None:
    class Taken(CartPole):
        env_id = "Acrobot-v1"

    class Nameless(own.Reach):  # type: ignore[misc, name-defined]
        env_id = "not an id"

    with pytest.raises(ConfigError, match=r"Taken\.env_id must be new, and 'Acrobot-v1' is taken"):
        register(Taken)
    with pytest.raises(ConfigError, match="Nameless: a batch task needs env_id"):
        register(Nameless)
    with pytest.raises(ConfigError, match="register needs a subclass of NativeVectorEnv"):
        register(gymnasium.Env)  # type: ignore[type-var]
    again = importlib.reload(own).Reach
    assert NATIVE["Reach-v0"] is again
    assert NATIVE["Acrobot-v1"].env_id == "Acrobot-v1"
    with pytest.raises(ConfigError, match="Reach-v0 exists as a batch only, which is neither wrapped nor"):
        make_vec("Reach-v0", 2, wrappers=[own.Half])
    env = make_vec("Reach-v0", 1, render_mode="rgb_array")
    env.reset()
    with pytest.raises(ConfigError, match="Reach-v0 does not draw itself"):
        env.render()


def test_the_command_line_finds_modules_of_the_working_directory(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kwargs = ["--env-kwargs", "length:3", "--env-wrapper", "own_code.Half"]
    assert command("train", "--env", "own_code:make", *FLAGS, *kwargs) == 0
    assert command("train", "--env", "own_code:Reach-v0", *FLAGS, "--env-kwargs", "step:0.5") == 0
    folders = {path.name: options_of(path) for path in Path("runs").iterdir()}
    assert sorted(folders) == ["own_code-Reach-v0_a2c_optex_0", "own_code-make_a2c_optex_0"]
    options = folders["own_code-make_a2c_optex_0"]
    assert (options["env"], options["env_kwargs"], options["env_wrapper"]) == (
        "own_code:make",
        {"length": 3},
        ["own_code.Half"],
    )
    capsys.readouterr()
    assert command("evaluate", "runs/own_code-make_a2c_optex_0", "--episodes", "2", "--trust") == 0
    most = float(capsys.readouterr().out.split("most ")[1])
    assert most in (0.0, 0.5, 1.0, 1.5)  # three steps at 1, halved
    assert str(folder) not in sys.path


def test_arguments_and_wrappers_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    clip = "{gymnasium.wrappers.ClipReward: {max_reward: 0.25}}"
    where = ["--logdir", str(tmp_path), "--run-name", "run"]
    limits = ["--env-kwargs", "max_episode_steps:4", "--env-wrapper", clip]
    assert main(["train", *FLAGS, *where, *limits]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "3"]) == 0  # all of an installed package
    assert "mean return 1.00 ± 0.00" in capsys.readouterr().out
    assert main(["train", "--env-kwargs", "length"]) == 2
    assert "must be KEY:VALUE, got 'length'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"env": "own_code:make"}, "env 'own_code:make'"),
        ({"env": "own_code:Reach-v0"}, "env 'own_code:Reach-v0'"),
        ({"env": "subprocess:run", "env_kwargs": {"args": ["touch", "harm"]}}, "env 'subprocess:run'"),
        ({"env": "torch:load"}, "env 'torch:load'"),
        ({"env_wrapper": ["own_code.Half"]}, "env_wrapper 'own_code:Half'"),
        ({"env_wrapper": [{"os.system": {"command": "touch harm"}}]}, "env_wrapper 'os:system'"),
        ({"policy": "own_code:network"}, "policy 'own_code:network'"),
        ({"policy": "torch:load"}, "policy 'torch:load'"),
    ],
)
def test_code_that_a_run_folder_names_is_run_only_if_trusted(
    folder: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], named: str
) -> None:
    module = folder / "own_code.py"
    module.write_text(module.read_text() + "\nopen('imported', 'w').close()\n")
    train(TrainConfig(run_name="run", **SMALL))
    path = Path("runs/run/config.yml")
    path.write_text(yaml.safe_dump(options_of(path.parent) | options))
    for arguments in (["evaluate", "runs/run"], ["train", "--resume", "runs/run", "--iterations", "4"]):
        assert command(*arguments) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert f"runs/run/config.yml names code that may do anything, {named}: if you trust the folder" in lines[0]
        assert "--trust" in lines[0]
    for use in (load, resume):
        with pytest.raises(RunFolderError, match="trust=True"):
            use("runs/run")
    assert not Path("imported").exists()
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"env": "gymnasium.envs.classic_control:CartPoleEnv"},
        {"env_wrapper": ["gymnasium.wrappers.NormalizeReward"]},
        {"policy": "optex_rl.agents:MlpPolicy"},
        {"env": "gymnasium:CartPole-v1"},
    ],
)
def test_classes_of_installed_packages_need_no_trust(options: dict[str, Any], tmp_path: Path) -> None:
    train(TrainConfig(run_name="run", logdir=str(tmp_path), **{**SMALL, "net_arch": (64, 64)}, **options))
    assert len(load(tmp_path / "run").evaluate(1)) == 1


def test_a_function_of_the_script_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found where the same script resumes the run, and missed with a reason elsewhere."""
    script = sys.modules["__main__"]
    monkeypatch.setattr(script, "own_task", own_task := partial(gymnasium.make, "CartPole-v1"), raising=False)
    config = TrainConfig(env="__main__:own_task", run_name="run", logdir=str(tmp_path), **SMALL)
    assert callable(own_task)
    train(config)
    assert load(tmp_path / "run", trust=True).iteration == 2
    monkeypatch.delattr(script, "own_task")
    with pytest.raises(ConfigError, match="unknown environment '__main__:own_task'"):
        load(tmp_path / "run", trust=True)


def test_names_of_run_folders_are_names_everywhere(tmp_path: Path) -> None:
    run_dir = make_run_folder(TrainConfig(env="optex_rl.envs:CartPole-v1", logdir=str(tmp_path)))
    assert run_dir is not None
    assert run_dir.name == "optex_rl.envs-CartPole-v1_a2c_optex_0"


def test_no_native_environment_is_made_where_it_is_to_be_wrapped() -> None:
    env = make_vec("CartPole-v1", 2, wrappers=[gymnasium.wrappers.ClipAction] * 0)
    assert isinstance(env, NativeVectorEnv)
    wrapped = make_vec("CartPole-v1", 2, wrappers=[lambda env: gymnasium.wrappers.TimeLimit(env, 3)])
    assert isinstance(wrapped, SameStepVectorEnv)
    with pytest.raises(ConfigError, match="there is no native CartPole-v1 with wrappers"):
        make_vec("CartPole-v1", 2, backend="native", wrappers=[gymnasium.wrappers.OrderEnforcing])
