"""The state machine of OptEx: history, iteration under way, and the ways to drive it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..bases.flat import FlatBase
from ..common.errors import ConfigError
from .estimator.gp import Predictor
from .estimator.predictors import PREDICTORS
from .evaluations import Evaluations, as_losses, check_evaluations, check_finite
from .horizon import AdaptiveHorizon, FixedHorizon, make_horizon
from .iteration import (
    Proposal,
    follow,
    group_sizes,
    iteration_statistics,
    mean_cosines,
    predict_here,
    propose,
    select,
    unpredicted_steps,
)
from .options import OptExOptions
from .selection import SELECTIONS


class Engine:
    """Drives a base optimizer through the sequential iterations of OptEx.

    `ask` and `tell` are one iteration; `evaluate`, `emulate` and `extrapolate` are the modes of ``step``. Between calls
    the parameters are at the iterate, except in the mode `emulate`, which leaves them at the point to evaluate next.

    Args:
        base: the base optimizer.
        options: how to propose, estimate and select.
    """

    def __init__(self, base: Optimizer, options: OptExOptions) -> None:
        self.base = FlatBase(base, options.max_grad_norm)
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Drop the history, the iteration under way and the statistics."""
        self.estimator: Predictor | None = None
        self.proposal: Proposal | None = None
        self.horizon = make_horizon(self.options)
        self.statistics: dict[str, float] = {}

    def ask(self) -> Tensor:
        """The points ``[N, d]`` of the iteration under way, or of a new one if the parameters have moved."""
        if self.proposal is None or self.proposal.modified or not self.base.is_at(self.proposal.points[0]):
            self.proposal = propose(self.base, self._current_estimator(), self.options, self.horizon)
        return self.proposal.show()

    def tell(
        self,
        gradients: Tensor,
        losses: Tensor | None = None,
        with_gradient: list[bool] | None = None,
        usable: Tensor | None = None,
        move: bool = True,
    ) -> None:
        """Take gradients ``[N, d]`` and losses ``[N]`` at the points of `ask`, and ``move`` to the next iterate.

        ``with_gradient`` says which parameters have a gradient at all; None: every one that is not frozen. ``usable
        [N]`` says which evaluations may be used; the other points are treated as if they had never been asked for.
        """
        proposal = self._proposal_for(move)
        evaluations = check_evaluations(proposal.points, gradients, losses, self.options.selection, usable)
        self.base.with_gradient = with_gradient
        self.proposal = None
        if self.options.parallelism == 1:
            if move:
                with self.base.undone_on_fault():
                    self.base.step(evaluations.gradients[0])
            return
        estimator, distances = self._insert(proposal, evaluations)
        iterate = distances[0] if evaluations.rows[0] == 0 and len(distances) == len(evaluations.rows) else None
        fitted = {} if proposal.cold else estimator.hyperparameters()  # before the steps: if it fails, none was made
        cosines = self._cosines(proposal, evaluations)
        maximize = bool(self.base.groups[0].get("maximize", False))
        choose = SELECTIONS[self.options.selection].choose
        best = None if choose is None else choose(evaluations.gradients, evaluations.losses, maximize)
        horizon = self.horizon
        if not proposal.cold:
            horizon = horizon.after(proposal.points, evaluations.gradients, evaluations.rows, maximize)
        proposal.keep_only(None if best is None else evaluations.rows[best])  # before the steps, which need room
        steps = 0
        if move:
            with self.base.committed_steps() as stepper:
                steps = select(stepper, estimator, proposal, evaluations, best, self.options, self.horizon, iterate)
        self.horizon = horizon
        self._record(proposal, evaluations, steps, cosines, fitted)
        if isinstance(horizon, AdaptiveHorizon):
            self.statistics["horizon"] = horizon.length

    def _proposal_for(self, move: bool) -> Proposal:
        """The iteration under way, of which `tell` brings the evaluations.

        Raises:
            ConfigError: there is none, its points were changed, or the parameters were moved and would ``move``.
        """
        if self.proposal is None:
            raise ConfigError("call ask() before tell(): there are no points that these gradients could belong to")
        if self.proposal.modified:
            raise ConfigError("the points of ask() were changed in place: change a copy of them, and ask() again")
        if move and not self.base.is_at(self.proposal.points[0]):
            raise ConfigError("the parameters were moved since ask(): ask() again, or tell with move=False")
        return self.proposal

    def base_step(self, closure: Callable[[], Any] | None) -> Any:
        """The base's own step, with clipping between its closure and its update."""
        base = self.base
        if closure is None:
            base.clip()
            return base.base.step()

        def clipped() -> Any:
            loss = closure()
            base.clip()
            return loss

        return base.base.step(clipped)

    def evaluate(self, closure: Callable[[], Any]) -> Any:
        """One iteration, ``closure`` evaluated at one point after the other; returns its result at the iterate."""
        points = self.ask()
        results, gradients, with_gradient = [], [], None
        try:
            for point in points:
                self.base.move_to(point)
                results.append(closure())
                gradient, with_gradient = self.base.read_gradient()
                gradients.append(gradient)
        finally:
            self.base.move_to(points[0])
        self.tell(torch.stack(gradients), as_losses(results), with_gradient)
        return results[0]

    def emulate(self) -> None:
        """One of the N evaluations of an iteration: take its gradient, then go to the next point or make the step."""
        gradient, with_gradient = self.base.read_gradient()
        check_finite(gradient[None])
        self.base.with_gradient = with_gradient
        proposal = self.proposal
        if proposal is None or not self.base.is_at(proposal.points[len(proposal.gradients)]):
            self.proposal = proposal = propose(self.base, self._current_estimator(), self.options, self.horizon)
        proposal.gradients.append(gradient)
        if len(proposal.gradients) < self.options.parallelism:
            self.base.move_to(proposal.points[len(proposal.gradients)])
        else:
            self.base.move_to(proposal.points[0])
            self.tell(torch.stack(proposal.gradients), None, with_gradient)

    @contextmanager
    def at_iterate(self) -> Iterator[None]:
        """Put the parameters at the iterate for the block, and then back where `emulate` had left them."""
        proposal = self.proposal
        if proposal is None or not self.base.is_at(proposal.points[len(proposal.gradients)]):
            yield
            return
        self.base.move_to(proposal.points[0])
        yield  # no try: after an error, or if the block is never left, they should stay at the iterate
        # If the block itself loaded, stepped or moved the parameters, that is not undone.
        if self.proposal is proposal and self.base.is_at(proposal.points[0]):
            self.base.move_to(proposal.points[len(proposal.gradients)])

    def extrapolate(self) -> None:
        """Insert one true gradient into the history, then take N·stride base steps with posterior means."""
        gradient, with_gradient = self.base.read_gradient()
        gradients, points = gradient[None], self.base.point()[None]
        check_finite(gradients)
        self.base.with_gradient = with_gradient
        here = predict_here(points, self._current_estimator())
        self.proposal = None
        evaluations = Evaluations([0], gradients, None)
        estimator, distances = self._insert(here, evaluations)
        fitted = {} if here.cold else estimator.hyperparameters()
        cosines = self._cosines(here, evaluations)
        fixed = FixedHorizon(self.options.parallelism, self.options.stride)  # one gradient does not say more
        steps = fixed.steps if estimator.ready else self.options.first_steps
        with self.base.committed_steps() as stepper:
            if estimator.ready:
                follow(stepper, estimator, [0] * steps, distances[0])
            else:
                unpredicted_steps(stepper, gradients[0], steps)
        self._record(here, evaluations, steps, cosines, fitted)

    def _current_estimator(self) -> Predictor | None:
        """The estimator, on the device and in the precision of the parameters now; None before the first pair."""
        if self.estimator is not None:
            parameter = self.base.parameters[0]
            self.estimator.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32))
        return self.estimator

    def _insert(self, proposal: Proposal, evaluations: Evaluations) -> tuple[Predictor, Tensor]:
        """Add the pairs of usable points to the history.

        It is created here, because modules are often moved to their device after the optimizer is constructed.

        Returns:
            The estimator, and the distances of those points to the history, ``[n, B, T]``.
        """
        estimator = self._current_estimator()
        if estimator is None:
            estimator = self.estimator = self._new_estimator()
        points = proposal.points if len(evaluations.rows) == len(proposal.points) else proposal.points[evaluations.rows]
        return estimator, estimator.insert(points, evaluations.gradients)

    def _new_estimator(self) -> Predictor:
        parameter = self.base.parameters[0]
        sizes = group_sizes(self.base.groups)
        return PREDICTORS[self.options.predictor](
            sum(sizes),
            block_sizes=sizes if self.options.blocks == "groups" else None,
            dtype=torch.promote_types(parameter.dtype, torch.float32),
            device=parameter.device,
            **self.options.estimator_options(),
        )

    def _cosines(self, proposal: Proposal, evaluations: Evaluations) -> list[float]:
        """Mean cosine of predictions and true gradients, over all parameters and each group; empty if none was made."""
        predictions = proposal.estimates[:: self.options.stride]
        rows = [row for row in evaluations.rows if row < len(predictions)]  # the last point of a chain has none
        if not rows:
            return []
        if len(rows) < len(predictions):
            predictions = predictions[rows]
        return mean_cosines(predictions, evaluations.gradients[: len(rows)], group_sizes(self.base.groups))

    def _record(
        self,
        proposal: Proposal,
        evaluations: Evaluations,
        steps: int,
        cosines: list[float],
        fitted: dict[str, Tensor],
    ) -> None:
        assert self.estimator is not None
        self.statistics = {"steps": float(steps), "history": float(len(self.estimator))}
        if not proposal.cold:
            variances = proposal.variances[evaluations.rows]
            self.statistics |= iteration_statistics(cosines, variances, fitted, self.base.groups)

    def state_dict(self) -> dict[str, Any]:
        """Copy of everything but the base, as plain values and tensors."""
        return {
            "history": None if self.estimator is None else self.estimator.state_dict(),
            "proposal": None if self.proposal is None else self.proposal.state_dict(),
            "with_gradient": self.base.with_gradient,
            "statistics": dict(self.statistics),
            **({"horizon": self.horizon.state_dict()} if isinstance(self.horizon, AdaptiveHorizon) else {}),
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Raise a RuntimeError if ``state`` is for other parameters, or the horizon in it is no number."""
        make_horizon(self.options, state.get("horizon"))
        history, d = state["history"], sum(p.numel() for p in self.base.parameters)
        with_gradient, n = state["with_gradient"], len(self.base.parameters)
        if with_gradient is not None and len(with_gradient) != n:
            raise RuntimeError(f"with_gradient is for {len(with_gradient)} tensors, this optimizer has {n}")
        if history is not None and history["newest"].numel() != d:
            raise RuntimeError(f"the history is for {history['newest'].numel()} parameters, this optimizer has {d}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`. An iteration under way with another ``parallelism`` or ``stride`` is dropped.

        Raises:
            RuntimeError: the history is for another number of parameters.
        """
        self.reset()
        if state["history"] is not None:
            estimator = self._new_estimator()
            estimator.load_state_dict(state["history"])
            self.estimator = estimator
        if state["proposal"] is not None:
            proposal = Proposal.from_state_dict(state["proposal"], self.base.point())
            self.proposal = proposal if proposal.fits(self.options) else None
        self.horizon = make_horizon(self.options, state.get("horizon"))
        self.base.with_gradient = state["with_gradient"]
        self.statistics = dict(state["statistics"])
