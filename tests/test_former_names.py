"""Names of modules before the wings: programs import them, pickles and zip files of stable-baselines3 hold them."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "name", "home"),
    [
        ("optex_rl.adapters", "SAM", "optex_rl.bases.adapters"),
        ("optex_rl.adapters", "AdaHessian", "optex_rl.bases.adapters"),
        ("optex_rl.bases", "BASES", "optex_rl.bases.registry"),
        ("optex_rl.bases", "make_base", "optex_rl.bases.registry"),
        ("optex_rl.errors", "ConfigError", "optex_rl.common.errors"),
        ("optex_rl.kfac", "KFAC", "optex_rl.bases.kfac"),
        ("optex_rl.natural", "NaturalGradient", "optex_rl.bases.natural"),
        ("optex_rl.objective", "Objective", "optex_rl.bases.protocols"),
        ("optex_rl.optimizer", "OptEx", "optex_rl.optimizer.optex"),
    ],
)
def test_a_former_name_is_the_same_object(module: str, name: str, home: str) -> None:
    expected = getattr(importlib.import_module(home), name)
    assert getattr(importlib.import_module(module), name) is expected
    assert pickle.loads(f"c{module}\n{name}\n.".encode()) is expected


def test_the_package_is_a_command() -> None:
    result = subprocess.run([sys.executable, "-m", "optex_rl", "--help"], capture_output=True, text=True, check=True)
    assert "compare" in result.stdout
