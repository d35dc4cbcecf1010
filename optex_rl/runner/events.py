"""TensorBoard's files: the learning curve as the first thing that a page shows, and a description of every tag."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

CURVE: Final = "curve/cumulative_average_reward"  # TensorBoard orders groups by name: this one is the first
EVENT_TAGS: Final = {"rollout/cumulative_average_reward": CURVE}  # tags that differ from those of the metrics
SHOWN: Final = (CURVE, "rollout/ep_rew_mean", "eval/mean_reward")
DESCRIPTIONS: Final = {
    CURVE: "Mean return of all training episodes so far: the y axis of the paper's figures.",
    "rollout/ep_rew_mean": "Mean return of the last 100 training episodes.",
    "rollout/ep_len_mean": "Mean length of the last 100 training episodes, in steps.",
    "rollout/episodes": "Training episodes finished so far, over all points.",
    "eval/mean_reward": "Mean return of the iterate's most likely actions, over episodes that are the same each time.",
    "time/env_steps": "Environment steps so far, over all points.",
    "time/wall_time": "Seconds of training, evaluations and checkpoints included.",
    "time/fps": "Environment steps per second since the process began, its evaluations left out.",
    "train/learning_rate": "Learning rate of the base optimizer in this iteration.",
    "train/policy_loss": "Policy-gradient loss, mean over the points.",
    "train/value_loss": "Loss of the critic, mean over the points.",
    "train/entropy": "Entropy of the policy, mean over the points.",
    "train/explained_variance": "Share of the returns' variance that the critic explains; 1 is a perfect critic.",
    "train/dropped_points": "Points left out of this iteration because of NaN or infinite numbers.",
    "optex/steps": "Base steps from the old iterate to the new one.",
    "optex/horizon": "Base steps of the next iteration as the slopes allow them; below 1.5 it is one.",
    "optex/history": "Pairs of parameters and gradient in the history.",
    "optex/cosine": "Cosine of the actor's predicted and sampled gradients at the points; optex/ceiling bounds it.",
    "optex/cosine/all": "The same over all parameters, where the critic's gradient tends to be the largest.",
    "optex/ceiling": "The cosine that the true gradient would have with a sampled one, from two halves of the samples.",
    "optex/ceiling/all": "The same over all parameters.",
    "optex/lengthscale": "Length scale of the kernel, in parameter space.",
    "optex/noise": "Variance of the gradients' noise, in units of the kernel's amplitude.",
    "optex/variance": "Mean posterior variance at the points, in units of the kernel's amplitude; 1: nothing is known.",
    "comparison/cumulative_average_return": "Mean return over the iterations so far, interquartile mean over seeds.",
    "comparison/return": "Mean return of the iterate's most likely actions, interquartile mean over seeds.",
}
LAYOUT: Final = {
    "learning curve": {
        "cumulative average reward": ["Multiline", [CURVE]],
        "mean return of the last 100 episodes": ["Multiline", ["rollout/ep_rew_mean"]],
        "mean return of evaluations": ["Multiline", ["eval/mean_reward"]],
    },
    "OptEx": {"predicted, and predictable: cosine and ceiling": ["Multiline", ["optex/cosine", "optex/ceiling"]]},
}


def description_of(tag: str) -> str:
    """What a tag means; empty for what a custom agent reports. ``optex/cosine/critic`` is about one of the groups."""
    family, _, group = tag.rpartition("/")
    if tag not in DESCRIPTIONS and family in DESCRIPTIONS:
        return f"{DESCRIPTIONS[family]} Of the group {group} alone."
    return DESCRIPTIONS.get(tag, "")


class Events:
    """Writes an event file, through PyTorch's ``SummaryWriter``.

    Args:
        folder: where.
        purge_step: events of earlier files from this step on are to be forgotten.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        # Imported here: it takes longer than everything else in the package together.
        from torch.utils.tensorboard.writer import SummaryWriter

        before = set(folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(folder), purge_step=purge_step if before else None)
        self._file: Any = self._writer.file_writer
        self.files = set(folder.glob("events.out.tfevents.*")) - before
        self._described: set[str] = set()

    def scalar(self, tag: str, value: float, step: int, seconds: float | None = None) -> None:
        """One value, at ``seconds`` since 1970 or now; the first of a tag brings its description."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.scalar.metadata import create_summary_metadata

        new = tag not in self._described
        self._described.add(tag)
        metadata = create_summary_metadata(tag, description_of(tag)) if new else None
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value, metadata=metadata)])
        self._file.add_summary(summary, step, seconds)

    def options(self, values: Mapping[str, Any], command: str) -> None:
        """The options and the command as text, the options as hyperparameters, and which charts stand together."""
        from torch.utils.tensorboard.summary import hparams

        rows = "\n".join(f"| {name} | {plain(value)} |" for name, value in values.items())
        self._writer.add_text("run/configuration", f"| option | value |\n|---|---|\n{rows}")
        self._writer.add_text("run/command", f"    {command}")
        plain_values = {name: plain(value) for name, value in values.items()}
        for summary in hparams(plain_values, dict.fromkeys(SHOWN, 0.0)):  # type: ignore[no-untyped-call]
            self._file.add_summary(summary)
        self.layout(LAYOUT)

    def layout(self, layout: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Which charts TensorBoard's page of custom scalars shows, see ``SummaryWriter.add_custom_scalars``."""
        self._writer.add_custom_scalars(layout)

    def flush(self) -> None:
        """Hand everything to the system."""
        self._writer.flush()

    def close(self) -> None:
        """Write out what is pending."""
        self._writer.close()


def plain(value: Any) -> bool | float | str:
    """A value as TensorBoard's hyperparameters take it."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if value is None:
        return "none"
    return value if isinstance(value, (bool, int, float)) else str(value)
