"""An MLP at N points: batched products, with backward passes by hand where torch's are slow.

Axes: N points (parameter sets), B batch rows, H features of a hidden layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Activation(NamedTuple):
    """A function of each number, whose derivative is one of its value.

    Attributes:
        apply: the function; may overwrite its argument.
        pull_back: gradient for the values, values -> gradient for the arguments; may overwrite the gradient unless
            grad mode is on, when autograd must be able to follow.
    """

    apply: Callable[[Tensor], Tensor]
    pull_back: Callable[[Tensor, Tensor], Tensor]


def _tanh(x: Tensor) -> Tensor:
    """tanh in place; NumPy's on a CPU, in the two dtypes that it vectorises: torch's took 13 times as long."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return x.tanh_()
    np.tanh(x.numpy(), out=x.numpy())
    return x


def _tanh_pull_back(gradient: Tensor, tanh: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return torch.ops.aten.tanh_backward(gradient, tanh)  # type: ignore[no-any-return]
    torch.ops.aten.tanh_backward.grad_input(gradient, tanh, grad_input=gradient)
    return gradient


_LINEAR = Activation(lambda x: x, lambda gradient, _: gradient)
ACTIVATIONS = {
    "tanh": Activation(_tanh, _tanh_pull_back),
    "relu": Activation(torch.relu_, lambda gradient, relu: gradient * (relu > 0)),
}


class _Layer(torch.autograd.Function):
    """Activation of an affine map, rows [N, B, in], weight [N, out, in], bias [N, 1, out] -> [N, B, out].

    `known` is the result where that was computed before, else None.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, activation: Activation, known: Tensor | None
    ) -> Tensor:
        # Detached, what is known is a tensor of its own, which autograd can take for the result.
        outputs = activation.apply(torch.baddbmm(bias, rows, weight.mT)) if known is None else known.detach()
        ctx.save_for_backward(rows, weight, outputs)
        ctx.pull_back = activation.pull_back
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        rows, weight, outputs = ctx.saved_tensors
        # In an MLP the gradient comes from the next layer's product, and nothing else holds it.
        gradient: Tensor = ctx.pull_back(grad_outputs[0], outputs)
        # The fewer features are the rows of the product: as its columns they took up to nine times as long.
        fewer_in = rows.shape[-1] < gradient.shape[-1]
        weight_gradient = (rows.mT @ gradient).mT if fewer_in else gradient.mT @ rows
        rows_gradient = gradient @ weight if ctx.needs_input_grad[0] else None
        return rows_gradient, weight_gradient, gradient.sum(1, keepdim=True), None, None


_layer: Callable[..., Tensor] = _Layer.apply


class StackedMlp:
    """An MLP at N points.

    Args:
        layers: weight [N, out, in] and bias [N, out] of each.
        activation: of the hidden layers.
        last: activation of the last layer; by default none.
    """

    def __init__(
        self, layers: Iterable[tuple[Tensor, Tensor]], activation: Activation, last: Activation = _LINEAR
    ) -> None:
        self._layers = [(weight, bias.unsqueeze(1)) for weight, bias in layers]
        self._transposed = [(weight.mT, bias) for weight, bias in self._layers]  # views, made once for many calls
        self._activation, self._last = activation, last

    def __call__(self, rows: Tensor, known: Sequence[Tensor] = ()) -> Tensor:
        """Outputs, [N, B, in] -> [N, B, out]; `known` [N, B, H] are those of the first hidden layers, if known."""
        if not torch.is_grad_enabled():
            return self.trace(rows)[0]
        *hidden, head = self._layers
        for i, layer in enumerate(hidden):
            rows = _layer(rows, *layer, self._activation, known[i] if i < len(known) else None)
        return _layer(rows, *head, self._last, None)

    def trace(self, rows: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs [N, B, out] and those of every hidden layer, [N, B, H] each; in `torch.no_grad` mode."""
        *hidden, (weight, bias) = self._transposed
        outputs = []
        for hidden_weight, hidden_bias in hidden:
            rows = self._activation.apply(torch.baddbmm(hidden_bias, rows, hidden_weight))
            outputs.append(rows)
        return self._last.apply(torch.baddbmm(bias, rows, weight)), tuple(outputs)
