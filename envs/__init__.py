"""Vector environments: `make_vec`, and five classic-control tasks that NumPy steps as one batch.

Importing this package registers the native tasks with Gymnasium under names of their own, `optex_rl/CartPole-v1` and so
on, for `gymnasium.make_vec(..., vectorization_mode="vector_entry_point")`. Nothing else in the registry is touched.
"""

from .acrobot import Acrobot
from .cartpole import CartPole
from .mountain_car import MountainCar, MountainCarContinuous
from .native import NativeVectorEnv
from .pendulum import Pendulum
from .vector import NATIVE, SameStepVectorEnv, describe_backend, make_vec, register_native

__all__ = [
    "NATIVE",
    "Acrobot",
    "CartPole",
    "MountainCar",
    "MountainCarContinuous",
    "NativeVectorEnv",
    "Pendulum",
    "SameStepVectorEnv",
    "describe_backend",
    "make_vec",
]

register_native()
