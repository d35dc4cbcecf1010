"""Supervised learning (Shu et al., NeurIPS 2024, arXiv 2402.11427, Fig. 4), and two examples of second-order methods.

    python -m scripts.benchmark_supervised --task digits
    python -m scripts.benchmark_supervised --task cifar10 --data FOLDER       # data_batch_1.bin … test_batch.bin
    python -m scripts.benchmark_supervised --task shakespeare --data FILE     # any text in UTF-8
    python -m scripts.benchmark_supervised --task clicks [--data FILE]        # Criteo's format; else a synthetic sample
    python -m scripts.benchmark_supervised --task pinn

digits, cifar10, shakespeare: Adam in vanilla, target, data-parallel and OptEx. clicks: AdaGrad likewise, and
AdaHessian. pinn: a differential equation, without batches; Adam likewise, torch's and SciPy's L-BFGS, whose iterations
are evaluations of loss and gradient, one after the other, and SciPy's Gauss-Newton, whose iterations are evaluations
of residuals and Jacobian.

Every evaluation has its own batch. Curves and table show the loss on a fixed part of the training data and the
error on held-out data (pinn: the relative error of the solution). For every method and learning rate, medians over
seeds: both at the end, the sequential iterations to the loss where vanilla ended (at that of its rates which ends
lowest), how many times fewer than vanilla's own that is, the CPU seconds it took, how many seeds got there, and
the time of an iteration. One thread computes everything, including the N evaluations.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from optex_rl import ConfigError, OptExError

from .baselines import adahessian, gauss_newton, quasi_newton
from .curves import Curve, baselines, optex, record, run
from .datasets import Dataset, Split, load_digits, read_cifar10, read_criteo, read_text, write_clicks
from .models import CharacterTransformer, ClickModel, ImageClassifier, mlp
from .problems import Classification, ModuleProblem, Poisson
from .reports import Cells, at_least, best_rates, draw, header, panel, table

Make = Callable[[int], ModuleProblem]  # from a seed


def initial(model: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model with the initial parameters of a seed; the global random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model()


def by_batches(data: Dataset, model: Callable[[], nn.Module], batch_size: int, shown: int = 2000) -> Make:
    """Classification with random batches of a data set."""

    def make(seed: int) -> ModuleProblem:
        generator = torch.Generator().manual_seed(seed)

        def draw_batch() -> Split:
            return data.train.rows(torch.randint(len(data.train.targets), (batch_size,), generator=generator))

        first = torch.arange(shown)
        train, held_out = (split.rows(first[: len(split.targets)]) for split in data)
        return Classification(initial(model, seed), draw_batch, train, held_out)

    return make


def digits(options: argparse.Namespace) -> Make:
    """A small MLP on scikit-learn's digits."""
    return by_batches(load_digits(), lambda: mlp(64, 64, 64, 10), options.batch_size)


def cifar10(options: argparse.Namespace) -> Make:
    """An image classifier with 2.4 M parameters."""
    return by_batches(read_cifar10(needed(options)), ImageClassifier, options.batch_size)


def clicks(options: argparse.Namespace, buckets: int = 1000) -> Make:
    """A click-through model on a file in Criteo's format, or a sample that is made up."""
    if options.data:
        data = read_criteo(options.data, buckets)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clicks.txt"
            write_clicks(path, 20_000)
            data = read_criteo(path, buckets)
    return by_batches(data, lambda: ClickModel(buckets), options.batch_size)


def shakespeare(options: argparse.Namespace, shown: int = 32) -> Make:
    """A character transformer with 1.6 M parameters."""
    train, held_out = read_text(needed(options))
    context: int = options.context
    if context >= len(held_out.characters):
        raise ConfigError(f"--context must be below the {len(held_out.characters)} held-out characters, got {context}")

    def make(seed: int) -> ModuleProblem:
        generator = torch.Generator().manual_seed(seed)

        def draw_batch() -> Split:
            starts = torch.randint(len(train.characters) - context, (options.batch_size,), generator=generator)
            return train.windows(starts, context)

        spread = [torch.linspace(0, len(text.characters) - context - 1, shown).long() for text in (train, held_out)]
        model = initial(lambda: CharacterTransformer(len(train.alphabet), context), seed)
        return Classification(
            model, draw_batch, train.windows(spread[0], context), held_out.windows(spread[1], context)
        )

    return make


def poisson(seed: int) -> Poisson:
    """A physics-informed network in double precision."""
    return Poisson(initial(lambda: mlp(1, 32, 32, 1, activation=nn.Tanh), seed).double())


def pinn(options: argparse.Namespace) -> Make:
    """A physics-informed network; there are no options."""
    return poisson


def needed(options: argparse.Namespace) -> Path:
    """The path of the data.

    Raises:
        ConfigError: it was not given.
    """
    if options.data is None:
        raise ConfigError(f"--task {options.task} needs --data: this project holds no data sets")
    path: Path = options.data
    return path


@dataclass(frozen=True)
class Task:
    """A task, and the defaults of its flags."""

    problem: Callable[[argparse.Namespace], Make]
    base: str = "adam"
    learning_rates: Sequence[float] = (1e-3, 3e-3, 1e-2)
    iterations: int = 100
    every: int = 1
    batch_size: int = 128


TASKS = {
    "digits": Task(digits, learning_rates=(3e-3, 1e-2, 3e-2, 1e-1)),
    "cifar10": Task(cifar10, learning_rates=(3e-4, 1e-3, 3e-3), iterations=300, every=10),
    "shakespeare": Task(shakespeare, learning_rates=(3e-4, 1e-3, 3e-3), iterations=80, every=5, batch_size=4),
    "clicks": Task(clicks, base="adagrad", learning_rates=(0.03, 0.1, 0.3), iterations=60, every=5),
    "pinn": Task(pinn, learning_rates=(3e-3, 1e-2, 3e-2), iterations=300, every=5),
}


def measure(make: Make, options: argparse.Namespace) -> Cells:
    """Every method at every learning rate with every seed, and the baselines of the task."""
    N, T, every, seeds = options.parallelism, options.iterations, options.every, range(options.seeds)
    cells: Cells = {}
    for method in [*baselines(N), optex(N, "refine"), optex(N, "last")]:
        if options.task == "pinn" and method.samples > 1:
            continue  # the same evaluation N times
        for rate in options.learning_rates:
            arguments = {"base": options.base, "lr": rate, "history_size": options.history_size}
            cells[method.name, rate] = [run(method, make(seed), T, every=every, **arguments) for seed in seeds]
    if options.task == "clicks" and find_spec("pytorch_optimizer") is None:
        print('AdaHessian is left out; to include it, install the extra: pip install -e ".[optimizers]"\n')
    elif options.task == "clicks":
        for rate in options.learning_rates:
            cells["AdaHessian", rate] = [run_adahessian(make(seed), T, every, rate, seed) for seed in seeds]
    if options.task == "pinn":
        cells |= quasi_newton(make, options.seeds, T)
        cells["Gauss-Newton, SciPy", 1.0] = [poisson_by_gauss_newton(seed, T) for seed in seeds]
    return cells


def poisson_by_gauss_newton(seed: int, evaluations: int) -> Curve:
    """The curve of Gauss-Newton."""
    problem = poisson(seed)
    return gauss_newton(
        problem,
        lambda point: problem.residuals(problem.call_at(point)),
        lambda point: problem.jacobian_at(point).numpy(),
        evaluations,
    )


def run_adahessian(problem: ModuleProblem, iterations: int, every: int, lr: float, seed: int) -> Curve:
    """The curve of AdaHessian."""
    return record(adahessian(problem, lr, seed), problem, iterations, every)


def flags() -> argparse.ArgumentParser:
    """The command line; what is left out is taken from the task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--data", type=Path, help="file or folder with the data")
    parser.add_argument("--parallelism", type=at_least(2), default=4)
    parser.add_argument("--history-size", type=at_least(2), default=20)
    parser.add_argument("--base")
    parser.add_argument("--learning-rates", type=float, nargs="+", help="each method runs at each rate")
    parser.add_argument("--iterations", type=at_least(1))
    parser.add_argument("--every", type=at_least(1), help="iterations between two points of the curve")
    parser.add_argument("--batch-size", type=at_least(1))
    parser.add_argument("--context", type=at_least(1), default=64, help="characters that the transformer sees")
    parser.add_argument("--seeds", type=at_least(1), default=3)
    parser.add_argument("--output", type=Path, help="image file")
    return parser


def main() -> None:
    """Parse the flags, run, print a Markdown table and draw the plot."""
    parser = flags()
    options = parser.parse_args()
    task = TASKS[options.task]
    for name in ("base", "learning_rates", "iterations", "every", "batch_size"):
        if getattr(options, name) is None:
            setattr(options, name, getattr(task, name))
    torch.set_num_threads(1)
    try:
        make = task.problem(options)
        d = sum(p.numel() for p in make(0).parameters)
        print(f"d = {d:,}, N = {options.parallelism}, T0 = {options.history_size}, {options.base}\n", flush=True)
        cells = measure(make, options)
        print(header("task", ["loss", "error"], "vanilla"))
        print(table(options.task, cells))
        if options.output:
            best = best_rates(cells)
            loss, error = (panel(options.task, name, best, k) for k, name in enumerate(("loss", "error")))
            draw([loss, error, panel(options.task, "loss", best, time=True)], options.output)
    except OptExError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
