"""Features [B, fan_in] → [B, 8] of the kinds that `torch.func.vmap` may stumble over, and a policy made of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, parametrizations, vector_to_parameters

from optex_rl.agents import Categorical, StackedPolicy

WIDTH = 8


def points_around(policy: nn.Module, N: int) -> Tensor:
    """``[N, d]`` around the parameters of a policy."""
    start = parameters_to_vector(policy.parameters()).detach()
    return start + 0.3 * torch.randn(N, len(start), generator=torch.Generator().manual_seed(N)).to(start.dtype)


def assert_points_are_separate_policies(
    policy: Any,
    stacked: StackedPolicy,
    points: Tensor,
    obs: Tensor,
    limit: float,
    gradient_limit: float | None = None,
    make_alone: Callable[[], Any] | None = None,
) -> None:
    """Outputs ``[N, B, …]`` at points ``[N, d]``, and their gradients, are those of a module for each point.

    ``limit`` is what the norm of an error may be, relative to that of what is expected; a module that vmap has been
    through may not deepcopy, and is made anew by ``make_alone``.
    """

    def outputs(of: Any, rows: Tensor) -> list[Tensor]:
        return [of.actor(rows), of.critic(rows)] if getattr(policy, "has_critic", True) else [of.actor(rows)]

    def loss_of(inputs: Tensor, *values: Tensor) -> Tensor:
        weights = torch.arange(1.0, 1.0 + inputs.shape[-2], dtype=inputs.dtype)  # no permutation goes unnoticed
        return sum((v * weights.flip(0) for v in values), inputs.square().sum(-1) * weights).sum()

    points = points.detach().requires_grad_()
    given = outputs(stacked.bind(points), obs)
    (gradients,) = torch.autograd.grad(loss_of(*given), points)
    for n, point in enumerate(points.detach()):
        alone = copy.deepcopy(policy) if make_alone is None else make_alone()
        vector_to_parameters(point.clone(), alone.parameters())
        expected = outputs(alone, obs[n])
        parts = torch.autograd.grad(loss_of(*expected), list(alone.parameters()))
        gradient = torch.cat([part.reshape(-1) for part in parts])
        for found, known in zip(given, expected, strict=True):
            assert (found[n] - known).norm() < limit * known.norm()
        assert (gradients[n] - gradient).norm() < (gradient_limit or limit) * gradient.norm()


class SharedExtractor(nn.Module):
    """A custom policy: actor and critic share a layer, and there is a buffer; not derived from anything here."""

    scale: Tensor

    def __init__(self, inputs: int, actions: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(inputs, 16), nn.GELU(), nn.LayerNorm(16))
        self.policy_head, self.value_head = nn.Linear(16, actions), nn.Linear(16, 1)
        self.register_buffer("scale", torch.tensor(2.0))
        self.distribution = Categorical(actions)

    def actor(self, obs: Tensor) -> Tensor:
        logits: Tensor = self.policy_head(self.features(self.scale * obs))
        return logits

    def critic(self, obs: Tensor) -> Tensor:
        values: Tensor = self.value_head(self.features(self.scale * obs))
        return values.squeeze(-1)


class Recurrent(nn.Module):
    """A sequence of one step, from the initial state."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.layer(rows.unsqueeze(1))[0]
        return outputs.squeeze(1)


class Affine(nn.Module):
    def __init__(self, fan_in: int) -> None:
        super().__init__()
        self.layer = nn.Linear(fan_in, WIDTH)

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.layer(rows)
        return outputs.tanh()


class Branch(Affine):
    """Every row takes a side of its own, so that a branch is not a matter of the size of a batch."""

    def forward(self, rows: Tensor) -> Tensor:
        features = super().forward(rows)
        return torch.stack([row if row.sum() > 0 else -2 * row for row in features]) if len(rows) else features


class _BranchingBackwards(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        return rows.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return gradients[0] * output if gradients[0].any() else torch.zeros_like(output)


class BranchBackwards(Affine):
    """vmap gets through the forward pass."""

    def forward(self, rows: Tensor) -> Tensor:
        features: Tensor = _BranchingBackwards.apply(super().forward(rows))  # type: ignore[no-untyped-call]
        return features


class Dropping(Affine):
    def forward(self, rows: Tensor) -> Tensor:
        return functional.dropout(super().forward(rows), 0.5, self.training)


class Averaging(Affine):
    """Gathers a mean of what it has seen in a buffer: written in place, or a new one each time."""

    mean: Tensor

    def __init__(self, fan_in: int, in_place: bool) -> None:
        super().__init__(fan_in)
        self.register_buffer("mean", torch.zeros(()))
        self.in_place = in_place

    def forward(self, rows: Tensor) -> Tensor:
        mean = 0.9 * self.mean + 0.1 * rows.detach().mean()
        if self.in_place:
            self.mean.copy_(mean)
        else:
            self.mean = mean
        return super().forward(rows - mean)


class Keeping(nn.Module):
    """Goes on from the state in which the last call has left it."""

    def __init__(self, fan_in: int) -> None:
        super().__init__()
        self.layer = nn.GRUCell(fan_in, WIDTH)
        self.state: Tensor | None = None

    def forward(self, rows: Tensor) -> Tensor:
        known = self.state is not None and self.state.shape[0] == rows.shape[0]
        state: Tensor = self.layer(rows, self.state if known else None)
        self.state = state.detach()
        return state


class Counting(Affine):
    """Counts its calls, of which no point has more than another."""

    calls: Tensor

    def __init__(self, fan_in: int) -> None:
        super().__init__(fan_in)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, rows: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(rows)


def with_old_weight_norm(fan_in: int) -> nn.Module:
    """A hook before each call computes the weight, which is no parameter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(fan_in, WIDTH)), nn.Tanh())


ONE_BY_ONE: dict[str, Callable[[int], nn.Module]] = {
    "GRU": lambda fan_in: Recurrent(nn.GRU(fan_in, WIDTH, batch_first=True)),
    "LSTM": lambda fan_in: Recurrent(nn.LSTM(fan_in, WIDTH, 2, batch_first=True)),
    "branch": Branch,
    "branch backwards": BranchBackwards,
}
BATCHED: dict[str, Callable[[int], nn.Module]] = {
    "old weight norm": with_old_weight_norm,
    "weight norm": lambda fan_in: nn.Sequential(parametrizations.weight_norm(nn.Linear(fan_in, WIDTH)), nn.Tanh()),
    "batch norm of the batch": lambda fan_in: nn.Sequential(
        nn.Linear(fan_in, WIDTH), nn.BatchNorm1d(WIDTH, track_running_stats=False)
    ),
    "counter": Counting,
}
# With what is said of them.
REFUSED: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "dropout": (
        lambda fan_in: nn.Sequential(Affine(fan_in), nn.Dropout(0.1)),
        "draws random numbers",
    ),
    "functional dropout": (Dropping, "draws random numbers"),
    "dropout of a GRU": (
        lambda fan_in: Recurrent(nn.GRU(fan_in, WIDTH, 2, batch_first=True, dropout=0.1)),
        "draws random numbers",
    ),
    "spectral norm": (
        lambda fan_in: nn.Sequential(parametrizations.spectral_norm(nn.Linear(fan_in, WIDTH))),
        r"changes buffers in its forward pass \(.*0\.parametrizations\.weight\.0\._u, .*_v\), and all points would",
    ),
    "batch norm": (
        lambda fan_in: nn.Sequential(nn.Linear(fan_in, WIDTH), nn.BatchNorm1d(WIDTH)),
        r"changes buffers in its forward pass \(.*1\.running_mean, .*1\.running_var, .*1\.num_batches_tracked\)",
    ),
    "mean in place": (lambda fan_in: Averaging(fan_in, True), r"changes buffers in its forward pass \(.*mean\)"),
    "new mean": (lambda fan_in: Averaging(fan_in, False), r"changes buffers in its forward pass \(.*mean\)"),
    "state": (Keeping, "gives other outputs when it is called again"),
}


class Policy(nn.Module):
    """Two discrete actions and values from the same features of four observations, which have two names."""

    def __init__(self, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        features = make(4)
        self.logits = nn.Sequential(features, nn.Linear(WIDTH, 2))
        self.values = nn.Sequential(features, nn.Linear(WIDTH, 1))
        self.distribution: Any = Categorical(2)

    def actor(self, obs: Tensor) -> Tensor:
        logits: Tensor = self.logits(obs)
        return logits

    def critic(self, obs: Tensor) -> Tensor:
        values: Tensor = self.values(obs)
        return values.squeeze(-1)
