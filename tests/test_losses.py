"""Losses worked by hand, their gradients, and the independence of the points."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from optex_rl.agents.losses import entropy_loss, explained_variance, policy_gradient_loss, value_loss
from optex_rl.common.errors import ConfigError


def test_policy_gradient_loss_by_hand() -> None:
    # Point 0: −(2·(−1) + 1·(−3)) / 2 = 2.5.  Point 1: −(0·(−1) + (−4)·(−2)) / 2 = −4.
    log_probs = torch.tensor([[-1.0, -3.0], [-1.0, -2.0]])
    advantages = torch.tensor([[2.0, 1.0], [0.0, -4.0]])
    assert policy_gradient_loss(log_probs, advantages).tolist() == [2.5, -4.0]


def test_value_loss_by_hand() -> None:
    # Point 0: (1² + 3²) / 2 = 5, without a factor ½.  Point 1: exact.
    values, returns = torch.tensor([[1.0, 2.0], [7.0, 8.0]]), torch.tensor([[2.0, 5.0], [7.0, 8.0]])
    assert value_loss(values, returns).tolist() == [5.0, 0.0]


def test_entropy_loss_by_hand() -> None:
    assert entropy_loss(torch.tensor([[1.0, 3.0], [0.0, 0.5]])).tolist() == [-2.0, -0.25]


def test_gradient_descends_towards_good_actions_and_leaves_constants_alone() -> None:
    # ∂/∂log π = −A/B: a positive advantage is made more likely.
    log_probs = torch.zeros(1, 2, requires_grad=True)
    advantages = torch.tensor([[3.0, -1.0]], requires_grad=True)
    loss = policy_gradient_loss(log_probs, advantages).sum()
    gradient, none = torch.autograd.grad(loss, (log_probs, advantages), allow_unused=True)
    assert gradient.tolist() == [[-1.5, 0.5]]
    assert none is None


def test_targets_of_the_critic_are_constants() -> None:
    values, returns = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    gradient, none = torch.autograd.grad(value_loss(values, returns).sum(), (values, returns), allow_unused=True)
    assert gradient.tolist() == [[-1.0, -1.0]]
    assert none is None


def test_explained_variance_by_hand() -> None:
    # R = (0, 2) has variance 1. Perfect: 1. Constant: 0. Residual (0, 1), variance ¼: ¾. Residual (−2, 2): 1 − 4 = −3.
    values = torch.tensor([[0.0, 2.0], [5.0, 5.0], [0.0, 1.0], [2.0, 0.0]])
    returns = torch.tensor([[0.0, 2.0]]).expand(4, 2)
    torch.testing.assert_close(explained_variance(values, returns), torch.tensor([1.0, 0.0, 0.75, -3.0]))


def test_explained_variance_of_constant_returns_is_zero_not_nan() -> None:
    assert explained_variance(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 3.0]])).tolist() == [0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: policy_gradient_loss(torch.zeros(2, 3), torch.zeros(2, 4)),
            r"log_probs \[2, 3\], advantages \[2, 4\]",
        ),
        (lambda: policy_gradient_loss(torch.zeros(3), torch.zeros(3)), r"one shape \[N, B\]"),
        (lambda: value_loss(torch.zeros(2, 0), torch.zeros(2, 0)), r"without empty axes, got values \[2, 0\]"),
        (lambda: value_loss(torch.zeros(2, 3), torch.zeros(2, 3).long()), r"floating-point.*returns torch\.int64"),
        (lambda: entropy_loss(torch.zeros(2, 3, 4)), r"got entropies \[2, 3, 4\]"),
        (lambda: explained_variance(torch.zeros(2, 3), torch.zeros(3, 2)), r"values \[2, 3\], returns \[3, 2\]"),
    ],
)
def test_wrong_shapes_and_dtypes_are_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
