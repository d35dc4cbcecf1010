"""optex-rl: policy-gradient reinforcement learning with parallel policy updates from OptEx (arXiv 2402.11427)."""

from importlib.metadata import version as _version

from .common.errors import ConfigError as ConfigError
from .common.errors import NonFiniteError as NonFiniteError
from .common.errors import NotPositiveDefiniteError as NotPositiveDefiniteError
from .common.errors import NumericalError as NumericalError
from .common.errors import NumericalWarning as NumericalWarning
from .common.errors import OptExError as OptExError
from .common.errors import PerformanceWarning as PerformanceWarning
from .common.errors import ResumeWarning as ResumeWarning
from .common.errors import RunFolderError as RunFolderError
from .common.errors import WorkerError as WorkerError
from .common.errors import WorkerWarning as WorkerWarning
from .optimizer import OptEx as OptEx
from .optimizer.estimator.gp import GradientEstimator as GradientEstimator
from .runner.callbacks import BaseCallback as BaseCallback
from .runner.callbacks import LoggerCallback as LoggerCallback
from .runner.callbacks import OptunaPruningCallback as OptunaPruningCallback
from .runner.callbacks import StopTrainingOnRewardThreshold as StopTrainingOnRewardThreshold
from .runner.callbacks import WandbCallback as WandbCallback
from .runner.loop import TrainResult as TrainResult
from .runner.loop import resume as resume
from .runner.loop import train as train
from .runner.model import Model as Model
from .runner.model import load as load
from .runner.plots import plot as plot
from .training.config import TrainConfig as TrainConfig

__all__ = [
    "BaseCallback",
    "ConfigError",
    "GradientEstimator",
    "LoggerCallback",
    "Model",
    "NonFiniteError",
    "NotPositiveDefiniteError",
    "NumericalError",
    "NumericalWarning",
    "OptEx",
    "OptExError",
    "OptunaPruningCallback",
    "PerformanceWarning",
    "ResumeWarning",
    "RunFolderError",
    "StopTrainingOnRewardThreshold",
    "TrainConfig",
    "TrainResult",
    "WandbCallback",
    "WorkerError",
    "WorkerWarning",
    "__version__",
    "load",
    "plot",
    "resume",
    "train",
]

__version__ = _version("optex-rl")

# Where `optex_rl.kfac`, `optex_rl.errors` and other names of modules before the wings are found.
__path__.append(f"{__path__[0]}/former")
