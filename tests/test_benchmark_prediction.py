"""How well gradients are predicted: cosines against naive loops, and a run that the measurement leaves alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from optex_rl import TrainConfig
from optex_rl.training import Trainer, fuse
from scripts.benchmark_prediction import Measuring, compare, cosine_with_rest, follow, pairwise_cosine


def test_cosines_equal_naive_loops() -> None:
    gradients = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(gradients, 2)]
    assert pairwise_cosine(gradients) == pytest.approx(float(torch.stack(pairs).mean()))
    rest = [cosine_similarity(gradients[m], gradients[torch.arange(5) != m].mean(0), dim=0) for m in range(5)]
    assert cosine_with_rest(gradients) == pytest.approx(float(torch.stack(rest).mean()))


def test_a_gradient_that_turns_by_a_right_angle() -> None:
    # Without noise: the truth is (1, 0), (1, 1), (0, 1) at the three points. The posterior knows it at the first two,
    # the newest known gradient is (0, 1), the mean of the history is along (1, 1).
    truth = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    figures = compare(truth.expand(4, 3, 2), truth[:2], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    half = 0.5**0.5
    assert figures[:3] == pytest.approx((1, 1, 1))
    assert figures.posterior == pytest.approx((1, 1))
    assert figures.last == pytest.approx((0, half))
    assert figures.mean == pytest.approx((half, 1))
    assert figures.turn == pytest.approx(0)


def test_repeated_evaluations_differ_and_leave_no_trace_in_the_run() -> None:
    config = TrainConfig.recommended("Pendulum-v1", "a2c", logdir=None, n_envs=2, n_steps=20, parallelism=2)
    seen: list[torch.Tensor] = []

    def measuring(*given: Any) -> Measuring:
        evaluator = Measuring(fuse(*given), [2], 3, 20)
        evaluator.measure = lambda number, gradients: seen.append(gradients)
        return evaluator

    trainers = Trainer(config), Trainer(config, make_evaluator=measuring)
    for trainer in trainers:
        for _ in range(3):
            trainer.iterate()
        trainer.close()
    (gradients,) = seen
    assert gradients.shape[:2] == (3, 2)
    assert not torch.equal(gradients[0], gradients[1])
    plain, looked_at = (trainer.optimizer.ask() for trainer in trainers)
    assert torch.equal(plain, looked_at)


def test_each_stage_and_part_has_its_figures() -> None:
    config = TrainConfig(logdir=None, n_envs=2, n_steps=16, parallelism=3)
    figures = follow(config, [2, 4], 3)
    assert list(figures) == [(2, "actor"), (2, "critic"), (4, "actor"), (4, "critic")]
    for row in figures.values():
        flat = torch.tensor([v for value in row for v in (value if isinstance(value, tuple) else (value,))])
        assert (flat.abs() <= 1 + 1e-5).all(), "a cosine, and no NaN"
