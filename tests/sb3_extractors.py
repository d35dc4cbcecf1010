"""Features extractors of stable-baselines3 that `torch.func.vmap` may stumble over."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from .networks import BATCHED, ONE_BY_ONE, REFUSED, WIDTH

NETWORKS = ONE_BY_ONE | BATCHED | {name: make for name, (make, _) in REFUSED.items()}
# torch's, of the operations that vmap makes one after the other on its own, and ours, which a test of its own expects.
SLOW = ("ignore:There is a performance drop because", "ignore::optex_rl.PerformanceWarning")


class Extractor(BaseFeaturesExtractor):
    """One of the networks that vmap may stumble over."""

    def __init__(self, observation_space: spaces.Box, kind: str) -> None:
        super().__init__(observation_space, WIDTH)
        self.network = NETWORKS[kind](observation_space.shape[0])

    def forward(self, observations: Tensor) -> Tensor:
        features: Tensor = self.network(observations)
        return features


def extracting(kind: str) -> dict[str, Any]:
    """`policy_kwargs` with such an extractor."""
    return {"features_extractor_class": Extractor, "features_extractor_kwargs": {"kind": kind}, "net_arch": [8]}
