"""The command line: whole runs, and one clear sentence with a non-zero status for everything that cannot be done."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from optex_rl.cli.commands import build_parser, main
from optex_rl.cli.flags import GROUPS, given_options
from optex_rl.training.config import TrainConfig, load_config
from optex_rl.training.presets import tuned_options

from .helpers import expect_refusal, read_csv

SMALL = ["--n-envs", "4", "--n-steps", "32", "--iterations", "3", "--eval-episodes", "5", "--no-progress-bar"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run."""
    assert main(["train", *SMALL, "--logdir", str(tmp_path), "--run-name", "run"]) == 0
    return tmp_path / "run"


def test_closing_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--logdir", str(tmp_path), "--run-name", "run"]) == 0
    out = capsys.readouterr().out
    table = {name.strip(): value for name, value in (line.rsplit("  ", 1) for line in out.splitlines() if "  " in line)}
    assert table["sequential iterations"] == "3"
    assert table["environment steps"] == f"{3 * 4 * 4 * 32:,}"
    assert f"tensorboard --logdir {tmp_path}" in out


def test_train_evaluate_plot(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_dir), "--episodes", "7"]) == 0
    assert main(["evaluate", str(run_dir), "--best"]) == 0
    assert main(["plot", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "CartPole-v1, 7 episodes: mean return" in out
    assert (run_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_steps_are_sequential_iterations(run_dir: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir))
    events.Reload()
    scalars = events.Scalars("curve/cumulative_average_reward")
    rows = read_csv(run_dir / "progress.csv")
    assert [event.step for event in scalars] == [int(row["iteration"]) for row in rows]
    assert [event.value for event in scalars] == pytest.approx([float(r["cumulative_average_reward"]) for r in rows])


def test_flags_without_values_are_the_defaults() -> None:
    assert given_options(vars(build_parser().parse_args(["train"]))) == {}


def test_layers_may_be_left_to_the_network() -> None:
    flags = build_parser().parse_args(["train", "--net-arch", "none", "--features-dim", "9", "--cnn", "small"])
    assert given_options(vars(flags)) == {"net_arch": None, "features_dim": 9, "cnn": "small"}


def test_flags_of_every_kind() -> None:
    flags = ["train", "--net-arch", "32", "16", "--lengthscale", "0.5", "--noise", "auto", "--max-grad-norm", "0.5"]
    flags += ["--no-normalize-advantage", "--logdir", "none", "--stride", "2", "--blocks", "groups"]
    config = TrainConfig(**given_options(vars(build_parser().parse_args(flags))))
    assert (config.net_arch, config.lengthscale, config.noise, config.max_grad_norm) == ((32, 16), 0.5, "auto", 0.5)
    assert (config.normalize_advantage, config.logdir, config.stride, config.blocks) == (False, None, 2, "groups")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "CartPoll-v1"], "CartPole-v1"),
        (["--optimizer", "adan"], "did you mean 'adam'"),
        (["--parallelism", "0"], "parallelism must be a whole number between 1 and 1000, got 0"),
        (["--learning-rate", "nan"], "learning_rate must be a number between 0 and 1e+38, got nan"),
        (["--kernel", "linear"], "kernel must be one of matern12, matern32, matern52, rbf, got 'linear'"),
        (["--lengthscale", "long"], "lengthscale must be a positive number, 'auto' or 'median', got 'long'"),
        (["--net-arch", "0"], "net_arch must be a list of at most 16 whole numbers between 1 and 4096, got (0,)"),
        (["--net-arch", "64", "none"], "whole numbers between 1 and 4096, got (64, None)"),
        (["--device", "warp"], "device 'warp' cannot be used here"),
    ],
)
def test_bad_options(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect_refusal(["train", *SMALL, "--logdir", str(tmp_path / "logs"), *flags], message, capsys)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--lr", "0.1"], "unknown flag --lr (did you mean '--learning-rate'?)"),
        (["train", "--lr=0.1"], "unknown flag --lr (did you mean '--learning-rate'?)"),
        (["train", "--learning_rate", "0.1"], "unknown flag --learning_rate (did you mean '--learning-rate'?)"),
        (["train", "--learning", "0.1"], "unknown flag --learning (did you mean '--learning-rate'?)"),
        (["train", "--total-timesteps", "5"], "unknown flag --total-timesteps (did you mean '--iterations'?)"),
        (["train", "--no-progres-bar"], "unknown flag --no-progres-bar (did you mean '--no-progress-bar'?)"),
        (["train", "--paralellism", "4"], "unknown flag --paralellism (did you mean '--parallelism'?)"),
        (["train", "-seed", "4"], "unknown flag -seed (did you mean '--seed'?)"),
        (["train", "--xyzzy"], "unknown flag --xyzzy (see optex-rl train --help)"),
        (["evaluate", "--bets"], "unknown flag --bets (did you mean '--best'?)"),  # and not that RUN_DIR is missing
        (["evaluate", "--lr", "0.1", "run"], "unknown flag --lr (see optex-rl evaluate --help)"),  # nothing is like it
        (["plot", "--ouput", "x.png", "run"], "unknown flag --ouput (did you mean '--output'?)"),
        (["tune", "--trails", "3"], "unknown flag --trails (did you mean '--trials'?)"),
        (["tune", "--lr", "0.1"], "unknown flag --lr (did you mean '--learning-rate'?)"),
        (["compare", "--lr", "0.1"], "unknown flag --lr (did you mean '--learning-rate'?)"),
        (["compare", "--method", "optex"], "unknown flag --method (did you mean '--methods'?)"),
        (["trian"], "unknown command 'trian' (did you mean 'train'?); known are train, evaluate, plot, compare"),
        (["--treads", "1", "train"], "unknown flag --treads"),
        (["train", "CartPole-v1"], "unexpected argument 'CartPole-v1' (see optex-rl train --help)"),
        (["train", "--method", "magic"], "invalid choice: 'magic'"),
        (["train", "--iterations", "ten"], "argument --iterations: invalid number value: 'ten'"),
        (["evaluate"], "the following arguments are required: RUN_DIR"),
        ([], "the following arguments are required: COMMAND (see optex-rl --help)"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expect_refusal(arguments, message, capsys, 2)


@pytest.fixture
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # for words are cut at their hyphens


def help_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints before it ends with status 0, its lines joined."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("_wide")
@pytest.mark.parametrize("order", [["--env", "Pendulum-v1", "--algo", "ppo", "-h"], ["--help", "--env=Pendulum-v1"]])
def test_the_help_of_train_has_the_tuned_values_of_the_task(
    order: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    algo = "ppo" if "ppo" in order else "a2c"
    tuned, text = tuned_options("Pendulum-v1", algo), help_of(["train", *order], capsys)
    assert f"Values marked tuned are for {algo} on Pendulum-v1." in text
    assert f"learning rate of the base optimizer (tuned: {tuned['learning_rate']})" in text
    assert f"discount factor (tuned: {tuned['gamma']})" in text
    assert "normalise observations by running mean and variance (tuned: yes)" in text
    assert text.count("(tuned: ") == len(tuned)
    assert "initial log standard deviation of continuous actions (default: 0.0)" in text


@pytest.mark.usefixtures("_wide")
def test_the_help_of_train_stands_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(["train", "--help"], capsys)
    assert "Values marked tuned are for a2c on CartPole-v1." in text
    first = ["run: --algo", "points and OptEx: --parallelism", "agent: --gamma"]
    first += ["experience and network: --normalize-obs", "evaluation, files and display: --eval-freq"]
    places = [text.index(words) for words in first]
    assert places == sorted(places)
    assert list(GROUPS) == [spec.name for spec in dataclasses.fields(TrainConfig) if spec.name in GROUPS]


@pytest.mark.usefixtures("_wide")
def test_the_help_of_train_where_nothing_is_tuned(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(["train", "--env", "FrozenLake-v1", "--help"], capsys)
    assert "Nothing is tuned for a2c on FrozenLake-v1." in text
    assert "(tuned: " not in text
    text = help_of(["train", "--optimizer", "sgd", "--help"], capsys)
    assert "(tuned: for adam only, to be given with sgd)" in text


@pytest.mark.parametrize("flags", [[], ["--env", "FrozenLake-v1"]])
def test_the_learning_rate_of_adam_is_for_adam(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sgd = ["--optimizer", "sgd", "--logdir", str(tmp_path)]
    expect_refusal(["train", *SMALL, *sgd, *flags], "learning_rate must be given with the optimizer 'sgd'", capsys, 2)
    assert not list(tmp_path.iterdir())
    assert main(["train", *SMALL, *sgd, "--learning-rate", "1"]) == 0


def test_an_existing_run_folder_is_refused_unharmed(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    flags = ["train", *SMALL, "--logdir", str(run_dir.parent), "--run-name", "run"]
    expect_refusal(flags, "exists already", capsys, 1)
    assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == before


def test_evaluate_what_is_no_run(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect_refusal(["evaluate", str(tmp_path / "nothing")], "there is no run folder", capsys, 1)
    (run_dir / "checkpoint.pt").unlink()
    expect_refusal(["evaluate", str(run_dir)], "there is no checkpoint", capsys)


def test_evaluate_a_policy_of_another_network(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_dir / "config.yml"
    config.write_text(config.read_text().replace("net_arch: null", "net_arch:\n- 32"))
    assert load_config(config).net_arch == (32,)
    expect_refusal(["evaluate", str(run_dir)], "another network than config.yml describes", capsys)


def test_plot_what_cannot_be_drawn(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "nothing")
    expect_refusal(["plot", str(run_dir), missing], f"there is no run folder {missing!r}", capsys, 1)
    assert not (run_dir / "learning_curve.png").exists()
    expect_refusal(["plot", str(run_dir), "--output", str(tmp_path / "x.doc")], "cannot be written", capsys)
    (run_dir / "progress.csv").write_text("iteration\n1\n")
    expect_refusal(["plot", str(run_dir)], "cannot be read as the progress of a run", capsys)
