"""The models of the supervised benchmark. Axes: ``B`` examples, ``C`` context length, ``V`` alphabet size."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .datasets import CATEGORIES, INTEGERS


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Fully connected layers with an activation between any two."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


class ImageClassifier(nn.Module):
    """Four convolutions and two linear layers for images ``[B, 3, 32, 32]`` of bytes; d = 2,401,626."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 64, 128, 256, 256)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(channels):
            layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classes = mlp(1024, 1392, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, 10]``."""
        logits: Tensor = self.classes(self.features(images.float() / 127.5 - 1.0))
        return logits


class CharacterTransformer(nn.Module):
    """A causal transformer over characters, normalised before each part; d ≈ 1.6 M for 65 characters.

    Args:
        alphabet: number of characters V.
        context: most characters C seen at once.
        width: of every layer.
        heads: of the attention; divides the width.
        layers: blocks of attention and a linear part four times as wide.
    """

    def __init__(self, alphabet: int, context: int, width: int = 180, heads: int = 6, layers: int = 4) -> None:
        super().__init__()
        self.characters = nn.Embedding(alphabet, width)
        self.places = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, alphabet)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits of the next character at every place, ``[B, C, V]``."""
        C = characters.shape[1]
        hidden = self.characters(characters) + self.places[:C]
        future = nn.Transformer.generate_square_subsequent_mask(C)
        for block in self.blocks:
            hidden = block(hidden, src_mask=future, is_causal=True)
        logits: Tensor = self.logits(self.norm(hidden))
        return logits


class ClickModel(nn.Module):
    """Embeddings, their inner products, and an MLP (DLRM: Naumov et al., 2019, arXiv 1906.00091).

    The gradients of the embeddings are dense.

    Args:
        buckets: rows of each of the 26 tables of embeddings.
        width: of an embedding.
    """

    def __init__(self, buckets: int, width: int = 8) -> None:
        super().__init__()
        self.tables = nn.Parameter(torch.randn(CATEGORIES, buckets, width) / width)
        self.bottom = mlp(INTEGERS, 32, width)
        pairs = (CATEGORIES + 1) * CATEGORIES // 2
        self.top = mlp(width + pairs, 64, 1)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Logits ``[B, 2]`` of no click, always 0, and a click; from ``[B, 13]`` and ``[B, 26]``."""
        dense = self.bottom(numbers)
        vectors = torch.cat([dense[:, None], self.tables[torch.arange(CATEGORIES), categories]], 1)  # [B, 27, width]
        row, column = torch.tril_indices(CATEGORIES + 1, CATEGORIES + 1, offset=-1)
        products = (vectors @ vectors.mT)[:, row, column]
        click = self.top(torch.cat([dense, products], 1))
        return torch.cat([torch.zeros_like(click), click], 1)
