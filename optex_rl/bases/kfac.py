"""K-FAC: steps preconditioned by Kronecker factors of the Fisher matrix, which curvlinops computes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..agents import Categorical, DiagonalGaussian, StackedPolicy
from ..common.errors import ConfigError, NonFiniteError
from .natural import Preconditioned

with warnings.catch_warnings():  # linear_operator, which it imports, uses torch.jit.script
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)  # from torch 2.14 on
    from curvlinops import KFACLinearOperator

LAYERS = (nn.Linear, nn.Conv2d)  # those that curvlinops supports


class _Likelihood(nn.Module):
    """The actor, or the critic, as a network whose standard loss has the Fisher matrix of its distribution."""

    def __init__(self, policy: nn.Module, critic: bool) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
        distribution = StackedPolicy(policy).distribution
        self.gaussian = distribution if isinstance(distribution, DiagonalGaussian) and not critic else None
        categorical = not critic and self.gaussian is None
        self.loss: nn.CrossEntropyLoss | nn.MSELoss = nn.CrossEntropyLoss() if categorical else nn.MSELoss()

    def forward(self, obs: Tensor) -> Tensor:
        """[B, O] -> logits [B, A], or means such that the mean squared error has the Fisher matrix of the Gaussian."""
        if self.critic:
            values: Tensor = self.policy.critic(obs)  # type: ignore[operator]
            return values[:, None] / math.sqrt(2)
        inputs: Tensor = self.policy.actor(obs)  # type: ignore[operator]
        if self.gaussian is None:
            return inputs
        mean, log_std = inputs.chunk(2, dim=-1)
        # curvlinops takes the mean over the m components, too, and a squared error has twice the curvature of −log p.
        return mean * (-log_std.detach()).exp() * math.sqrt(self.gaussian.m / 2)


class KFAC(Preconditioned):
    """K-FAC (Martens and Grosse, 2015, arXiv 1503.05671) for policies, as in ACKTR (Wu et al., 2017, arXiv 1708.05144).

    The weights W of a linear or convolutional layer step by G⁻¹ ∇W A⁻¹, its bias by G⁻¹ ∇b; A is the second moment of
    the layer's inputs, G that of the gradients at its outputs with actions drawn from the policy, one per observation.
    λ is added to the bias's G and split between the weights' A and G as in Martens and Grosse, Sec. 6.3. A critic is a
    Gaussian of variance 1. A parameter named ``log_std``, which is in no layer, has the Fisher matrix 2 I of the
    logarithms of a Gaussian's standard deviations. There is no momentum and no trust region. The inverses are kept in
    the per-parameter state.

    Args:
        params: parameters ``[out, in, …]`` and ``[out]``, or parameter groups.
        lr: learning rate.
        damping: λ.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float | Tensor = 1e-3, damping: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "damping": damping})

    def _check_policy(self, policy: nn.Module) -> None:
        distribution = StackedPolicy(policy).distribution
        if not isinstance(distribution, (Categorical, DiagonalGaussian)):
            raise ConfigError(f"K-FAC knows Categorical and DiagonalGaussian, not {type(distribution).__name__}")
        if isinstance(distribution, DiagonalGaussian) and log_std_of(policy) is None:
            raise ConfigError("K-FAC needs the logarithms of the standard deviations to be a parameter named log_std")
        in_layers = {id(p) for m in policy.modules() if isinstance(m, LAYERS) for p in m.parameters(recurse=False)}
        own = {id(p) for p in self._parameters()}
        for name, parameter in policy.named_parameters():
            if id(parameter) in own - in_layers and parameter is not log_std_of(policy):
                raise ConfigError(
                    f"K-FAC knows linear and convolutional layers, and {name!r} is in none; use 'natural'"
                )

    @torch.enable_grad()
    def refresh(self, batch: Any, generator: torch.Generator) -> None:
        """Compute and invert the factors on the observations of the batch; see `RefreshedBase`."""
        policy, objective = self._bound()
        observations = objective.observations(batch)
        own = {id(p) for p in self._parameters()}
        inputs: dict[nn.Module, Tensor] = {}
        outputs: dict[nn.Module, Tensor] = {}
        for critic in (False, True) if StackedPolicy(policy).has_critic else (False,):
            seed = int(torch.randint(2**31, (), generator=generator))
            for layer, A, G in layer_factors(_Likelihood(policy, critic), observations, seed, own):
                inputs[layer] = A
                outputs[layer] = outputs[layer] + G if layer in outputs else G  # the Fisher matrices of both add up
        if not all(factor.isfinite().all() for factor in (*inputs.values(), *outputs.values())):
            raise NonFiniteError("the Kronecker factors have NaN or infinite entries; the optimizer is unchanged")
        damping = self.param_groups[0]["damping"]
        self.reset()
        for layer, G in outputs.items():
            weight: Tensor = layer.get_parameter("weight")
            self.state[weight]["input"], self.state[weight]["output"] = damped_inverses(inputs[layer], G, damping)
            if getattr(layer, "bias", None) is not None:
                self.state[layer.get_parameter("bias")]["output"] = inverse(G, damping)

    def reset(self) -> None:
        """Make the Fisher matrix zero, but 2 I for the logarithms of the standard deviations."""
        damping, log_std = self.param_groups[0]["damping"], log_std_of(self._bound()[0])
        for parameter in self._parameters():
            state = self.state[parameter]
            if parameter.dim() > 1:
                state["input"] = torch.eye(parameter[0].numel()).to(parameter)
            fisher = 2.0 if parameter is log_std else 0.0
            state["output"] = torch.eye(len(parameter)).to(parameter) / (fisher + damping)

    def precondition(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """G⁻¹ ∇W A⁻¹ for weights ``[out, in, …]``, G⁻¹ ∇b for biases ``[out]``.

        Raises:
            ConfigError: `refresh` was never called.
        """
        states = [self.state.get(p, {}) for p in self._parameters()]
        if not all("output" in state for state in states):
            raise ConfigError("KFAC needs a batch: call refresh(batch, generator) before a step")
        pairs = zip(gradients, states, strict=True)
        return [None if g is None else precondition_layer(g, s["output"], s.get("input")) for g, s in pairs]


def log_std_of(policy: nn.Module) -> nn.Parameter | None:
    """The parameter named ``log_std``, if there is one."""
    return next((p for name, p in policy.named_parameters() if name.rpartition(".")[2] == "log_std"), None)


def layer_factors(
    network: _Likelihood, observations: Tensor, seed: int, own: set[int] | None = None
) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """The layers that a network uses, with their factors A ``[in, in]`` and G ``[out, out]``.

    Only those whose weights are trained, and among the ``own`` parameters, which are known by identity; None for all.
    """
    output = network(observations)
    layers = [m for m in network.modules() if isinstance(m, LAYERS)]
    weights = [layer.weight for layer in layers if layer.weight.requires_grad]
    used = torch.autograd.grad(output.sum(), weights, allow_unused=True)
    pairs = zip(weights, used, strict=True)
    params = [w for w, gradient in pairs if gradient is not None and (own is None or id(w) in own)]
    if not params:
        return
    B = len(observations)
    classes = isinstance(network.loss, nn.CrossEntropyLoss)
    # Only the shape of the targets matters: labels are drawn from the network's distribution.
    targets = torch.zeros(B, dtype=torch.long) if classes else torch.zeros_like(output)
    operator = KFACLinearOperator(
        network,
        network.loss,
        params,
        [(observations, targets)],
        check_deterministic=False,
        seed=seed,
        num_per_example_loss_terms=1,
        num_data=B,
    )
    operator.compute_kronecker_factors()
    factors = operator.state_dict()
    for name, A in factors["input_covariances"].items():
        yield network.get_submodule(name), A, factors["gradient_covariances"][name]


def damped_inverses(A: Tensor, G: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(A + π √λ I)⁻¹ and (G + √λ/π I)⁻¹, π² the ratio of their mean eigenvalues (Martens and Grosse, Sec. 6.3)."""
    least = torch.finfo(A.dtype).eps
    pi = float((A.diagonal().mean().clamp(min=least) / G.diagonal().mean().clamp(min=least)).sqrt())
    return inverse(A, pi * math.sqrt(damping)), inverse(G, math.sqrt(damping) / pi)


def inverse(matrix: Tensor, damping: float) -> Tensor:
    """(matrix + damping I)⁻¹ of a positive semidefinite matrix, by Cholesky in float64."""
    damped = matrix.double() + damping * torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    inverted: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return inverted.to(matrix)


def precondition_layer(gradient: Tensor, outputs: Tensor, inputs: Tensor | None) -> Tensor:
    """G⁻¹ ∇W A⁻¹ for the gradient of a weight ``[out, in, …]``; G⁻¹ ∇b for that of a bias ``[out]``, without A⁻¹."""
    if inputs is None:
        return outputs @ gradient
    return (outputs @ gradient.flatten(1) @ inputs).view_as(gradient)
