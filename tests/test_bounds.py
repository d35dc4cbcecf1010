"""Every number has a largest value, which is named where it is exceeded, and what no memory holds is refused."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from optex_rl import ConfigError, TrainConfig
from optex_rl.cli import commands, main
from optex_rl.compare.rl_zoo3 import Sb3Config
from optex_rl.compare.sweep import Sweep
from optex_rl.training.builders import check_sizes

from .helpers import registered
from .test_spaces import Sampling

HUGE = 10**50
HINTS = get_type_hints(TrainConfig)
KINDS = {name: set(get_args(hint) or (hint,)) for name, hint in HINTS.items()}
NUMBERS = [spec for spec in dataclasses.fields(TrainConfig) if KINDS[spec.name] & {int, float}]


def changed(**options: Any) -> TrainConfig:
    return TrainConfig(**options)


@pytest.mark.parametrize("spec", NUMBERS, ids=lambda spec: spec.name)
def test_no_option_without_bounds(spec: Any) -> None:
    name, low, high = spec.name, spec.metadata["low"], spec.metadata["high"]
    assert high is not None
    kind, floats = ("a number", (math.inf, math.nan, low - 0.5)) if float in KINDS[name] else ("whole numbers?", ())
    for value in (HUGE, 10**5000, low - 1, *floats):
        message = rf"^{name} must be .*{kind} between {low} and {re.escape(str(high))}.*, got "
        with pytest.raises(ConfigError, match=message) as e:
            changed(**{name: (value,) if HINTS[name] == tuple[int, ...] else value})
        assert len(str(e.value)) < 250


def test_the_bounds_belong_to_what_is_allowed() -> None:
    """One option at a time; what several are together is a question of its own."""
    for spec in NUMBERS:
        if HINTS[spec.name] != tuple[int, ...]:
            points = 1000 if spec.name == "workers" else 1  # there are no more workers than points
            least = {"parallelism": points, "n_envs": 1, "n_steps": 1} | {"history_size": None}
            changed(**least | {spec.name: spec.metadata["high"]})
    changed(net_arch=(4096,) * 16)
    with pytest.raises(ConfigError, match="a list of at most 16 whole numbers between 1 and 4096, got "):
        changed(net_arch=(1,) * 17)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threads", "2147483648"], "threads must be a whole number between 1 and 1024, got 2147483648"),
        (
            ["--n-envs", "1000000", "--n-steps", "1000000", "--parallelism", "2"],
            "parallelism, n_envs and n_steps must give at most 10000000 samples at once, got 2000000000000",
        ),
    ],
)
def test_training(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *flags, "--logdir", str(tmp_path / "logs")]) == 2
    assert capsys.readouterr().err == f"optex-rl: error: {message}\n"
    assert not (tmp_path / "logs").exists()


def test_a_window_of_long_observations(capsys: pytest.CaptureFixture[str]) -> None:
    with registered("Wide-v0", lambda: Sampling(Box(-1.0, 1.0, (500,)), Discrete(2))) as env:
        flags = ["--env", env, "--n-envs", "2", "--n-steps", "1000000", "--parallelism", "4", "--logdir", "none"]
        assert main(["train", *flags]) == 2
    message = "samples × features of an observation must be at most 2000000000 numbers, got 4000000000"
    assert capsys.readouterr().err == f"optex-rl: error: {message}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--episodes", str(HUGE)], f"episodes must be a whole number between 1 and 100000, got {HUGE}"),
        (["--seed", "-1"], "seed must be a whole number between 0 and 4294967295, got -1"),
        (["--seed", str(HUGE)], f"seed must be a whole number between 0 and 4294967295, got {HUGE}"),
    ],
)
def test_evaluation(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path), *flags]) == 2
    assert capsys.readouterr().err == f"optex-rl: error: {message}\n"


@pytest.mark.parametrize("option", ["seeds", "tuning_seeds", "workers"])
def test_comparison(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flag = "--" + option.replace("_", "-")
    assert main(["compare", flag, str(HUGE), "--folder", str(tmp_path / "comparison")]) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(rf"optex-rl: error: {option} must be a whole number between . and \d+, got {HUGE}\n", line)
    assert not (tmp_path / "comparison").exists()
    with pytest.raises(ConfigError, match=f"{option} must be a whole number between"):
        Sweep(folder=tmp_path, envs=["CartPole-v1"], **{option: 2.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["seed", "steps", "evaluations", "eval_episodes"])
def test_stable_baselines3(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{option} must be a whole number between . and \d+, got {HUGE}$"):
        Sb3Config(algo="a2c", env="CartPole-v1", **{option: HUGE})


def test_sizes() -> None:
    """By hand: 8 · 128 · 4 samples of 3 features, 20 pairs and 4 · 2 steps of 10 parameters."""
    config = TrainConfig(n_envs=8, n_steps=128, parallelism=4, stride=2, history_size=20)
    most = 2 * 10**9
    check_sizes(config, most // 4096, most // 20)
    for features, d, message in (
        (most // 4096 + 1, 10, f"samples × features of an observation must be .* got {4096 * (most // 4096 + 1)}$"),
        (3, most // 20 + 1, f"history_size × parameters must be at most {most} numbers, got {most + 20}$"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_sizes(config, features, d)
    with pytest.raises(ConfigError, match=f"parallelism × stride × parameters must be at most {most} numbers, got"):
        check_sizes(dataclasses.replace(config, stride=10), 3, most // 40 + 1)
    check_sizes(dataclasses.replace(config, method="vanilla"), 3, most)  # which keeps no history


@pytest.mark.parametrize("ask", [lambda _: np.empty(2**56, np.uint8), lambda _: torch.empty(2**56, dtype=torch.uint8)])
def test_memory_that_is_not_there(
    ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "train", ask)
    assert main(["train", "--logdir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("optex-rl: error: out of memory: choose fewer ")


def test_other_errors_of_torch_are_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "train", lambda config: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        main(["train", "--logdir", str(tmp_path)])
