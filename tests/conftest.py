"""One thread of torch for every test."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Import torch here, for the process that only hands out the tests to others needs none of it."""
    import torch

    torch.set_num_threads(1)
