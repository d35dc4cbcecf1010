"""Networks on images and dictionaries: stacked against separate, and against stable-baselines3's."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from optex_rl import ConfigError
from optex_rl.agents import CnnPolicy, MlpPolicy, ObservationLayout, StackedPolicy, sample_observations
from optex_rl.agents.networks import stacked as stacked_module
from optex_rl.agents.networks.batching import convolves_on_cpu
from optex_rl.agents.networks.cnn import CNNS, smallest_image

from .networks import assert_points_are_separate_policies, points_around

IMAGE = spaces.Box(0, 255, (36, 37, 2), np.uint8)
FIRST = spaces.Box(0, 255, (1, 9, 10), np.uint8)
VECTOR = spaces.Box(-1, 1, (3,))
MIXED = spaces.Dict(a=FIRST, b=VECTOR, c=spaces.Discrete(2), d=spaces.Box(0, 255, (12, 12, 3), np.uint8))
CASES: dict[str, tuple[gymnasium.Space[Any], gymnasium.Space[Any], dict[str, Any]]] = {
    "nature": (IMAGE, spaces.Discrete(3), {}),
    "apart": (IMAGE, spaces.Box(-1, 1, (2,)), {"share_features_extractor": False, "features_dim": 20}),
    "dictionary": (MIXED, spaces.MultiDiscrete([2, 3]), {"cnn": "small", "net_arch": (8,), "features_dim": 10}),
    "squashed": (FIRST, spaces.Box(-1, 1, (2,)), {"cnn": "small", "features_dim": 10, "squash_output": True}),
    "actor alone": (FIRST, spaces.MultiBinary(3), {"cnn": "small", "features_dim": 10, "critic": False}),
}


def made(name: str) -> CnnPolicy:
    observations, actions, options = CASES[name]
    return CnnPolicy(observations, actions, generator=torch.Generator().manual_seed(3), **options)


def rows_of(policy: CnnPolicy, *leading: int) -> Tensor:
    obs = sample_observations(policy.observation_space, math.prod(leading), seed=1)
    return torch.from_numpy(policy.layout.encode(obs)).view(*leading, -1)


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_stacked_equals_separate_with_gradients(name: str, N: int) -> None:
    policy = made(name)
    points, rows = points_around(policy, N) * 0.3, rows_of(policy, N, 4)
    assert_points_are_separate_policies(policy, StackedPolicy(policy), points, rows, 1e-5, 1e-4)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_by_hand_equals_what_any_module_gets(name: str, batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``transforms`` it goes through `functional_call`, one by one or by vmap."""
    policy = made(name)
    points, rows, stacked = points_around(policy, 2) * 0.3, rows_of(policy, 2, 3), StackedPolicy(policy)
    monkeypatch.setattr(stacked_module, "convolves_on_cpu", lambda module: not batched)
    general, by_hand = stacked.bind(points, transforms=True), stacked.bind(points)
    assert type(general) is not type(by_hand)
    torch.testing.assert_close(by_hand.actor(rows), general.actor(rows), rtol=1e-4, atol=1e-5)
    if policy.has_critic:
        torch.testing.assert_close(by_hand.critic(rows), general.critic(rows), rtol=1e-4, atol=1e-5)


def test_shared_features_are_computed_once_for_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    convolution = torch.nn.functional.conv2d

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return convolution(*arguments)

    monkeypatch.setattr("optex_rl.agents.networks.stacked_cnn.conv2d", counted)
    policy = made("nature")
    rows = rows_of(policy, 2, 3)
    bound = StackedPolicy(policy).bind(points_around(policy, 2))
    first = bound.critic(rows.view(2, 3, -1)), bound.actor(rows.view(2, 3, -1))
    assert len(calls) == 2 * 3  # points × convolutions
    rows ^= 255  # the same memory with another image
    again = bound.critic(rows), bound.actor(rows)
    assert len(calls) == 2 * 2 * 3
    assert not any(map(torch.equal, first, again))
    with torch.no_grad():
        assert torch.allclose(bound.actor(rows), again[1])


def test_features_are_those_of_stable_baselines3() -> None:
    """NatureCNN and CombinedExtractor with the same weights; ours has the numbers before the images."""
    theirs: Any = NatureCNN(spaces.Box(0, 255, (2, 36, 37), np.uint8))
    ours = made("nature").features
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    obs = sample_observations(IMAGE, 4)
    rows = torch.from_numpy(ObservationLayout(IMAGE).encode(obs))
    expected = theirs(torch.from_numpy(obs).movedim(-1, 1).float() / 255)
    torch.testing.assert_close(ours(rows), expected)
    space = spaces.Dict(a=spaces.Box(0, 255, (1, 36, 36), np.uint8), b=VECTOR)
    combined: Any = CombinedExtractor(space)
    policy = CnnPolicy(space, spaces.Discrete(2))
    names = policy.features.state_dict()
    policy.features.load_state_dict(dict(zip(names, combined.state_dict().values(), strict=True)))
    obs = sample_observations(space, 4)
    expected = combined({"a": torch.from_numpy(obs["a"]) / 255, "b": torch.from_numpy(obs["b"])})
    torch.testing.assert_close(policy.features(torch.from_numpy(policy.layout.encode(obs))), expected.roll(3, 1))
    assert [layer.out_features for layer in policy.actor_net if isinstance(layer, nn.Linear)] == [64, 64, 2]


def test_modules_with_convolutions_go_point_after_point_on_a_cpu() -> None:
    counted = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))  # whose buffers N passes would change N times
    assert convolves_on_cpu(made("nature"))
    assert not convolves_on_cpu(counted)
    assert not convolves_on_cpu(MlpPolicy(VECTOR, spaces.Discrete(2)))
    assert not convolves_on_cpu(nn.Conv2d(1, 1, 1, device="meta"))


def test_the_policy_of_the_documents() -> None:
    """It takes rows apart under vmap as well as point after point, and trains."""
    page = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text("utf-8")
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0], names)
    space = spaces.Dict(camera=spaces.Box(0, 255, (64, 64, 3), np.uint8), goal=spaces.Box(-1, 1, (2,)))
    policy = names["Navigator"](space, spaces.Discrete(3))
    rows = torch.from_numpy(ObservationLayout(space).encode(sample_observations(space, 4)))
    stacked = StackedPolicy(policy)
    stacked.examine(rows, critic=True)
    assert stacked.obstacle is None
    points = points_around(policy, 2)
    for n, given in enumerate(stacked.actor(points, rows.expand(2, -1, -1))):
        vector_to_parameters(points[n].clone(), policy.parameters())
        torch.testing.assert_close(given, policy.actor(rows), rtol=1e-4, atol=1e-5)


def test_orthogonal_initialisation() -> None:
    policy = made("apart")
    layers = [layer for layer in policy.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    heads = {policy.actor_net[0]: 0.01, policy.critic_net[0]: 1.0}
    for layer in layers:
        gain, weight = heads.get(layer, math.sqrt(2)), layer.weight.detach().flatten(1)
        gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), rtol=1e-4, atol=1e-4 * gain**2)
        assert not layer.bias.any()  # type: ignore[union-attr]


def test_initialisation_draws_from_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, second = (parameters_to_vector(made("nature").parameters()) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nature", ["features", "actor", "critic"]),
        ("apart", ["actor", "critic"]),
        ("actor alone", ["actor"]),
    ],
)
def test_groups_are_contiguous_and_hold_everything(name: str, expected: list[str]) -> None:
    policy = made(name)
    groups = policy.parameter_groups()
    assert [group for group, _ in groups] == expected
    assert [id(p) for _, part in groups for p in part] == [id(p) for p in policy.parameters()]


def test_the_least_images() -> None:
    """36 → (36 − 8)/4 + 1 = 8 → (8 − 4)/2 + 1 = 3 → 1, as in stable-baselines3; 7 → 3 → 1."""
    assert {name: smallest_image(name) for name in CNNS} == {"nature": 36, "small": 7}
    for name, least in (("nature", 36), ("small", 7)):
        CnnPolicy(spaces.Box(0, 255, (least, least, 1), np.uint8), spaces.Discrete(2), cnn=name, features_dim=2)
        small = spaces.Box(0, 255, (least, least - 1, 1), np.uint8)
        with pytest.raises(
            ConfigError, match=f"{least} × {least - 1} is too small .* takes {least} × {least} and more"
        ):
            CnnPolicy(small, spaces.Discrete(2), cnn=name)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"A CNN needs images .*, not Box"):
        CnnPolicy(VECTOR, spaces.Discrete(2))
    with pytest.raises(ConfigError, match="Unknown CNN 'large': choose one of nature, small"):
        CnnPolicy(IMAGE, spaces.Discrete(2), cnn="large")
    with pytest.raises(ConfigError, match="critic=False and has no values"):
        made("actor alone").critic(torch.zeros(1, 90, dtype=torch.uint8))


def test_an_mlp_gets_images_divided_by_255() -> None:
    policy = MlpPolicy(FIRST, spaces.Discrete(2), (4,))
    rows = torch.arange(90, dtype=torch.uint8)[None]
    expected = policy.actor_net(rows.float() / 255)
    torch.testing.assert_close(policy.actor(rows), expected)
    point = parameters_to_vector(policy.parameters())[None]
    torch.testing.assert_close(StackedPolicy(policy).actor(point, rows[None])[0], expected)
