"""The features of a `CnnPolicy` at N points.

Convolutions are made point after point, linear layers by batched products. `torch.func.vmap` makes of N convolutions a
grouped one, which on a CPU takes 1.4 to 2.2 times as long, forwards and backwards, as N of them, one after the other,
on images whose channels are the last axis in memory (``scripts/benchmark_cnn.py``).

Axes: N points (parameter sets), B batch rows, O entries of a row, C channels, H × W pixels, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ...common.torch_private import changes
from .cnn import CnnPolicy, Features
from .stacked_mlp import ACTIVATIONS, StackedMlp

Convolution = tuple[Tensor, Tensor, tuple[int, ...]]  # weight [N, out, in, k, k], bias [N, out], stride
ExtractFeatures = Callable[[Tensor], Tensor]  # [N, B, O] -> [N, B, F]


def stack_features(policy: CnnPolicy, stacked: dict[str, Tensor]) -> tuple[ExtractFeatures, ExtractFeatures]:
    """The features for the actor and for the critic, which may be the same, see `Remembered`.

    Args:
        policy: gives the architecture.
        stacked: its parameters by name, [N, *shape].
    """
    features = StackedFeatures(policy.features, stacked, "features")
    if policy.shares_features:
        remembered = Remembered(features)
        return remembered, remembered
    if not policy.has_critic:
        return features, features
    return features, StackedFeatures(policy.critic_features, stacked, "critic_features")


class StackedFeatures:
    """`Features` at N points.

    Args:
        features: gives the architecture.
        stacked: parameters by name, [N, *shape].
        prefix: of their names.
    """

    def __init__(self, features: Features, stacked: dict[str, Tensor], prefix: str) -> None:
        self._layout = features.layout
        self._convolutions: list[list[Convolution]] = []  # of each image
        self._linear: list[StackedMlp] = []
        for i, cnn in enumerate(features.cnns):
            convolutions, linear = [], []
            for name, layer in cnn.named_children():
                if not isinstance(layer, (nn.Conv2d, nn.Linear)):
                    continue
                weight, bias = (stacked[f"{prefix}.cnns.{i}.{name}.{part}"] for part in ("weight", "bias"))
                if isinstance(layer, nn.Conv2d):
                    convolutions.append((weight, bias, layer.stride))
                else:
                    linear.append((weight, bias))
            self._convolutions.append(convolutions)
            self._linear.append(StackedMlp(linear, ACTIVATIONS["relu"], ACTIVATIONS["relu"]))

    def __call__(self, rows: Tensor) -> Tensor:
        """[N, B, O] -> [N, B, F]."""
        numbers, maps = zip(*(self._convolve(n, point) for n, point in enumerate(rows.unbind())), strict=True)
        images = [torch.stack(points) for points in zip(*maps, strict=True)]
        outputs = [linear(image) for linear, image in zip(self._linear, images, strict=True)]
        if not self._layout.numbers and len(outputs) == 1:
            return outputs[0]
        return torch.cat([torch.stack(numbers), *outputs], dim=-1)

    def _convolve(self, n: int, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Numbers [B, ·] of the rows [B, O] of point n, and what the convolutions make of each image, [B, ·]."""
        numbers, images = self._layout.split(rows)
        pairs = zip(images, self._convolutions, strict=True)
        return numbers, [convolve(image, [(w[n], b[n], s) for w, b, s in layers]) for image, layers in pairs]


def convolve(image: Tensor, layers: Sequence[Convolution]) -> Tensor:
    """Convolutions with ReLU, and the result as rows: [B, C, H, W] -> [B, ·].

    Args:
        image: [B, C, H, W].
        layers: weight [out, in, k, k], bias [out] and stride of each.
    """
    image = image.contiguous(memory_format=torch.channels_last)
    for weight, bias, stride in layers:
        image = conv2d(image, weight, bias, stride).relu_()
    return image.flatten(1)


class Remembered:
    """Features that actor and critic share: for the same rows computed once while gradients are recorded.

    Hence the gradient of both goes through one graph, and is to be taken of their sum.

    Args:
        features: computes them.
    """

    def __init__(self, features: ExtractFeatures) -> None:
        self._features = features
        self._seen: tuple[Tensor, int, Tensor] | None = None  # rows, their version, and the features

    def __call__(self, rows: Tensor) -> Tensor:
        """[N, B, O] -> [N, B, F]."""
        if not torch.is_grad_enabled():
            return self._features(rows)
        if self._seen is None or not rows.is_set_to(self._seen[0]) or changes(rows) != self._seen[1]:
            self._seen = rows, changes(rows), self._features(rows)
        return self._seen[2]
