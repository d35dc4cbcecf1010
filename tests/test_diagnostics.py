"""What a prediction can reach at most: two halves of a point's samples."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from optex_rl import TrainConfig, train
from optex_rl.agents import ActorCritic, Batch, MlpPolicy, StackedPolicy
from optex_rl.training.diagnostics import actor_first, ceiling, ceilings, halve

from .test_agents import BOX, OBS, list_final_rows

T, E = 7, 5


def window(N: int = 1) -> tuple[Batch, Tensor]:
    """Random experience of N points in an odd number of environments, and its dense successor observations."""
    generator = torch.Generator().manual_seed(3)
    terminated, truncated = (torch.rand(2, N, T, E, generator=generator) < 0.2).unbind()
    dense = torch.randn(N, T, E, 3, generator=generator)
    obs, actions = torch.randn(N, T, E, 3, generator=generator), torch.randn(N, T, E, 2, generator=generator)
    rewards = torch.randn(N, T, E, generator=generator)
    return Batch(obs, actions, rewards, terminated, truncated, *list_final_rows(terminated, truncated, dense)), dense


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_the_ceiling_is_what_the_truth_would_reach(noise: float) -> None:
    """With 10⁵ parameters the angles are those of the formula: no model of them, but a truth and two noisy halves."""
    generator = torch.Generator().manual_seed(0)
    truth, *halves = torch.randn(3, 10**5, generator=generator)
    one, other = (truth + noise * half for half in halves)
    found = ceiling(float(torch.cosine_similarity(one, other, dim=0)))
    assert found == pytest.approx(float(torch.cosine_similarity(truth, (one + other) / 2, dim=0)), abs=0.01)


def test_halves_that_disagree_leave_nothing_to_predict() -> None:
    assert ceiling(-0.2) == ceiling(0.0) == 0.0
    assert ceiling(1.0) == 1.0


def test_a_half_is_what_its_environments_alone_would_give() -> None:
    batch, dense = window(N=3)
    found = halve(batch)
    halves = [(n, columns) for columns in (slice(0, 2), slice(2, 4)) for n in range(3)]
    for row, (n, columns) in enumerate(halves):
        names = [name for name in Batch._fields if not name.startswith("final")]
        part = {name: getattr(batch, name)[n : n + 1, :, columns] for name in names}
        final_obs, final_index = list_final_rows(part["terminated"], part["truncated"], dense[n : n + 1, :, columns])
        for name, column in part.items():
            assert torch.equal(getattr(found, name)[row : row + 1], column)
        listed = found.final_index[row] >= 0
        order = found.final_index[row, listed].argsort()
        assert torch.equal(found.final_index[row, listed][order], final_index[0])
        assert torch.equal(found.final_obs[row, listed][order], final_obs[0])
        assert not found.final_obs[row, ~listed].any()


def test_equal_halves_have_the_ceiling_one_and_opposite_ones_zero() -> None:
    batch, _ = window()
    policy = MlpPolicy(OBS, BOX, (8,))
    apart = [{"params": parameters, "name": name} for name, parameters in policy.parameter_groups()]
    point = torch.nn.utils.parameters_to_vector(policy.parameters())[None]

    def found(second: Any, groups: list[dict[str, Any]] = apart) -> dict[str, float]:
        columns = {name: column[:, :, :2] for name, column in batch._asdict().items() if "final" not in name}
        columns["truncated"] = torch.zeros_like(columns["truncated"])
        columns["terminated"] = torch.ones_like(columns["terminated"])
        both = {name: torch.cat([column, second(name, column)], dim=2) for name, column in columns.items()}
        whole = Batch(**both, final_obs=torch.zeros(1, 0, 3), final_index=torch.zeros(1, 0, dtype=torch.int64))
        return ceilings(ActorCritic(ent_coef=0.0), StackedPolicy(policy), point, whole, groups)

    equal = found(lambda name, column: column)
    assert equal == pytest.approx({"ceiling": 1.0, "ceiling/actor": 1.0, "ceiling/critic": 1.0}, abs=1e-6)
    together = found(lambda name, column: column, [{"params": list(policy.parameters())}])
    assert together == pytest.approx({"ceiling": 1.0}, abs=1e-6)
    opposite = found(lambda name, column: -column if name == "rewards" else column)
    assert opposite["ceiling/actor"] == 0.0


def test_one_environment_has_no_halves() -> None:
    batch, _ = window()
    single = batch._replace(rewards=batch.rewards[:, :, :1])
    point = torch.zeros(1, 1)
    assert ceilings(ActorCritic(), StackedPolicy(MlpPolicy(OBS, BOX, (8,))), point, single, []) == {}


def test_the_actor_is_first() -> None:
    apart = {"steps": 4.0, "cosine": 1.0, "cosine/actor": 0.1, "cosine/critic": 1.0}
    assert list(actor_first(apart, "cosine").items()) == [
        *(("cosine", 0.1), ("steps", 4.0), ("cosine/all", 1.0), ("cosine/critic", 1.0))
    ]
    assert actor_first({"cosine": 0.3}, "cosine") == {"cosine": 0.3}


def test_the_ceiling_is_told_with_evaluations_and_changes_nothing() -> None:
    options: dict[str, Any] = {"n_envs": 4, "n_steps": 32, "iterations": 6, "net_arch": (16,), "eval_episodes": 2}
    quiet: dict[str, Any] = {"progress_bar": False, "logdir": None}
    with_it, without = (train(TrainConfig(**options, **quiet, eval_freq=freq)) for freq in (3, 0))
    assert ["optex/ceiling" in row for row in with_it.rows] == [False, False, True, False, False, True]
    assert all(0.0 <= row["optex/ceiling"] <= 1.0 for row in with_it.rows if "optex/ceiling" in row)
    assert not any("ceiling" in name for row in without.rows for name in row)
    for one, other in zip(with_it.rows, without.rows, strict=True):
        assert all(one[name] == value or math.isnan(value) for name, value in other.items() if "time" not in name)
