"""Seeds of independent streams of random numbers."""

from __future__ import annotations

import numpy as np


def spawn_seeds(seed: int, stream: int, count: int, first: int = 0) -> list[int]:
    """``count`` independent seeds; the i-th is the same whatever ``count`` is, so point i does not depend on N.

    Args:
        seed: the seed of the run.
        stream: which use the numbers are for; different streams are independent.
        count: how many.
        first: number of the first one.
    """
    sequences = (np.random.SeedSequence(seed, spawn_key=(stream, i)) for i in range(first, first + count))
    return [int(sequence.generate_state(1)[0]) for sequence in sequences]
