"""Which spaces `train` takes, and what it says of others: those of stable-baselines3's A2C, and a few more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv

from optex_rl import ConfigError, ResumeWarning, TrainConfig, TrainResult, resume, train
from optex_rl.agents import CnnPolicy, MlpPolicy, ObservationLayout
from optex_rl.envs import make_vec
from optex_rl.training import Trainer
from optex_rl.training.rollouts.evaluation import evaluate_policy

from .helpers import registered, same

VECTOR, VECTOR64 = spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (2,), np.float64)
IMAGE, LAST = spaces.Box(0, 255, (1, 12, 13), np.uint8), spaces.Box(0, 255, (12, 12, 3), np.uint8)
MIXED = spaces.Dict(img=IMAGE, vec=VECTOR, discrete=spaces.Discrete(4))
OBSERVATIONS: dict[str, gymnasium.Space[Any]] = {
    "vector": VECTOR,
    "vector64": VECTOR64,
    "discrete": spaces.Discrete(5, start=2),
    "multi-discrete": spaces.MultiDiscrete([4, 3]),
    "multi-binary": spaces.MultiBinary(8),
    "multi-binary matrix": spaces.MultiBinary((3, 2)),
    "channels first": IMAGE,
    "channels last": LAST,
    "mixed": MIXED,
    "two images": spaces.Dict(a=IMAGE, b=LAST),
    "vectors": spaces.Dict(a=VECTOR, b=VECTOR64),
}
ACTIONS: dict[str, gymnasium.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "vector": VECTOR,
    "matrix": spaces.Box(-1, 1, (2, 2)),
    "vector64": VECTOR64,
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(4),
    "multi-binary matrix": spaces.MultiBinary((2, 3)),
}
SMALL: dict[str, Any] = {
    **{"parallelism": 2, "n_envs": 2, "n_steps": 8, "iterations": 2, "eval_freq": 2, "eval_episodes": 2},
    **{"logdir": None, "progress_bar": False, "cnn": "small", "features_dim": 8, "batch_size": 16, "n_epochs": 2},
}
APART: dict[str, Any] = {"n_critic_updates": 1, "share_features_extractor": False}


class Sampling(gymnasium.Env[Any, Any]):
    """Random observations, rewards by the action, episodes of nine steps; refuses actions not of its space."""

    def __init__(self, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.steps >= 9, False, {}


@contextmanager
def task(observations: gymnasium.Space[Any], actions: gymnasium.Space[Any]) -> Iterator[str]:
    with registered("OptexTest/Sampling-v0", lambda: Sampling(observations, actions)) as name:
        yield name


def run(observations: gymnasium.Space[Any], actions: gymnasium.Space[Any], **options: Any) -> TrainResult:
    with task(observations, actions) as name:
        result = train(TrainConfig(env=name, **SMALL | options))
        assert result.iterations == 2
        assert all(parameter.isfinite().all() for parameter in result.policy.parameters())
        returns = evaluate_policy(result.policy, make_vec(name, 3), 0, result.normalizer)
        assert len(returns) == 3
    return result


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observation_spaces(name: str) -> None:
    policy = run(OBSERVATIONS[name], spaces.Discrete(3)).policy
    has_images = name in ("channels first", "channels last", "mixed", "two images")
    assert type(policy) is (CnnPolicy if has_images else MlpPolicy)


@pytest.mark.parametrize("name", ACTIONS)
def test_action_spaces(name: str) -> None:
    run(VECTOR, ACTIONS[name])


@pytest.mark.parametrize("observations", ["vector", "vector64", "vectors"])
@pytest.mark.parametrize("actions", ["vector", "vector64", "matrix"])
@pytest.mark.parametrize("squash_output", [False, True])
def test_actions_of_either_precision(observations: str, actions: str, squash_output: bool) -> None:
    run(OBSERVATIONS[observations], ACTIONS[actions], squash_output=squash_output)


WIDE, FLAT = spaces.Box(0, 255, (40, 36, 38), np.uint8), spaces.Box(0, 1, (8, 8, 3))
MULTI = "MultiInputPolicy"
TAKEN: dict[str, tuple[str, type, Callable[[], gymnasium.Env[Any, Any]]]] = {
    "goals": (MULTI, MlpPolicy, lambda: BitFlippingEnv(n_bits=4)),
    "goals as numbers": (MULTI, MlpPolicy, lambda: BitFlippingEnv(n_bits=4, discrete_obs_space=True)),
    "goals as images": (MULTI, CnnPolicy, lambda: BitFlippingEnv(n_bits=4, image_obs_space=True)),
    "channels last": (MULTI, CnnPolicy, lambda: SimpleMultiObsEnv(channel_last=True)),
    "channels first": (MULTI, CnnPolicy, lambda: SimpleMultiObsEnv(channel_last=False, discrete_actions=False)),
    "frames": ("CnnPolicy", CnnPolicy, lambda: FakeImageEnv(screen_height=40, screen_width=40, n_channels=1)),
    "frames first": (
        "CnnPolicy",
        CnnPolicy,
        lambda: FakeImageEnv(screen_height=40, screen_width=41, channel_first=True),
    ),
    "wide": ("CnnPolicy", CnnPolicy, lambda: Sampling(WIDE, spaces.Discrete(2))),
    "an image of floats": ("MlpPolicy", MlpPolicy, lambda: Sampling(FLAT, spaces.Discrete(2))),
    "a matrix": ("MlpPolicy", MlpPolicy, lambda: Sampling(spaces.Box(-1, 1, (2, 3)), spaces.Box(-1, 1, (2, 2)))),
    "integers": (
        "MlpPolicy",
        MlpPolicy,
        lambda: Sampling(spaces.Box(0, 9, (3,), np.int64), spaces.MultiDiscrete([2, 3])),
    ),
}


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.filterwarnings("ignore:.* is taken to have|.* is flattened|Treating image|.*WARN|You have specified")
def test_what_stable_baselines3_takes_is_taken(name: str) -> None:
    policy, expected, make = TAKEN[name]
    A2C(policy, make(), n_steps=4, device="cpu", seed=0).learn(8)
    result = train(TrainConfig(env=make, **SMALL | {"eval_freq": 0, "n_steps": 4}))
    assert result.iterations == 2
    assert type(result.policy) is expected


@pytest.mark.parametrize("name", ["channels last", "channels first", "frames", "frames first"])
def test_frames_of_its_images_are_stacked(name: str) -> None:
    *_, make = TAKEN[name]
    policy = train(TrainConfig(env=make, frame_stack=3, **SMALL | {"eval_freq": 0, "n_steps": 4})).policy
    assert isinstance(policy, CnnPolicy)
    (image,) = policy.layout.images
    space = make().observation_space
    assert image.size == 3 * math.prod((space["img"] if isinstance(space, spaces.Dict) else space).shape or ())


def test_what_may_be_an_image_is_not_flattened_without_a_word() -> None:
    grey = spaces.Box(0, 255, (12, 12), np.uint8)
    for space, words in (
        (FLAT, r"^Box\(0\.0, 1\.0, \(8, 8, 3\), float32\) is flattened for an MLP: an image has three axes and dtype"),
        (grey, r"^Box\(0, 255, \(12, 12\), uint8\) is flattened for an MLP"),
        (spaces.Dict(vec=VECTOR, cam=FLAT), r"^'cam': Box.* is flattened for an MLP"),
        (
            spaces.Box(0, 255, (13, 12, 14), np.uint8),
            r"^the image of shape \[13, 12, 14\] is taken to have its channels in",
        ),
    ):
        with pytest.warns(UserWarning, match=words) as given:
            run(space, spaces.Discrete(2))
        assert given[0].filename == __file__  # where `train` is called
        run(space, spaces.Discrete(2), cnn="none")


def test_processes_step_dictionaries_as_one_does() -> None:
    found: list[Any] = []
    for backend in ("sync", "async"):
        make = lambda: Sampling(deepcopy(MIXED), ACTIONS["multi-binary"])  # noqa: E731
        with closing(make_vec(make, 2, backend=backend, seed=0)) as env:
            env.reset()
            steps = [env.step(np.ones((2, 4), np.int8)) for _ in range(10)]
        found.append([steps[0][0], steps[8][0], steps[8][4]["final_obs"], steps[9][0]])
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys() == MIXED.spaces.keys()
        assert all(np.array_equal(part, other[key]) for key, part in one.items())


@pytest.mark.parametrize("actions", ["vector", "multi-discrete", "multi-binary"])
@pytest.mark.parametrize("algo", ["ppo", "reinforce", "trpo"])
def test_agents(algo: str, actions: str) -> None:
    run(MIXED, ACTIONS[actions], algo=algo, **(APART if algo == "trpo" else {}))


@pytest.mark.parametrize("predictor", ["mean", "last"])
@pytest.mark.parametrize("blocks", ["joint", "groups"])
def test_predictors_and_blocks(predictor: str, blocks: str) -> None:
    run(MIXED, ACTIONS["multi-discrete"], predictor=predictor, blocks=blocks)


@pytest.mark.parametrize("method", ["vanilla", "target", "data-parallel"])
def test_methods(method: str) -> None:
    run(MIXED, ACTIONS["multi-binary"], method=method, **APART)


@pytest.mark.parametrize(
    "options", [{"optimizer": "kfac"}, {"optimizer": "natural"}, {"optimizer": "natural", **APART}]
)
def test_bases_that_know_the_policy(options: dict[str, Any]) -> None:
    run(MIXED, spaces.Box(-1, 1, (2,)), squash_output=True, **options)


def test_a_network_of_two_actors_choices_has_no_kfac() -> None:
    with pytest.raises(ConfigError, match="K-FAC knows Categorical and DiagonalGaussian, not MultiCategorical"):
        run(VECTOR, ACTIONS["multi-discrete"], optimizer="kfac")


class InDict(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Observations as the only part of a Dict."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict(vec=env.observation_space)

    def observation(self, observation: Any) -> Any:
        return {"vec": observation}


def test_a_dictionary_of_one_vector_is_that_vector() -> None:
    """The same networks, the same random numbers and the same run."""
    found = []
    for wrap in (lambda env: env, InDict):
        with registered("OptexTest/CartPole-v0", lambda wrap=wrap: wrap(gymnasium.make("CartPole-v1"))) as name:
            config = TrainConfig(env=name, **SMALL | {"normalize_obs": True, "n_steps": 32})
            found.append(dict(train(config).policy.state_dict()))
    assert same(*found)


@pytest.mark.parametrize("observations", ["mixed", "channels last"])
def test_a_run_is_reproduced(observations: str) -> None:
    first, second = (run(OBSERVATIONS[observations], ACTIONS["multi-discrete"]) for _ in range(2))
    assert same(dict(first.policy.state_dict()), dict(second.policy.state_dict()))


def test_a_dictionary_survives_a_resumption(tmp_path: Any) -> None:
    with task(MIXED, ACTIONS["multi-binary"]) as name:
        options = SMALL | {"logdir": str(tmp_path), "run_name": "run", "normalize_obs": True}
        first = train(TrainConfig(env=name, **options))
        assert first.run_dir is not None
        with pytest.warns(ResumeWarning, match="all episodes start over"):
            assert resume(first.run_dir, 3).iterations == 3


def test_only_the_numbers_of_a_box_are_normalised() -> None:
    space = spaces.Dict(img=IMAGE, vec=spaces.Box(-50, 100, (2,)), one=spaces.Discrete(4))
    with task(space, spaces.Discrete(2)) as name:
        trainer = Trainer(TrainConfig(env=name, normalize_obs=True, **SMALL | {"n_steps": 64}))
        trainer.iterate()
        batch = trainer.evaluator(trainer.optimizer.ask()).batch
    decoded = ObservationLayout(space).decode(batch.obs)
    assert decoded["vec"].mean().abs() < 0.2
    assert decoded["vec"].std() == pytest.approx(1, abs=0.1)
    assert set(decoded["one"].unique().tolist()) == {0.0, 1.0}
    assert decoded["img"].mean() == pytest.approx(0.5, abs=0.02)
    assert trainer.evaluator.normalizer.obs_moments.mean.shape == (2,)


@pytest.mark.parametrize(
    ("observations", "options", "message"),
    [
        (spaces.Tuple([VECTOR, VECTOR]), {}, r"^The observation space Tuple\(.*\) is not supported: use Box, Discrete"),
        (spaces.Dict(a=spaces.Dict(b=VECTOR)), {}, r"is not supported: what is in a Dict must be Box, Discrete, Multi"),
        (spaces.Dict(a=VECTOR, b=spaces.Text(3)), {}, "what is in a Dict must be"),
        (
            IMAGE,
            {"cnn": "nature"},
            "An image of 12 × 13 is too small for the CNN 'nature', which takes 36 × 36 and more",
        ),
        (
            IMAGE,
            {"normalize_obs": True},
            "normalize_obs must be false: it is for the numbers of a Box, and there are no",
        ),
        (spaces.Discrete(3), {"normalize_obs": True}, r"there are none in Discrete\(3\)"),
        (IMAGE, {"n_critic_updates": 1}, "n_critic_updates must be 0 where actor and critic share the CNN, got 1: set"),
        (VECTOR, {"squash_output": True}, "squash_output is for a Box of actions"),
        (VECTOR, {"cnn": "large"}, "cnn must be nature, small, none, got 'large'|cnn must be one of"),
    ],
)
def test_refusals(observations: gymnasium.Space[Any], options: dict[str, Any], message: str, tmp_path: Any) -> None:
    with task(observations, spaces.Discrete(2)) as name, pytest.raises(ConfigError, match=message):
        train(TrainConfig(env=name, **SMALL | {"logdir": str(tmp_path)} | options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("actions", [spaces.Box(0, 9, (2,), np.int64), spaces.Tuple([VECTOR]), spaces.Text(3)])
def test_refused_actions(actions: gymnasium.Space[Any], tmp_path: Any) -> None:
    message = r"^The action space .* is not supported: use Discrete, MultiDiscrete, Multi"
    with task(VECTOR, actions) as name, pytest.raises(ConfigError, match=message):
        train(TrainConfig(env=name, **SMALL | {"logdir": str(tmp_path)}))
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_found_beside_images() -> None:
    class Broken(Sampling):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            obs, *rest = super().step(action)
            obs["vec"][0] = np.nan
            return (obs, *rest)

    with registered("OptexTest/Broken-v0", lambda: Broken(MIXED, spaces.Discrete(2)), disable_env_checker=True) as name:
        trainer = Trainer(TrainConfig(env=name, **SMALL))
        assert trainer.evaluator(trainer.optimizer.ask()).broken.all()
    with task(MIXED, spaces.Discrete(2)) as name:
        trainer = Trainer(TrainConfig(env=name, **SMALL))
        assert not trainer.evaluator(trainer.optimizer.ask()).broken.any()
