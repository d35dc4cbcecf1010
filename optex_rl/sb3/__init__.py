"""stable-baselines3: OptEx inside its algorithms, and its A2C with parallel rollouts.

- `sb3_defaults`: the optimizer that an algorithm would have used, as arguments for `optex_rl.OptEx`.
- `OptExCallback`: evaluation and checkpoints at the iterate, a history for each PPO rollout, statistics in the log.
- `make_sb3_vec_env`: the natively vectorised environments as a ``VecEnv``.
- `OptExA2C`: A2C with rollouts and gradients at N parameter sets at once.
- `OptExDQN`: DQN with gradients at N parameter sets at once.

Needs ``pip install 'optex-rl[sb3]'``; the rest of the package does not.
"""

from __future__ import annotations

from typing import Any, Final

from ..common.errors import ConfigError

try:
    from .a2c import OptExA2C as OptExA2C
    from .callback import OptExCallback as OptExCallback
    from .dqn import OptExDQN as OptExDQN
    from .vec_env import NativeVecEnv as NativeVecEnv
    from .vec_env import make_sb3_vec_env as make_sb3_vec_env
except ModuleNotFoundError as error:
    if error.name != "stable_baselines3":
        raise
    raise ModuleNotFoundError("optex_rl.sb3 needs stable-baselines3: pip install 'optex-rl[sb3]'") from error

__all__ = ["NativeVecEnv", "OptExA2C", "OptExCallback", "OptExDQN", "make_sb3_vec_env", "sb3_defaults"]

_ADAM_ACTOR_CRITIC: Final = ("adam", {"eps": 1e-5})
_ADAM: Final = ("adam", dict[str, Any]())
_DEFAULTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "a2c": ("rmsprop", {"alpha": 0.99, "eps": 1e-5, "weight_decay": 0}),
    "ppo": _ADAM_ACTOR_CRITIC,
    "maskableppo": _ADAM_ACTOR_CRITIC,
    "recurrentppo": _ADAM_ACTOR_CRITIC,
    "ppolstm": _ADAM_ACTOR_CRITIC,
    "trpo": _ADAM_ACTOR_CRITIC,
    "dqn": _ADAM,
    "qrdqn": _ADAM,
    "ddpg": _ADAM,
    "td3": _ADAM,
    "sac": _ADAM,
    "tqc": _ADAM,
}


def sb3_defaults(algorithm: str, *, batch_size: int = 32) -> dict[str, Any]:
    """The arguments ``base`` and ``base_kwargs`` with which `OptEx` has the base that an algorithm uses by default.

    stable-baselines3 adds these arguments only where no ``optimizer_class`` is given (``A2C.__init__``,
    ``ActorCriticPolicy.__init__``, ``QRDQN.__init__``), so they must be repeated.

    Args:
        algorithm: a name of stable-baselines3, sb3-contrib or rl_zoo3, such as ``"a2c"`` or ``"ppo_lstm"``.
        batch_size: of QRDQN, whose ε is 0.01 / batch_size.

    Returns:
        Plain values, which pickle, compare and dump to YAML; a new dictionary each time.

    Raises:
        ConfigError: the algorithm is unknown.
    """
    name = algorithm.lower().replace("_", "").replace("-", "")
    if name not in _DEFAULTS:
        raise ConfigError(f"no defaults are known for {algorithm!r}, only for {', '.join(_DEFAULTS)}")
    base, kwargs = _DEFAULTS[name]
    return {"base": base, "base_kwargs": {"eps": 0.01 / batch_size} if name == "qrdqn" else dict(kwargs)}
