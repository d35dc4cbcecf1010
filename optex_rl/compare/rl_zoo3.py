"""rl_zoo3's hyperparameters, from ``rl_zoo3.yml``, and the baselines that have them: sb3-a2c and sb3-ppo."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from ..common.errors import ConfigError
from ..common.storage import packaged_table
from ..common.validation import check_between
from ..training.config import LARGEST_SEED, MOST_EPISODES

ALGORITHMS: Final = ("a2c", "ppo")  # whose rollouts a comparison can follow
TABLE: Final = ("optex_rl.compare", "rl_zoo3.yml")  # options by task and algorithm


def zoo_options(algo: str, env: str) -> dict[str, Any]:
    """What rl_zoo3 says of an algorithm on a task, as in its file; a copy."""
    return copy.deepcopy(packaged_table(*TABLE)[env][algo])  # A2C writes into the policy_kwargs that it is given


@dataclass(frozen=True, kw_only=True)
class Sb3Config:
    """A run of stable-baselines3.

    Args:
        algo: ``"a2c"`` or ``"ppo"``.
        env: a task that the table knows.
        seed: of everything random.
        steps: environment steps after which the run is cut off; schedules are those of the whole run. rl_zoo3's
            ``n_timesteps`` by default.
        evaluations: how many, evenly spaced, besides the one before training.
        eval_episodes: episodes of each.

    Raises:
        ConfigError: rl_zoo3 has no hyperparameters for the task, or a number is outside what is allowed.
    """

    algo: str
    env: str
    seed: int = 0
    steps: int | None = None
    evaluations: int = 200
    eval_episodes: int = 20

    def __post_init__(self) -> None:
        table = packaged_table(*TABLE)
        if self.algo not in ALGORITHMS or self.algo not in table.get(self.env, {}):
            raise ConfigError(
                f"rl_zoo3 has no hyperparameters for {self.algo} on {self.env}: choose {', '.join(table)}"
            )
        check_between("seed", self.seed, 0, LARGEST_SEED)
        check_between("evaluations", self.evaluations, 1, 10**6)
        check_between("eval_episodes", self.eval_episodes, 1, MOST_EPISODES)
        if self.steps is not None:
            check_between("steps", self.steps, 1, 10**9)

    def options(self) -> dict[str, Any]:
        """What rl_zoo3 says, as in its file."""
        return zoo_options(self.algo, self.env)

    def shared_options(self) -> dict[str, Any]:
        """Everything that decides what the run gives."""
        return dataclasses.asdict(self) | self.options()
