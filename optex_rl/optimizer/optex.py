"""OptEx as a `torch.optim.Optimizer`: any first-order optimizer, its iterations approximately in parallel."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..bases import make_base
from ..common.errors import ConfigError
from .engine import Engine
from .options import OptExOptions, refuse_unknown


class OptEx(Optimizer):
    """Optimization with parallelized iterations (Shu et al., NeurIPS 2024, arXiv 2402.11427, Algorithm 1).

    A Gaussian process over the history of (parameters, gradient) predicts the next gradients. The base optimizer runs
    ahead on the predictions to N − 1 *proxy* parameter sets; the true gradients at all N points, which can be computed
    in parallel, enter the history and make the step. One *sequential iteration* is

    1. ``points = optimizer.ask()``: N parameter sets ``[N, d]``, row 0 the current iterate;
    2. the caller computes their gradients, in any way;
    3. ``optimizer.tell(gradients)``: on to the next iterate.

    ``step(closure)`` does all three, one point after the other. At first nothing can be predicted: all N points are the
    iterate, and the mean gradient makes ``first_steps`` base steps. Then ``"refine"`` looks ahead as if the gradient
    were constant; the other selections, which step to the points that they propose, wait for a second distinct point.

    With ``parallelism=1`` OptEx *is* its base, bit for bit. Learning-rate schedulers, ``add_param_group``, state
    dictionaries, hooks, pickling and deepcopy work as for any `torch.optim` optimizer; the parameter groups and the
    per-parameter state are those of the base. Step hooks of the base itself see every base step.

    Not in the paper: ``"refine"``, ``stride``, ``first_steps``, ``horizon``, clipping, and hyperparameters by evidence.

    Args:
        params: parameters, or their groups.
        lr: learning rate of the base.
        base: name of the base optimizer (see `optex_rl.bases.BASES`) or a ``torch.optim.Optimizer`` class.
        base_kwargs: further arguments for the base.
        parallelism: N, how many parameter sets are evaluated at once.
        history_size: T0, how many pairs the history keeps; more than N, best a few times N.
        kernel: ``"matern52"``, ``"matern32"``, ``"matern12"`` or ``"rbf"``.
        lengthscale: a number (in parameter space), ``"median"`` of the distances, or ``"auto"``: by evidence.
        noise: variance of a gradient in units of the kernel's amplitude, or ``"auto"``: by evidence.
        selection: how the next iterate is made. ``"last"`` (the paper's choice): a base step from the last point with
            its true gradient; ``"loss"``, ``"grad_norm"``: the same from the point with the least loss or gradient
            norm; ``"refine"`` (ours): with the N new pairs in the history, N·stride base steps from the old iterate
            with the new posterior means, which use all N gradients and average their noise.
        stride: base steps from one point to the next; with more than 1 the horizon is fixed.
        first_steps: base steps with the mean gradient while nothing can be predicted; N suits the natural gradient.
        horizon: base steps of ``"refine"``: ``"auto"``, 1 to N by the slopes at the points; ``"fixed"``, N·stride.
        blocks: ``"joint"``: one posterior for all parameters; ``"groups"``: one for each parameter group.
        predictor: ``"posterior"``, or as baselines ``"mean"`` or ``"last"`` of the known gradients.
        without_closure: what ``step()`` does without a closure. ``"extrapolate"``: the gradient in ``.grad`` enters the
            history, then N·stride base steps with posterior means: N updates for one evaluation. ``"emulate"``: each
            call is one of the N evaluations and leaves the parameters at the next point; equal to ask and tell.
        max_grad_norm: clip every gradient to this norm before a base step; the history keeps them unclipped.

    Raises:
        ConfigError: an argument is outside what is allowed.

    Example:
        >>> optimizer = OptEx(model.parameters(), lr=1e-3, base="adam", parallelism=4)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = loss_function(model(inputs), targets)
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure)
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        *,
        base: str | type[Optimizer] = "adam",
        base_kwargs: dict[str, Any] | None = None,
        parallelism: int = OptExOptions.parallelism,
        history_size: int = OptExOptions.history_size,
        kernel: str = OptExOptions.kernel,
        lengthscale: float | str = OptExOptions.lengthscale,
        noise: float | str = OptExOptions.noise,
        selection: str = OptExOptions.selection,
        stride: int = OptExOptions.stride,
        first_steps: int = OptExOptions.first_steps,
        horizon: str = OptExOptions.horizon,
        blocks: str = OptExOptions.blocks,
        predictor: str = OptExOptions.predictor,
        without_closure: str = OptExOptions.without_closure,
        max_grad_norm: float | None = OptExOptions.max_grad_norm,
        **unknown: NoReturn,
    ) -> None:
        refuse_unknown(unknown)
        options = OptExOptions(
            parallelism=parallelism,
            history_size=history_size,
            kernel=kernel,
            lengthscale=lengthscale,
            noise=noise,
            selection=selection,
            stride=stride,
            first_steps=first_steps,
            horizon=horizon,
            blocks=blocks,
            predictor=predictor,
            without_closure=without_closure,
            max_grad_norm=max_grad_norm,
        )
        self._setup(make_base(base, params, lr, base_kwargs), options)

    @classmethod
    def wrap(cls, optimizer: Optimizer, **options: Any) -> OptEx:
        """OptEx over an existing optimizer, whose groups and state it keeps using.

        Args:
            optimizer: any first-order `torch.optim.Optimizer` that steps without a closure.
            **options: as for the constructor, less ``params``, ``lr``, ``base`` and ``base_kwargs``.

        Raises:
            ConfigError: ``optimizer`` is no optimizer instance, or an option is outside what is allowed.
        """
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(f"wrap needs a torch.optim.Optimizer instance, got {optimizer!r}")
        refuse_unknown(options.keys() - OptExOptions.__dataclass_fields__, wrapping=True)
        wrapper = cls.__new__(cls)
        wrapper._setup(optimizer, OptExOptions(**options))
        return wrapper

    def _setup(self, base: Optimizer, options: OptExOptions) -> None:
        closure = inspect.signature(type(base).step).parameters.get("closure")
        if options.parallelism > 1 and closure is not None and closure.default is inspect.Parameter.empty:
            name = type(base).__name__
            raise ConfigError(f"{name} cannot be a base: its step needs a closure; use a first-order one")
        self._engine = Engine(base, options)
        # Gives the wrapper hooks of its own; Optimizer.__init__ would wipe the groups and the state of the base.
        super().__setstate__({})

    def __repr__(self) -> str:
        start, base = f"{type(self).__name__} (", type(self.base).__name__
        return super().__repr__().replace(start, f"{start}base: {base}, parallelism: {self.options.parallelism}", 1)

    @property
    def base(self) -> Optimizer:
        """The base optimizer, which owns the parameter groups and the per-parameter state."""
        return self._engine.base.base

    @property
    def options(self) -> OptExOptions:
        """The options given at construction."""
        return self._engine.options

    # Not copied: load_state_dict of the base replaces these objects, and copies would go stale.

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The parameter groups of the base."""
        return self.base.param_groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """The per-parameter state of the base, whose tensors have the shapes ``[*shape]`` of the parameters."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The defaults of the base's parameter groups."""
        return self.base.defaults

    @property
    def statistics(self) -> dict[str, float]:
        """Figures of the last iteration, for a log; empty before the first, and with ``parallelism=1``.

        ``steps``: base steps from the old iterate to the new one; ``history``: pairs known; ``horizon``, where it
        adapts: that of the next iteration. Where there was a prediction also ``cosine``: mean cosine between prediction
        and true gradient at the points (but for the last one of a fixed chain); ``lengthscale``, unless infinite;
        ``noise`` and ``variance`` (mean posterior variance at the points), in units of the kernel's amplitude. Several
        parameter groups have ``cosine/NAME``, and with ``blocks="groups"`` also ``lengthscale/NAME`` …, NAME being the
        group's ``"name"`` if it has one, or its number.
        """
        return dict(self._engine.statistics)

    def reset_history(self) -> None:
        """Drop the history and the iteration under way, for instance when the objective changes."""
        self._engine.reset()

    def at_iterate(self) -> AbstractContextManager[None]:
        """A block in which the parameters are at the iterate, to evaluate or save them there.

        Only with ``without_closure="emulate"`` are they ever elsewhere between two steps. A state dictionary made in
        the block continues from the iterate: the iteration under way is evaluated again.
        """
        return self._engine.at_iterate()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the base. The history is reset: its rows have the old length."""
        self.base.add_param_group(param_group)
        self.reset_history()

    @torch.no_grad()
    def ask(self) -> Tensor:
        """The parameter sets to evaluate, ``[N, d]``, in the order of the groups; row 0 is the current iterate.

        The parameters stay where they are. Asking again before `tell` gives the same points, unless the parameters were
        moved in between: then a new chain starts where they are. No copy is made: do not change the points in place.
        """
        return self._engine.ask()

    @torch.no_grad()
    def tell(
        self, gradients: Tensor, losses: Tensor | None = None, usable: Tensor | None = None, *, move: bool = True
    ) -> None:
        """Take the true gradients at the points of `ask` and move the parameters to the next iterate.

        Args:
            gradients: ``[N, d]``.
            losses: ``[N]``; needed by the selection ``"loss"``.
            usable: mask ``[N]`` of the evaluations to use, all by default; others may be NaN: they enter nothing.
            move: False if the caller moves the parameters itself: then the pairs only enter the history.

        Raises:
            ConfigError: `ask` was not called, its points were changed in place, the parameters were moved since, or the
                shapes are not those.
            NonFiniteError: a gradient or loss to be used is NaN or infinite, or no point is usable; nothing was
                changed. Or the step would make parameters NaN or infinite; parameters and state are as before it.
            NotPositiveDefiniteError: the kernel matrix cannot be factorised; parameters and state are as before.
        """
        self._engine.tell(gradients, losses, usable=usable, move=move)
        self._opt_called = True  # learning-rate schedulers warn unless a step was made before theirs

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One sequential iteration with a closure; without one, see ``without_closure``.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward()`` and returns the loss. It is called N
                times, the parameters at one point after the other.

        Returns:
            The loss at the iterate where the step began; None without a closure.

        Raises:
            ConfigError: no parameter has a gradient, or a gradient is sparse.
            NonFiniteError: a gradient, a loss or a new parameter is NaN or infinite; the parameters are at the iterate.
        """
        if self.options.parallelism == 1:
            return self._engine.base_step(closure)
        if closure is not None:
            return self._engine.evaluate(torch.enable_grad()(closure))
        if self.options.without_closure == "emulate":
            return self._engine.emulate()
        return self._engine.extrapolate()

    def state_dict(self) -> dict[str, Any]:
        """The base's state dictionary with one more entry, ``"optex"``: history and iteration under way.

        A copy: later steps do not change it. ``torch.load(weights_only=True)`` accepts it, and so does a bare base.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state = {**deepcopy(self.base.state_dict()), "optex": self._engine.state_dict()}
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            state = post_hook(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dictionary of OptEx, or of its bare base (the history is then reset); the options stay as given.

        Raises:
            ValueError: the parameter groups do not match.
            RuntimeError: the history is for another number of parameters.
        """
        state = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state = pre_hook(self, state) or state
        optex = state.pop("optex", None)
        if optex is not None:
            self._engine.check_state_dict(optex)  # before anything changes
        self.base.load_state_dict(deepcopy(state))
        self.reset_history()
        if optex is not None:
            self._engine.load_state_dict(optex)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        # Only the engine: a scheduler's patched step and hooks of users cannot be pickled.
        return {"_engine": self._engine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._engine = state["_engine"]
        super().__setstate__({})
