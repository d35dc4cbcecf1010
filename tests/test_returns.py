"""Hand-worked windows, a naive loop in float64, and stable-baselines3's buffer as oracles of returns and advantages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from optex_rl.agents.returns import discounted_returns, gae, normalize_advantages, successor_values
from optex_rl.common.errors import ConfigError


def column(*numbers: float) -> Tensor:
    """One environment of one point: [1, T, 1]."""
    return torch.tensor(numbers, dtype=torch.float64).view(1, -1, 1)


def flags(*steps: int, T: int) -> Tensor:
    """[1, T, 1] with True at `steps`."""
    return torch.tensor([step in steps for step in range(T)]).view(1, T, 1)


def random_window(N: int, T: int, E: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(N * 10_000 + T * 100 + E)
    floats = {
        name: torch.randn(N, T, E, generator=generator, dtype=dtype) for name in ("rewards", "values", "next_values")
    }
    ends = {name: torch.rand(N, T, E, generator=generator) < 0.2 for name in ("terminated", "truncated")}
    return {**floats, **ends}


def naive_returns(window: dict[str, Tensor], gamma: float) -> Tensor:
    rewards, tails = window["rewards"], window["next_values"]
    result = torch.zeros_like(rewards)
    N, T, E = rewards.shape
    for n in range(N):
        for e in range(E):
            for t in reversed(range(T)):
                if window["terminated"][n, t, e]:
                    following = 0.0
                elif window["truncated"][n, t, e] or t == T - 1:
                    following = float(tails[n, t, e])
                else:
                    following = float(result[n, t + 1, e])
                result[n, t, e] = float(rewards[n, t, e]) + gamma * following
    return result


def naive_gae(window: dict[str, Tensor], gamma: float, gae_lambda: float) -> Tensor:
    """The sum of (γλ)^l δ_{t+l} as it is defined, without a recursion."""
    rewards, values = window["rewards"], window["values"]
    result = torch.zeros_like(rewards)
    N, T, E = rewards.shape
    for n in range(N):
        for e in range(E):
            for start in range(T):
                total = 0.0
                for t in range(start, T):
                    terminated = bool(window["terminated"][n, t, e])
                    following = 0.0 if terminated else float(window["next_values"][n, t, e])
                    delta = float(rewards[n, t, e]) + gamma * following - float(values[n, t, e])
                    total += (gamma * gae_lambda) ** (t - start) * delta
                    if terminated or window["truncated"][n, t, e]:
                        break
                result[n, start, e] = total
    return result


def test_discounted_returns_terminated_truncated_and_last_step() -> None:
    # γ = 1/2, next value 8 everywhere (it must matter at the truncation and at the last step only).
    # t = 6 (last):        7 + 8/2  = 11
    # t = 5 (truncated):   6 + 8/2  = 10
    # t = 4:               5 + 10/2 = 10
    # t = 3 (both):        4                    terminated wins
    # t = 2:               3 + 4/2  = 5
    # t = 1 (terminated):  2
    # t = 0:               1 + 2/2  = 2
    returns = discounted_returns(
        rewards=column(1, 2, 3, 4, 5, 6, 7),
        next_values=column(*[8] * 7),
        terminated=flags(1, 3, T=7),
        truncated=flags(3, 5, T=7),
        gamma=0.5,
    )
    torch.testing.assert_close(returns, column(2, 2, 5, 4, 10, 10, 11), rtol=0, atol=0)


def test_gae_terminated_truncated_and_last_step() -> None:
    # γ = 1/2, λ = 1/2, so γλ = 1/4; V = 2; next value 4, hence δ = r + 2 − 2 = r, and r − 2 where terminated.
    # t = 5 (last):        A = 8
    # t = 4:               A = 4 + 8/4   = 6
    # t = 3 (truncated):   A = 4                  bootstrapped, but the episode's sum ends
    # t = 2 (both):        A = 4 − 2     = 2      terminated wins
    # t = 1:               A = 4 + 2/4   = 4.5
    # t = 0 (terminated):  A = 4 − 2     = 2
    advantages = gae(
        rewards=column(4, 4, 4, 4, 4, 8),
        values=column(*[2] * 6),
        next_values=column(*[4] * 6),
        terminated=flags(0, 2, T=6),
        truncated=flags(2, 3, T=6),
        gamma=0.5,
        gae_lambda=0.5,
    )
    torch.testing.assert_close(advantages, column(2, 4.5, 2, 4, 6, 8), rtol=0, atol=0)


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 8, 13, 33])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_agrees_with_naive_loops(T: int, gamma: float, gae_lambda: float) -> None:
    window = random_window(2, T, 3)
    ends = {name: window[name] for name in ("rewards", "next_values", "terminated", "truncated")}
    torch.testing.assert_close(discounted_returns(**ends, gamma=gamma), naive_returns(window, gamma))
    torch.testing.assert_close(gae(**window, gamma=gamma, gae_lambda=gae_lambda), naive_gae(window, gamma, gae_lambda))


def test_float32_is_accurate_over_a_long_window() -> None:
    window = random_window(1, 1000, 2, torch.float32)
    window["terminated"][:], window["truncated"][:] = False, False
    double = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in window.items()}
    single, exact = (gae(**given, gamma=0.999, gae_lambda=0.99) for given in (window, double))
    assert single.dtype == torch.float32
    assert (single - exact).abs().max() < 1e-5 * exact.abs().max()


def test_inputs_are_left_alone() -> None:
    window = random_window(2, 6, 3)
    copies = {name: tensor.clone() for name, tensor in window.items()}
    gae(**window, gamma=0.9, gae_lambda=0.9)
    window_of_returns = {name: tensor for name, tensor in window.items() if name != "values"}
    discounted_returns(**window_of_returns, gamma=0.9)
    assert all(torch.equal(window[name], copies[name]) for name in window)


def test_values_after_a_termination_may_be_nan() -> None:
    window = random_window(1, 8, 2)
    window["next_values"][window["terminated"]] = torch.nan
    assert gae(**window, gamma=0.9, gae_lambda=0.9).isfinite().all()


def test_gae_equals_the_buffer_of_stable_baselines3() -> None:
    # SB3 keeps no truncation flag: it adds γ·V(final observation) to the reward of a truncated step beforehand.
    T, E, gamma, gae_lambda = 20, 4, 0.98, 0.9
    window = random_window(1, T, E)
    window["truncated"] &= ~window["terminated"]
    final_values = window["next_values"][0].clone()
    ends = window["terminated"] | window["truncated"]
    window["next_values"][:, :-1] = torch.where(ends, window["next_values"], window["values"].roll(-1, 1))[:, :-1]

    space = gymnasium.spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(T, space, space, gae_lambda=gae_lambda, gamma=gamma, n_envs=E)
    buffer.rewards = (window["rewards"] + gamma * final_values * window["truncated"])[0].numpy()
    buffer.values = window["values"][0].numpy()
    buffer.episode_starts = np.concatenate([np.zeros((1, E)), ends[0, :-1].numpy()]).astype(np.float32)
    buffer.advantages = np.zeros((T, E))
    buffer.compute_returns_and_advantage(final_values[-1], ends[0, -1].numpy())

    advantages = gae(**window, gamma=gamma, gae_lambda=gae_lambda)[0]
    torch.testing.assert_close(advantages, torch.as_tensor(buffer.advantages), rtol=1e-6, atol=1e-6)


def test_normalised_advantages_have_unit_standard_deviation_for_each_point() -> None:
    scale = torch.tensor([1.0, 100.0, 1e-3]).view(3, 1, 1)
    advantages = scale * (5 + random_window(3, 16, 4, torch.float32)["rewards"])
    normal = normalize_advantages(advantages)
    torch.testing.assert_close(normal.mean(dim=(1, 2)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(normal.std(dim=(1, 2)), torch.ones(3), rtol=1e-4, atol=0)
    torch.testing.assert_close(normalize_advantages(advantages[1:2]), normal[1:2])


def test_normalising_by_hand() -> None:
    # Mean 2, unbiased variance ((−1)² + 0² + 1²) / 2 = 1.
    torch.testing.assert_close(normalize_advantages(column(1, 2, 3)), column(-1, 0, 1))


def test_equal_advantages_normalise_to_zero() -> None:
    assert torch.equal(normalize_advantages(torch.full((1, 4, 2), 3.0)), torch.zeros(1, 4, 2))


def test_successor_values_come_from_the_next_row_or_the_list() -> None:
    # T = 3, E = 2, values 10·t + e. Row (1, 0) = flat 2 was truncated; of the last row (flat 4 and 5) only
    # environment 0 goes on, environment 1 terminated. The last entry is padding.
    values = torch.tensor([[[0.0, 1.0], [10.0, 11.0], [20.0, 21.0]]])
    following = successor_values(values, torch.tensor([[-7.0, -9.0, 99.0]]), torch.tensor([[2, 4, -1]]))
    assert torch.equal(following, torch.tensor([[[10.0, 11.0], [-7.0, 21.0], [-9.0, 0.0]]]))


def test_successor_values_without_any_listed_row() -> None:
    following = successor_values(torch.ones(2, 1, 3), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int64))
    assert torch.equal(following, torch.zeros(2, 1, 3))


def window_with(**changes: Tensor) -> dict[str, Any]:
    return {**random_window(2, 5, 3), **changes, "gamma": 0.9, "gae_lambda": 0.9}


def flat_window() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Without the axis of the points."""
    zeros = torch.zeros(5, 3)
    return zeros, zeros, zeros > 0, zeros > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gae(**window_with(values=torch.zeros(2, 5, 4).double())), r"rewards \[2, 5, 3\], values \[2, 5, 4\]"),
        (lambda: gae(**window_with(values=torch.zeros(2, 5, 3))), r"one floating-point dtype.*values torch\.float32"),
        (lambda: gae(**window_with(terminated=torch.zeros(2, 5, 3))), r"dtype torch\.bool, got terminated torch\.f"),
        (lambda: discounted_returns(*flat_window(), 0.9), r"one shape \[N, T, E\].*, got rewards \[5, 3\]"),
        (lambda: normalize_advantages(torch.zeros(2, 0, 3)), r"without empty axes, got advantages \[2, 0, 3\]"),
        (lambda: normalize_advantages(torch.zeros(2, 1, 1)), r"\[2, 1, 1\] cannot be normalised.*at least 2 samples"),
        (
            lambda: successor_values(torch.zeros(2, 5, 3), torch.zeros(2, 1), torch.zeros(2, 2)),
            r"final_values \[2, 1\] and final_index \[2, 2\] must both be \[N=2, K\]",
        ),
    ],
)
def test_wrong_shapes_and_dtypes_are_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
