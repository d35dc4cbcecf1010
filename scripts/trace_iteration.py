"""What one sequential iteration runs through: files entered, distinct functions, and the depth of nested calls.

A warm iteration of `Trainer.iterate` is traced: predictions are in use and the history is full. Each function counts
once, comprehensions and lambdas included; only those of this project count, also when a library calls them. With
``--tree``, every file is listed with its functions and how often each was called. With ``--no-shared-critic``, the
iteration has no passes of a critic that all points share. With ``--sb3``, a rollout and an update of
stable-baselines3's A2C are traced instead.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

import optex_rl
from optex_rl import TrainConfig
from optex_rl.training import Trainer


def traced(call: Callable[[], Any], package: Path) -> tuple[Counter[CodeType], int]:
    """The functions in the folder of a package that a call enters, how often each, and the deepest nesting of them."""
    calls: Counter[CodeType] = Counter()
    stack: list[CodeType] = []
    deepest = 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal deepest
        code = frame.f_code
        if not code.co_filename.startswith(str(package)):
            return
        if event == "call":
            calls[code] += 1
            stack.append(code)
            deepest = max(deepest, len(stack))
        elif event == "return" and stack:
            stack.pop()

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return calls, deepest


def ours(options: argparse.Namespace) -> tuple[Callable[[], Any], Path]:
    """A warm iteration, and the folder of this package."""
    given = {"n_critic_updates": 0} if options.no_shared_critic else {}
    trainer = Trainer(TrainConfig.recommended(options.env, options.algo, parallelism=options.parallelism, **given))
    for _ in range(12):
        trainer.iterate()
    return trainer.iterate, Path(optex_rl.__file__).parent


def a2c(env: str) -> tuple[Callable[[], Any], Path]:
    """A warm rollout and update of stable-baselines3's A2C, and the folder of that package."""
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env

    model = stable_baselines3.A2C("MlpPolicy", make_vec_env(env, 8), device="cpu")
    _, callback = model._setup_learn(10**6)
    assert model.env is not None

    def iterate() -> None:
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)  # type: ignore[arg-type]
        model.train()

    iterate()
    return iterate, Path(stable_baselines3.__file__).parent


def main() -> None:
    """Parse the flags, trace, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--algo", default="a2c")
    parser.add_argument("--parallelism", type=int, default=4)
    parser.add_argument("--no-shared-critic", action="store_true", help="n_critic_updates of 0")
    parser.add_argument("--sb3", action="store_true", help="trace stable-baselines3's A2C")
    parser.add_argument("--tree", action="store_true", help="list files and functions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    call, package = a2c(options.env) if options.sb3 else ours(options)
    calls, deepest = traced(call, package)
    files: dict[str, list[CodeType]] = {}
    for code in calls:
        files.setdefault(str(Path(code.co_filename).relative_to(package)), []).append(code)
    print(f"{len(files)} files, {len(calls)} functions, {deepest} deep")
    if options.tree:
        for name, codes in sorted(files.items()):
            print(name)
            for code in sorted(codes, key=lambda code: code.co_firstlineno):
                print(f"    {code.co_firstlineno:4d} {code.co_name} × {calls[code]}")


if __name__ == "__main__":
    main()
