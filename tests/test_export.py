"""Policies as programs of torch alone: on all spaces, in both formats, they act as the model that wrote them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from optex_rl import ConfigError, Model, TrainConfig
from optex_rl.agents import Categorical, sample_observations
from optex_rl.training.builders import build_normalizer, build_policy
from optex_rl.training.rollouts.normalization import Moments

VECTOR, IMAGE = spaces.Box(-1, 1, (2, 3)), spaces.Box(0, 255, (12, 12, 3), np.uint8)
ONES: dict[str, Any] = {
    "b": spaces.Discrete(3, start=4),
    "c": spaces.MultiDiscrete(np.array([[2, 3]]), start=np.array([[5, -1]])),
}
CASES: dict[str, tuple[gymnasium.Space[Any], gymnasium.Space[Any], dict[str, Any]]] = {
    "number": (spaces.Box(-1, 1, ()), spaces.Discrete(3, start=-1), {}),
    "integers": (spaces.Box(0, 9, (4,), np.int64), spaces.Box(-1, 1, ()), {"normalize_obs": True}),
    "normalised": (
        VECTOR,
        spaces.Box(np.array([[-1], [0]], np.float32), np.array([[0.1], [3]], np.float32)),
        {"normalize_obs": True},
    ),
    "discrete": (ONES["b"], spaces.MultiBinary((2, 2)), {}),
    "multi-discrete": (
        ONES["c"],
        spaces.MultiDiscrete(np.array([[2, 3], [4, 2]]), start=np.array([[1, 0], [5, -3]])),
        {},
    ),
    "multi-binary": (spaces.MultiBinary((3, 2)), spaces.Box(-2, 2, (2,), np.float64), {"squash_output": True}),
    "half precision": (VECTOR, spaces.Box(-1, 3, (2,), np.float16), {"squash_output": True}),
    "image": (IMAGE, spaces.Discrete(4), {}),
    "numbers": (spaces.Dict(a=VECTOR, **ONES), spaces.Discrete(4), {"normalize_obs": True}),
}
EVERYTHING = spaces.Dict(a=IMAGE, v=VECTOR, m=spaces.MultiBinary(3), z=spaces.Box(0, 255, (1, 9, 9), np.uint8), **ONES)


def made(
    observations: gymnasium.Space[Any], actions: gymnasium.Space[Any], policy: Any = None, **options: Any
) -> Model:
    """An untrained policy with large outputs and statistics that leave no number as it was."""
    config = TrainConfig(logdir=None, cnn="small", features_dim=8, **options)
    policy = build_policy(config, True, observations, actions) if policy is None else policy
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(3)
    normalizer, generator = build_normalizer(config, observations, 1), np.random.default_rng(0)
    features = len(normalizer.obs_moments.mean)
    normalizer.obs_moments = Moments(9.0, generator.normal(size=features), generator.uniform(0.1, 2, features))
    return Model(policy, normalizer, config, Path(), 0, observations, actions, generator, False)


def act(program: Any, obs: Any) -> np.ndarray[Any, Any]:
    tensors = {k: torch.from_numpy(v) for k, v in obs.items()} if isinstance(obs, dict) else torch.from_numpy(obs)
    actions: np.ndarray[Any, Any] = program(tensors).numpy()
    return actions


def check(model: Model, program: Any) -> None:
    """Also for other numbers of rows than it was made with."""
    for rows in (1, 2, 77):
        obs = sample_observations(model.observation_space, rows, seed=rows)
        given, (expected, _) = act(program, obs), model.predict(obs)
        assert given.dtype == expected.dtype
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5)
        assert rows < 77 or not (given == given[0]).all()


@pytest.mark.parametrize("name", [*CASES, "everything"])
def test_programs_of_torch_export(name: str, tmp_path: Path) -> None:
    observations, actions, options = CASES.get(name, (EVERYTHING, spaces.Discrete(3), {"normalize_obs": True}))
    model = made(observations, actions, **options)
    model.export(tmp_path / "policy.pt2")
    check(model, torch.export.load(tmp_path / "policy.pt2").module())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_programs_of_torchscript(name: str, tmp_path: Path) -> None:
    observations, actions, options = CASES[name]
    model = made(observations, actions, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.export(tmp_path / "policy.pt")
    check(model, torch.jit.load(tmp_path / "policy.pt"))  # type: ignore[no-untyped-call]


def test_a_torchscript_program_needs_torch_alone(tmp_path: Path) -> None:
    made(VECTOR, spaces.Discrete(2)).export(tmp_path / "policy.pt")
    script = (
        "import sys, torch; program = torch.jit.load(sys.argv[1]);"
        "assert 'optex_rl' not in sys.modules; print(program(torch.zeros(2, 2, 3)).shape)"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "policy.pt")]
    assert "torch.Size([2])" in subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


class Net(nn.Module):
    """A network that a trace would take for more than it is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.distribution, self.kind, self.layer = Categorical(2), kind, nn.Linear(6, 2)

    def actor(self, obs: Tensor) -> Tensor:
        if self.kind == "rows":
            obs = obs.reshape(len(obs), 6)
        sign = 1 if self.kind != "data" or bool(obs.sum() > 1e9) else -1
        result: Tensor = sign * self.layer(obs)
        return result


class Reversed(Categorical):
    """Whose actions are named the other way round."""

    def to_env(self, actions: Any) -> Any:
        return self.n - 1 - super().to_env(actions)


def test_networks_that_a_trace_does_not_hold_for(tmp_path: Path) -> None:
    """The branch of the second is not taken by any observation that is tried."""
    for kind, words in (
        ("rows", "it works for one number of rows only"),
        ("data", "Converting a tensor to a Python b"),
    ):
        with pytest.raises(ConfigError, match=rf"torch cannot export Net to \.pt: {words}"):
            made(VECTOR, spaces.Discrete(2), Net(kind)).export(tmp_path / "policy.pt")
    assert not list(tmp_path.iterdir())


def test_exports_that_are_refused(tmp_path: Path) -> None:
    own = Net("plain")
    own.distribution = Reversed(2)
    with pytest.raises(ConfigError, match="with the action distribution Reversed cannot be exported"):
        made(VECTOR, spaces.Discrete(2), own).export(tmp_path / "policy.pt2")
    model = made(EVERYTHING, spaces.Discrete(2))
    with pytest.raises(ConfigError, match=r"cannot read numbers beside images in one row: export to \.pt2"):
        model.export(tmp_path / "policy.pt")
    with pytest.raises(ConfigError, match=r"must end in \.pt2 for .*, or in \.pt for .*, got 'policy\.onnx'"):
        model.export("policy.onnx")
    assert not list(tmp_path.iterdir())
