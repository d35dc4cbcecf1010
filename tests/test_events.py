"""What TensorBoard reads of a run and of a comparison: order, descriptions, options, hyperparameters, layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata

from optex_rl.cli import main
from optex_rl.compare import plots
from optex_rl.compare.report import write_events
from optex_rl.compare.results import Entry
from optex_rl.compare.statistics import Curve, area, cumulative_average
from optex_rl.runner.events import DESCRIPTIONS, SHOWN

SMALL = ["--n-envs", "2", "--n-steps", "16", "--iterations", "3", "--eval-episodes", "2", "--eval-freq", "2"]
OWN = ["--learning-rate", "0.006", "--n-critic-updates", "0", "--net-arch", "64", "64", "--no-progress-bar"]


class Page:
    """The runs of a folder as TensorBoard's server reads them."""

    def __init__(self, folder: Path) -> None:
        self.events = EventMultiplexer()
        self.events.AddRunsFromDirectory(str(folder))
        self.events.Reload()
        self.provider = MultiplexerDataProvider(self.events, str(folder))

    def scalars(self, run: str) -> dict[str, str]:
        """Descriptions by tag, in the order in which the page shows them: by group, then by name."""
        listed = self.provider.list_scalars(RequestContext(), experiment_id="", plugin_name="scalars")[run]
        return {tag: listed[tag].description for tag in sorted(listed, key=lambda tag: (tag.partition("/")[0], tag))}

    def text(self, run: str, tag: str) -> str:
        """The last text of a tag."""
        return str(self.events.Tensors(run, f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode())

    def layout(self, run: str) -> layout_pb2.Layout:
        """The charts of the page of custom scalars."""
        (event,) = self.events.Tensors(run, "custom_scalars__config__")
        return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("runs")
    for method in ("optex", "vanilla"):
        flags = ["--method", method, "--horizon", "auto", "--logdir", str(folder), "--run-name", method]
        assert main(["train", *SMALL, *OWN, *flags]) == 0
    return Page(folder)


def test_the_learning_curve_stands_first_and_every_tag_says_what_it_is(page: Page) -> None:
    tags = page.scalars("optex")
    assert next(iter(tags)) == "curve/cumulative_average_reward"
    assert all(tags.values())
    assert tags["optex/cosine/critic"].endswith("Of the group critic alone.")
    assert set(SHOWN) <= tags.keys()
    assert {tag for tag in DESCRIPTIONS if not tag.startswith("comparison/")} <= tags.keys()


def test_vanilla_has_no_cards_of_optex(page: Page) -> None:
    assert [tag for tag in page.scalars("vanilla") if tag.startswith("optex/")] == []


def test_options_and_command_are_there_as_text(page: Page) -> None:
    options = page.text("optex", "run/configuration").splitlines()
    assert {"| method | optex |", "| learning_rate | 0.006 |", "| net_arch | 64 64 |"} <= set(options)
    assert "| target_kl | none |" in options
    assert page.text("optex", "run/command").startswith("    ")


def test_runs_are_compared_by_their_options(page: Page) -> None:
    for run in ("optex", "vanilla"):
        metadata = page.events.SummaryMetadata(run, hparams_metadata.SESSION_START_INFO_TAG)
        start = hparams_metadata.parse_session_start_info_plugin_data(metadata.plugin_data.content)
        assert start.hparams["method"].string_value == run
        assert start.hparams["learning_rate"].number_value == 0.006
    metadata = page.events.SummaryMetadata("optex", hparams_metadata.EXPERIMENT_TAG)
    experiment = hparams_metadata.parse_experiment_plugin_data(metadata.plugin_data.content)
    assert [info.name.tag for info in experiment.metric_infos] == list(SHOWN)


def test_the_charts_of_a_run_stand_together(page: Page) -> None:
    (first, *_) = page.layout("optex").category
    assert first.title == "learning curve"
    assert [list(chart.multiline.tag) for chart in first.chart] == [[tag] for tag in SHOWN]


def curve(*returns: float) -> Curve:
    ks = range(len(returns))
    return Curve(tuple(10 * k for k in ks), tuple(ks), tuple(map(float, ks)), tuple(map(float, ks)), returns)


def test_the_cumulative_average_ends_at_the_area() -> None:
    """By hand: 0 at the start, (0 + 6) / 2 over the first ten iterations, (3 + 9) / 2 over twenty."""
    assert cumulative_average(curve(0.0, 6.0, 12.0)).tolist() == [0.0, 3.0, 6.0]
    assert area(curve(0.0, 6.0, 12.0)) == 6.0


def test_a_comparison_has_the_mean_over_seeds_and_its_band(tmp_path: Path) -> None:
    curves = [curve(0.0, 10.0 * seed, 20.0 * seed) for seed in range(5)]
    alone = Entry("CartPole-v1", "vanilla", "lr 1", True, curves[:1], 0.0, 475.0)
    write_events(tmp_path, [Entry("CartPole-v1", "optex:stride=2", "lr 1", True, curves, 0.0, 475.0), alone])
    page, run = Page(tmp_path), "CartPole-v1/optex_stride=2"
    assert next(iter(page.scalars(run))) == "comparison/cumulative_average_return"

    def values(tag: str) -> list[float]:
        return [float(event.tensor_proto.float_val[0]) for event in page.events.Tensors(run, tag)]

    averages = np.array([cumulative_average(each) for each in curves])
    assert values("comparison/cumulative_average_return") == averages[1:4].mean(0).tolist()  # the middle of five
    categories = page.layout(run).category
    assert [category.title for category in categories] == ["cumulative average return", "return"]
    for category in categories:
        ((series,),) = (chart.margin.series for chart in category.chart)
        low, middle, high = (values(tag) for tag in (series.lower, series.value, series.upper))
        assert all(a <= b <= c for a, b, c in zip(low, middle, high, strict=True))
        assert low[-1] < middle[-1] < high[-1]
    assert list(page.scalars("CartPole-v1/vanilla")) == ["comparison/cumulative_average_return", "comparison/return"]


def test_its_plot_has_both_figures_against_every_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, output: drawn.append(figure))
    curves = [curve(0.0, 10.0 * seed, 20.0 * seed) for seed in range(5)]
    own, other = (Entry("CartPole-v1", name, "lr 1", True, curves, 0.0, 475.0) for name in ("optex", "sb3-ppo"))
    plots.draw_task([own, other], tmp_path / "plot.png")
    panels = [(panel, panel.get_lines()[:-1]) for panel in drawn[0].axes]  # the last line of each is the threshold
    assert [[line.get_label() for line in lines] for _, lines in panels] == [
        ["optex, lr 1", *(["sb3-ppo, lr 1"] if number % 3 else [])] for number in range(6)
    ]
    assert [panels[row][0].get_ylabel() for row in (0, 3)] == ["cumulative average return", "return"]
    (average,), (last,) = (panels[row][1] for row in (0, 3))
    assert average.get_xdata().tolist() == last.get_xdata().tolist() == [0, 10, 20]
    assert average.get_ydata().tolist() == [0.0, 10.0, 20.0]  # seed 2 is the middle one: 0, 20, 40
    assert last.get_ydata().tolist() == [0.0, 20.0, 40.0]
