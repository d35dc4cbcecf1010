"""How well the next gradients are predicted, compared with fresh evaluations, by stage of training.

    python -m scripts.benchmark_prediction
    python -m scripts.benchmark_prediction --envs CartPole-v1 --stages 2 5 10 --seeds 10

A run with the presets of the actor-critic is stopped before the iterations ``--stages``. Its N points are evaluated
``--evaluations`` times, each time with new experience, without changing the run. The *truth* at a point is the
mean of these gradients; when one of them is compared with it, that one is left out of the mean. All figures are
cosines, for each part of the policy that a point contains (with a shared critic, the actor alone); medians
over seeds:

- *fresh, fresh*: two gradients of one point with each other; *halves*: the means of two halves of them, which says how
  well the truth itself is known;
- *fresh*: one gradient with the truth, at the iterate: the evaluation that a prediction replaces;
- *posterior*, *last*, *mean*: the posterior mean, the newest gradient and the mean of the history, before any of the
  evaluations, with the truth at the first point and at the last from which a step starts;
- *turn*: the truth at the first point with that at the last one: how far the gradient turns within the chain.
"""

from __future__ import annotations

import argparse
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from optex_rl import TrainConfig
from optex_rl.training import Trainer, fuse
from optex_rl.training.rollouts.evaluator import Evaluation, Evaluator, Prepare

from .reports import at_least

TASKS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1", "LunarLander-v3"]


class Figures(NamedTuple):
    """Cosines of one part of the policy at one stage; pairs are at the first point and the last with a prediction."""

    fresh_fresh: float
    halves: float
    fresh: float
    posterior: tuple[float, float]
    last: tuple[float, float]
    mean: tuple[float, float]
    turn: float


def pairwise_cosine(gradients: Tensor) -> float:
    """Mean cosine over all pairs of different rows of ``gradients [M, d]``."""
    unit = torch.nn.functional.normalize(gradients, dim=1)
    M = len(unit)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (M * (M - 1)))


def cosine_with_rest(gradients: Tensor) -> float:
    """Mean cosine of each row of ``gradients [M, d]`` with the mean of the others."""
    rest = (gradients.sum(0) - gradients) / (len(gradients) - 1)
    return float(cosine_similarity(gradients, rest, dim=1).mean())


def compare(gradients: Tensor, posterior: Tensor, known: Tensor) -> Figures:
    """The figures of one part of the policy.

    Args:
        gradients: ``[M, N, d]``, M evaluations of N points.
        posterior: ``[N − 1, d]``, posterior means at all points but the last, before these evaluations.
        known: ``[T, d]``, the gradients of the history, the newest last.
    """
    M = len(gradients)
    truth = gradients.mean(0)
    first, last = truth[0], truth[len(posterior) - 1]

    def at_both_ends(predictions: Tensor) -> tuple[float, float]:
        near, far = predictions[0], predictions[-1]
        return float(cosine_similarity(near, first, dim=0)), float(cosine_similarity(far, last, dim=0))

    return Figures(
        fresh_fresh=pairwise_cosine(gradients[:, 0]),
        halves=float(cosine_similarity(gradients[: M // 2, 0].mean(0), gradients[M // 2 :, 0].mean(0), dim=0)),
        fresh=cosine_with_rest(gradients[:, 0]),
        posterior=at_both_ends(posterior),
        last=at_both_ends(known[-1:]),
        mean=at_both_ends(known.mean(0, keepdim=True)),
        turn=float(cosine_similarity(first, truth[-1], dim=0)),
    )


class Measuring:
    """The evaluator in this process, which repeats some evaluations beforehand, without a trace in the run.

    Episodes continue from one repetition to the next. Tasks that are not native begin new ones afterwards.

    Args:
        inner: the evaluator.
        stages: numbers of the evaluations to repeat, from 1.
        evaluations: M, how often.
        history_size: of how many gradients the newest are kept.

    Attributes:
        known: the gradients ``[d]`` given out so far, the newest last.
        measure: called with the number of the evaluation and the gradients ``[M, N, d]`` of its repetitions.
    """

    def __init__(self, inner: Evaluator, stages: Sequence[int], evaluations: int, history_size: int) -> None:
        self.inner, self.stages, self.evaluations = inner, stages, evaluations
        self.known: deque[Tensor] = deque(maxlen=history_size)
        self.number = 0
        self.measure: Callable[[int, Tensor], None] = lambda number, gradients: None

    def __call__(self, points: Tensor, prepare: Prepare | None = None) -> Evaluation:
        """The evaluation of ``points [N, d]``."""
        self.number += 1
        if self.number in self.stages:
            self.measure(self.number, self.repeat(points))
        evaluation = self.inner(points, prepare)
        self.known.extend(evaluation.gradients)
        return evaluation

    def repeat(self, points: Tensor) -> Tensor:
        """Gradients ``[M, N, d]`` of M evaluations of ``points [N, d]``."""
        state, moments = self.inner.state_dict(), self.inner.normalizer.state_dict()
        gradients = torch.stack([self.inner(points).gradients for _ in range(self.evaluations)])
        self.inner.normalizer.load_state_dict(moments)
        self.inner.load_state_dict(state)
        return gradients

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def parts(trainer: Trainer) -> Iterator[tuple[str, slice]]:
    """Name and place in the flat vector of each part of the policy that the points consist of."""
    start = 0
    for group in trainer.optimizer.param_groups:
        length = sum(parameter.numel() for parameter in group["params"])
        yield group["name"], slice(start, start + length)
        start += length


def follow(config: TrainConfig, stages: Sequence[int], evaluations: int) -> dict[tuple[int, str], Figures]:
    """The figures of one run, by stage (an iteration, from 2 on) and part of the policy."""
    history_size = config.optex_options().history_size
    trainer = Trainer(config, make_evaluator=lambda *given: Measuring(fuse(*given), stages, evaluations, history_size))
    evaluator, figures = trainer.evaluator, {}
    assert isinstance(evaluator, Measuring)

    def measure(iteration: int, gradients: Tensor) -> None:
        proposal = trainer.optimizer._engine.proposal
        assert proposal is not None, "its points are being evaluated"
        known = torch.stack(list(evaluator.known))
        for name, part in parts(trainer):
            figures[iteration, name] = compare(gradients[..., part], proposal.estimates[:, part], known[:, part])

    evaluator.measure = measure
    for _ in range(max(stages)):
        trainer.iterate()
    trainer.close()
    return figures


def row(runs: Sequence[Figures]) -> str:
    """Cells of a Markdown table: medians over runs."""
    medians = [
        [statistics.median(column) for column in zip(*values, strict=True)]
        if isinstance(values[0], tuple)
        else [statistics.median(values)]
        for values in zip(*runs, strict=True)
    ]
    return " | ".join(" … ".join(f"{value:.2f}" for value in cell).replace("-", "−") for cell in medians)


def main() -> None:
    """Parse the flags, run, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=TASKS)
    parser.add_argument("--parallelism", type=at_least(2), default=4)
    parser.add_argument("--stages", type=at_least(2), nargs="+", default=[2, 5, 10, 20])
    parser.add_argument("--evaluations", type=at_least(2), default=16)
    parser.add_argument("--seeds", type=at_least(1), default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"N = {options.parallelism}, {options.evaluations} evaluations, {options.seeds} seeds\n")
    print("| task | iteration | part | fresh, fresh | halves | fresh | posterior | last | mean | turn |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for env in options.envs:
        shared = {"parallelism": options.parallelism, "logdir": None}
        configs = [TrainConfig.recommended(env, "a2c", seed=seed, **shared) for seed in range(options.seeds)]
        runs = [follow(config, options.stages, options.evaluations) for config in configs]
        for stage, part in runs[0]:
            print(f"| {env} | {stage} | {part} | {row([run[stage, part] for run in runs])} |", flush=True)


if __name__ == "__main__":
    main()
