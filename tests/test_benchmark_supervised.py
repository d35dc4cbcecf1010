"""Readers, models, problems, baselines and the command of scripts/benchmark_supervised.py."""

from __future__ import annotations

import itertools
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optex_rl import ConfigError
from scripts import benchmark_supervised
from scripts.baselines import adahessian, gauss_newton, hutchinson, lbfgs, lbfgsb
from scripts.benchmark_supervised import poisson_by_gauss_newton
from scripts.curves import Method, optex, record, run
from scripts.datasets import (
    CIFAR_RECORD,
    Split,
    load_digits,
    read_cifar10,
    read_cifar_file,
    read_criteo,
    read_text,
    write_clicks,
)
from scripts.models import CharacterTransformer, ClickModel, ImageClassifier, mlp
from scripts.problems import Call, Classification, ModuleProblem, Poisson


def cifar_folder(folder: Path) -> Path:
    """CIFAR-10's six files with two records each, whose labels count from 0 to 11, modulo 10."""
    names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    for number, name in enumerate(names):
        records = (bytes([(2 * number + k) % 10]) + random.Random(number).randbytes(CIFAR_RECORD - 1) for k in (0, 1))
        (folder / name).write_bytes(b"".join(records))
    return folder


def test_cifar_records_are_label_then_planes_then_rows(tmp_path: Path) -> None:
    pixels = bytearray(CIFAR_RECORD - 1)
    pixels[0], pixels[33], pixels[1024 + 2], pixels[3071] = 11, 22, 33, 44
    path = tmp_path / "batch.bin"
    path.write_bytes(bytes([7]) + bytes(pixels) + bytes([9]) + bytes(CIFAR_RECORD - 1))
    split = read_cifar_file(path)
    (images,) = split.inputs
    assert split.targets.tolist() == [7, 9]
    assert images.shape == (2, 3, 32, 32)
    assert [int(images[i]) for i in ((0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 2), (0, 2, 31, 31))] == [11, 22, 33, 44]
    assert int(images.sum()) == 110


def test_cifar_trains_on_five_files_and_holds_the_sixth_out(tmp_path: Path) -> None:
    data = read_cifar10(cifar_folder(tmp_path))
    assert data.train.targets.tolist() == list(range(10))
    assert data.held_out.targets.tolist() == [0, 1]
    assert data.train.inputs[0][9].flatten().tolist() == list((tmp_path / "data_batch_5.bin").read_bytes()[-3072:])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: unpack CIFAR-10's binary version into"),
        (b"", "records of 3073 bytes, it has 0 bytes"),
        (bytes(3072), "records of 3073 bytes, it has 3072 bytes"),
        (bytes([10]) + bytes(3072), "has the class 10; CIFAR-10's are 0 to 9"),
    ],
)
def test_a_file_that_is_not_of_cifar(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "data_batch_1.bin").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_cifar10(tmp_path)


def test_text_and_its_windows(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abc\n" * 500, encoding="utf-8")
    train, held_out = read_text(path)
    assert (train.alphabet, len(train.characters), len(held_out.characters)) == ("\nabc", 1800, 200)
    windows = train.windows(torch.tensor([0, 2]), 3)
    assert windows.inputs[0].tolist() == [[1, 2, 3], [3, 0, 1]]
    assert windows.targets.tolist() == [[2, 3, 0], [0, 1, 2]]


@pytest.mark.parametrize(("content", "said"), [(b"short", "at least 1000"), (b"\xff" * 2000, "UTF-8")])
def test_a_text_that_is_none(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_text(path)


def test_clicks_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "clicks.txt"
    first = ["1", "0", "2", "", "-3", *["0"] * 9, "0000000a", "", *["ffffffff"] * 24]
    path.write_text("\n".join(["\t".join(first)] * 5) + "\n")
    data = read_criteo(path, buckets=8)
    numbers, categories = data.train.inputs
    assert (numbers.shape, categories.shape, data.held_out.targets.tolist()) == ((4, 13), (4, 26), [1])
    assert numbers[0].tolist() == pytest.approx([0.0, math.log(3.0), 0.0, 0.0, *[0.0] * 9])
    # 10 mod 7 = 3 and 2³² − 1 mod 7 = 3, each plus 1; an empty one is 0.
    assert categories[0].tolist() == [4, 0, *[4] * 24]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no file of clicks"),
        ("", "holds no clicks"),
        ("2" + "\t" * 39, "line 1: must be 0 or 1 and 39 fields"),
        ("0" + "\t" * 38, "line 1: must be 0 or 1 and 39 fields"),
        ("0\tx" + "\t" * 38, "no file of clicks: invalid literal"),
    ],
)
def test_a_file_that_holds_no_clicks(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "clicks.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_criteo(path, 100)


def test_the_made_up_clicks_can_be_read_and_learnt_from(tmp_path: Path) -> None:
    write_clicks(tmp_path / "clicks.txt", 2000)
    fields = [line.split("\t")[1:] for line in (tmp_path / "clicks.txt").read_text().splitlines()]
    assert sum(row.count("") for row in fields) / (2000 * 39) == pytest.approx(0.1, abs=0.01)
    train = read_criteo(tmp_path / "clicks.txt", 1000).train
    assert 0.2 < float(train.targets.double().mean()) < 0.8
    assert int(train.inputs[1].max()) < 1000
    # Least squares on the numbers alone explains some of the clicks: the labels are not a coin of their own.
    design = torch.cat([train.inputs[0], torch.ones(len(train.targets), 1)], 1)
    fitted = design @ torch.linalg.lstsq(design, train.targets.float()[:, None]).solution
    assert float(torch.corrcoef(torch.stack([fitted[:, 0], train.targets.float()]))[0, 1]) > 0.2


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_sizes_of_the_models() -> None:
    assert size(ImageClassifier()) == 2_401_626
    assert 1.55e6 < size(CharacterTransformer(65, 64)) < 1.65e6
    assert size(mlp(64, 64, 64, 10)) == 2 * 65 * 64 + 65 * 10


def test_the_transformer_does_not_see_the_future() -> None:
    model = CharacterTransformer(5, 8, width=12, heads=2, layers=2)
    characters = torch.randint(5, (3, 8), generator=torch.Generator().manual_seed(0))
    changed = characters.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 5
    before, after = model(characters), model(changed)
    assert before.shape == (3, 8, 5)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


def test_the_click_model_against_a_loop() -> None:
    model = ClickModel(buckets=7, width=4)
    generator = torch.Generator().manual_seed(0)
    numbers, categories = torch.rand(2, 13, generator=generator), torch.randint(7, (2, 26), generator=generator)
    logits = model(numbers, categories)
    for b in range(2):
        dense = model.bottom(numbers[b])
        vectors = [dense, *(model.tables[k, int(categories[b, k])] for k in range(26))]
        products = [vectors[i] @ vectors[j] for i in range(27) for j in range(i)]
        click = model.top(torch.cat([dense, torch.stack(products)]))
        assert logits[b].tolist() == pytest.approx([0.0, float(click.detach())], abs=1e-5)


def test_gradients_are_those_of_the_module() -> None:
    model = mlp(64, 8, 10)
    data = load_digits()
    batch = data.train.rows(torch.arange(5))
    problem = Classification(model, lambda: batch, batch, data.held_out)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    losses, gradients = problem.evaluate(torch.stack([torch.zeros_like(start), start]))
    loss = torch.nn.functional.cross_entropy(model(*batch.inputs), batch.targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert losses.tolist() == pytest.approx([math.log(10.0), float(loss.detach())])
    assert torch.allclose(gradients[1], torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert problem.values()[0] == pytest.approx(float(loss.detach()))


def test_the_error_counts_wrong_classes() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([0.0, 1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias + 0.0 * x

    held_out = Split((torch.zeros(4, 1),), torch.tensor([1, 0, 0, 1]))
    problem = Classification(Constant(), lambda: held_out, held_out, held_out)
    # The odds are e : 1, and half of the classes are 1.
    assert problem.values() == pytest.approx((math.log1p(math.e) - 0.5, 0.5))


def test_the_differential_equation_by_hand() -> None:
    problem = Poisson(mlp(1, 1).double(), points=5, weight=3.0)
    assert float(problem.loss(lambda x: torch.sin(2.0 * math.pi * x)).detach()) == pytest.approx(0.0, abs=1e-24)
    # u = x²: u″ = 2, the sines at 0, ¼, ½, ¾, 1 are 0, 1, 0, −1, 0, and u(1) = 1.
    c = 2.0 / (4.0 * math.pi**2)
    expected = (3 * c**2 + (c + 1.0) ** 2 + (c - 1.0) ** 2) / 5 + 3.0
    assert float(problem.loss(lambda x: x.square()).detach()) == pytest.approx(expected)


def test_the_residuals_of_the_differential_equation_and_their_jacobian() -> None:
    problem = Poisson(mlp(1, 3, 1, activation=nn.Tanh).double(), points=5)
    point = torch.cat([p.detach().flatten() for p in problem.parameters])
    residuals = problem.residuals(problem.call_at(point)).detach()
    assert float(residuals.square().sum()) == pytest.approx(problem.values()[0])
    step = 1e-6 * torch.eye(len(point), dtype=torch.float64)
    moved = [
        problem.residuals(problem.call_at(point + h)) - problem.residuals(problem.call_at(point - h)) for h in step
    ]
    torch.testing.assert_close(problem.jacobian_at(point), torch.stack(moved, 1).detach() / 2e-6, rtol=1e-5, atol=1e-8)


class Quadratic(ModuleProblem):
    """``½ Σ cᵢ θᵢ²``, ``c = 1, 2, 3``, from ``θ = (1, 1, 1)``."""

    def __init__(self) -> None:
        module = nn.ParameterList([nn.Parameter(torch.ones(2).double()), nn.Parameter(torch.ones(1).double())])
        super().__init__(module)
        self.evaluations = 0

    def loss(self, call: Call) -> Tensor:
        raise NotImplementedError

    def loss_at(self, point: Tensor) -> Tensor:
        self.evaluations += 1
        return 0.5 * (torch.tensor([1.0, 2.0, 3.0]) * point.square()).sum()

    def values(self) -> tuple[float, ...]:
        theta = torch.cat([p.detach() for p in self.parameters])
        return (float(0.5 * (torch.tensor([1.0, 2.0, 3.0]) * theta.square()).sum()),)


def test_hutchinson_over_all_signs_is_the_diagonal() -> None:
    A = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 4.0]])
    point = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(0.5 * point @ A @ point, point, create_graph=True)
    signs = [torch.tensor(z) for z in itertools.product((-1.0, 1.0), repeat=3)]
    estimates = [torch.autograd.grad(gradient, point, z, retain_graph=True)[0] * z for z in signs]
    assert torch.equal(hutchinson(gradient, point, signs[3]), estimates[3])
    assert torch.stack(estimates).mean(0).tolist() == pytest.approx([2.0, 3.0, 4.0])


def test_the_first_step_of_adahessian_by_hand() -> None:
    pytest.importorskip("pytorch_optimizer")
    problem = Quadratic()
    adahessian(problem, lr=0.5, seed=0)()
    # The Hessian is diagonal, so every estimate is exact: θ − lr·g / (h + eps), bias corrected.
    expected = [1.0 - 0.5 * c / (c + 1e-4) for c in (1.0, 2.0, 3.0)]
    assert torch.cat([p.detach() for p in problem.parameters]).tolist() == pytest.approx(expected)


def test_lbfgs_counts_its_evaluations_and_converges() -> None:
    problem = Quadratic()
    curve = record(lbfgs(problem, 5), problem, 20)
    assert curve.iterations[-1] == problem.evaluations >= 20
    assert curve.column()[-1] < 1e-12


def test_lbfgsb_counts_its_evaluations_and_converges() -> None:
    problem = Quadratic()
    curve = lbfgsb(problem, 30)
    assert curve.iterations == sorted(curve.iterations)
    assert 0 < curve.iterations[-1] <= problem.evaluations <= 35
    assert curve.column()[-1] < 1e-12


def test_gauss_newton_is_one_step_where_residuals_are_linear() -> None:
    problem = Quadratic()
    root = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64).sqrt()
    curve = gauss_newton(problem, lambda point: root * point, lambda _: torch.diag(root).numpy(), 30)
    assert curve.iterations[:2] == [0, 2]  # at the start, and after the step
    assert curve.column()[1] < 1e-12
    assert curve.column()[0] == pytest.approx(3.0)


def test_gauss_newton_solves_the_differential_equation() -> None:
    curve = poisson_by_gauss_newton(0, 60)
    assert curve.iterations == sorted(curve.iterations)
    assert curve.iterations[-1] <= 60
    assert curve.column()[-1] < 1e-3 * curve.column()[0]


def test_optex_is_ahead_of_vanilla_on_the_digits() -> None:
    options = benchmark_supervised.flags().parse_args(["--task", "digits", "--batch-size", "128"])
    make = benchmark_supervised.digits(options)
    vanilla, ahead = (
        run(method, make(0), 30, lr=3e-3, history_size=20).column()[-1]
        for method in (Method("vanilla"), optex(4, "refine"))
    )
    assert ahead < 0.5 * vanilla


TINY = ["--iterations", "2", "--every", "1", "--seeds", "1", "--history-size", "3", "--parallelism", "2"]


def arguments_of(task: str, tmp_path: Path) -> list[str]:
    if task == "cifar10":
        return ["--data", str(cifar_folder(tmp_path)), "--batch-size", "2"]
    if task == "shakespeare":
        path = tmp_path / "text.txt"
        path.write_text("to be or not to be\n" * 60, encoding="utf-8")
        return ["--data", str(path), "--batch-size", "1", "--context", "8"]
    if task == "clicks":
        write_clicks(tmp_path / "clicks.txt", 50)
        return ["--data", str(tmp_path / "clicks.txt"), "--batch-size", "8"]
    return ["--batch-size", "8"]


@pytest.mark.parametrize("task", benchmark_supervised.TASKS)
def test_every_task_runs(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "curves.png"
    flags = ["--task", task, *TINY, "--learning-rates", "1e-3", "--output", str(plot)]
    monkeypatch.setattr(sys, "argv", ["benchmark_supervised", *flags, *arguments_of(task, tmp_path)])
    benchmark_supervised.main()
    out = capsys.readouterr().out
    named = [line.split(" | ")[1] for line in out.splitlines() if line.startswith(f"| {task}")]
    averaged = [] if task == "pinn" else ["data-parallel"]
    extra = {"clicks": ["AdaHessian"], "pinn": ["L-BFGS, torch", "L-BFGS-B, SciPy", "Gauss-Newton, SciPy"]}.get(
        task, []
    )
    left_out = ["AdaHessian"] if "AdaHessian is left out" in out else []
    assert named + left_out == ["vanilla", "target", *averaged, "OptEx, refine", "OptEx, last", *extra]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--task", "cifar10"], "--task cifar10 needs --data: this project holds no data sets"),
        (["--task", "shakespeare", "--data", "missing.txt"], "missing.txt cannot be read as a text"),
        (["--task", "shakespeare", "--data", __file__, "--context", "100000"], "below the"),
        (["--task", "digits", "--base", "adma"], "did you mean 'adam'?"),
        (["--task", "digits", "--iterations", "0"], "at least 1, got '0'"),
    ],
)
def test_bad_flags_get_one_sentence(
    flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_supervised", *flags])
    with pytest.raises(SystemExit, match="2"):
        benchmark_supervised.main()
    assert said in capsys.readouterr().err


def test_digits_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "sklearn", missing)
    with pytest.raises(ConfigError, match="pip install scikit-learn"):
        load_digits()
