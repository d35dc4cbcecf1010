"""Hold the settings of ``optex_rl/compare/rl_zoo3.yml`` against a release of rl_zoo3.

    pip download --no-deps rl_zoo3==2.9.2
    python -m scripts.check_rl_zoo3 rl_zoo3-2.9.2-py3-none-any.whl

Every algorithm and task of our file must have the release's options, no more and no less but for the policy, which is
``MlpPolicy`` and not in our file. Each difference is printed; the exit status says whether there is one.
"""

from __future__ import annotations

import argparse
import ast
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from optex_rl.common.storage import packaged_table
from optex_rl.compare.rl_zoo3 import TABLE

POLICY: Final = {"policy": "MlpPolicy"}  # of all of them


def plain(value: Any) -> Any:
    """A value of either file: ``"dict(name=value)"`` as that dictionary, ``"lin_7e-4"`` as ``("lin", 0.0007)``."""
    if isinstance(value, str) and value.startswith("lin_"):
        return "lin", float(value.removeprefix("lin_"))
    if isinstance(value, str) and value.startswith("dict("):
        call = ast.parse(value, mode="eval").body
        assert isinstance(call, ast.Call)
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    return value


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """A line for each option whose values differ, those that only one of them has included."""
    for name in sorted(theirs.keys() | ours.keys()):
        here, there = ours.get(name), theirs.get(name)
        if plain(here) != plain(there):
            yield f"{name}: {here} here, {there} there"


def settings(wheel: zipfile.ZipFile, algo: str) -> dict[str, dict[str, Any]]:
    """The release's options of an algorithm by task; none where it has no such algorithm."""
    name = f"rl_zoo3/hyperparams/{algo}.yml"
    return dict(yaml.safe_load(wheel.read(name))) if name in wheel.namelist() else {}


def main() -> int:
    """Compare all that the file has; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="of rl_zoo3")
    path, found, compared, release = parser.parse_args().wheel, [], 0, {}
    if not zipfile.is_zipfile(path):
        parser.error(f"{path} is not a wheel; --help says how to get one")
    with zipfile.ZipFile(path) as wheel:
        for env, algorithms in packaged_table(*TABLE).items():
            for algo, ours in algorithms.items():
                if algo not in release:
                    release[algo] = settings(wheel, algo)
                found += [f"{env} {algo} {line}" for line in differences(POLICY | ours, release[algo].get(env, {}))]
                compared += len(ours)
    print("\n".join([*found, f"{compared} options compared, {len(found)} differences"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
