"""The callback that gives OptEx what stable-baselines3 does not pass to an optimizer."""

from __future__ import annotations

from contextlib import ExitStack
from operator import attrgetter
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from ..common.errors import ConfigError
from ..optimizer import OptEx
from .model import record_statistics


def optex_optimizers(model: BaseAlgorithm) -> dict[str, OptEx]:
    """The OptEx optimizers of a model by the name of their owner: ``policy``, or ``actor`` and ``critic``."""
    names = [name for name in model._get_torch_save_params()[0] if name.endswith(".optimizer")]
    optimizers = {name.removesuffix(".optimizer"): attrgetter(name)(model) for name in names}
    return {owner: optimizer for owner, optimizer in optimizers.items() if isinstance(optimizer, OptEx)}


class OptExCallback(BaseCallback):
    """Callbacks run at the iterate, one history for each rollout of PPO, and OptEx's statistics in the log.

    ``without_closure="emulate"`` leaves the policy at a proxy between two steps, where ``EvalCallback`` would evaluate
    it and ``CheckpointCallback`` save it. Give those callbacks to this one instead of to ``learn``: they then see the
    iterate, and training continues at the proxy, bit for bit. After ``learn`` the policy is at the iterate, too; a
    further ``learn`` with the same callback continues where the first stopped.

    The surrogate of PPO is another function after each rollout, so gradients of earlier rollouts predict little of it:
    the history is reset before each, at the iterate. A2C and the off-policy algorithms keep theirs.

    Args:
        callback: the callbacks to run at the iterate.
        reset_history: whether to reset the history before each rollout; None: for PPO and its relatives.
        verbose: as in stable-baselines3.

    Raises:
        ConfigError: when training starts, if the model has no OptEx optimizer.
    """

    def __init__(
        self,
        callback: BaseCallback | list[BaseCallback] | None = None,
        *,
        reset_history: bool | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        callbacks = callback if isinstance(callback, list) else [] if callback is None else [callback]
        self.callback = CallbackList(callbacks)
        self.callback.parent = self
        self.reset_history = reset_history
        self._after_training = ExitStack()

    def _init_callback(self) -> None:
        self.optimizers = optex_optimizers(self.model)
        if not self.optimizers:
            raise ConfigError(
                f"{type(self.model).__name__} has no OptEx optimizer; "
                "give it policy_kwargs=dict(optimizer_class=OptEx, optimizer_kwargs=...)"
            )
        self.callback.init_callback(self.model)

    def _at_iterate(self) -> ExitStack:
        stack = ExitStack()
        for optimizer in self.optimizers.values():
            stack.enter_context(optimizer.at_iterate())
        return stack

    def _on_training_start(self) -> None:
        self._after_training.close()
        with self._at_iterate():
            self.callback.on_training_start(self.locals, self.globals)

    def _on_rollout_start(self) -> None:
        # Only algorithms of PPO's kind go over a rollout in epochs.
        if hasattr(self.model, "n_epochs") if self.reset_history is None else self.reset_history:
            for optimizer in self.optimizers.values():
                with optimizer.at_iterate():
                    optimizer.reset_history()
        with self._at_iterate():
            self.callback.on_rollout_start()

    def _on_step(self) -> bool:
        with self._at_iterate():
            return self.callback.on_step()

    def _on_rollout_end(self) -> None:
        for owner, optimizer in self.optimizers.items():
            record_statistics(self.logger, optimizer, "optex" if len(self.optimizers) == 1 else f"optex/{owner}")
        with self._at_iterate():
            self.callback.on_rollout_end()

    def _on_training_end(self) -> None:
        self._after_training = self._at_iterate()
        self.callback.on_training_end()

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """Hand the local variables of the rollout on."""
        self.callback.update_locals(locals_)
