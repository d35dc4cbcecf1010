"""Vector environments: `make_vec`, and six small tasks that NumPy steps as one batch.

Importing this package registers the native tasks with Gymnasium under names of their own, `optex_rl/CartPole-v1` and so
on, for `gymnasium.make_vec(..., vectorization_mode="vector_entry_point")`. Nothing else in the registry is touched.
"""

from .acrobot import Acrobot
from .cartpole import CartPole
from .catch import Catch
from .frame_stack import FrameStack
from .mountain_car import MountainCar, MountainCarContinuous
from .native import NativeVectorEnv
from .pendulum import Pendulum
from .registry import NATIVE, EnvFactory, find_task, register, register_native, task_name
from .slow import SlowVectorEnv
from .vector import SameStepVectorEnv, describe_backend, make_vec

__all__ = [
    "NATIVE",
    "Acrobot",
    "CartPole",
    "Catch",
    "EnvFactory",
    "FrameStack",
    "MountainCar",
    "MountainCarContinuous",
    "NativeVectorEnv",
    "Pendulum",
    "SameStepVectorEnv",
    "SlowVectorEnv",
    "describe_backend",
    "find_task",
    "make_vec",
    "register",
    "task_name",
]

register_native()
