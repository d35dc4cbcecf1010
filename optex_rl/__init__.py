"""optex-rl: policy-gradient reinforcement learning with parallel policy updates from OptEx (arXiv 2402.11427)."""

from .common.errors import ConfigError as ConfigError
from .common.errors import NonFiniteError as NonFiniteError
from .common.errors import NotPositiveDefiniteError as NotPositiveDefiniteError
from .common.errors import NumericalError as NumericalError
from .common.errors import NumericalWarning as NumericalWarning
from .common.errors import OptExError as OptExError
from .common.errors import PerformanceWarning as PerformanceWarning
from .common.errors import ResumeWarning as ResumeWarning
from .common.errors import RunFolderError as RunFolderError
from .optimizer import OptEx as OptEx
from .optimizer.estimator.gp import GradientEstimator as GradientEstimator
from .runner.loop import TrainResult as TrainResult
from .runner.loop import resume as resume
from .runner.loop import train as train
from .training.config import TrainConfig as TrainConfig

__all__ = [
    "ConfigError",
    "GradientEstimator",
    "NonFiniteError",
    "NotPositiveDefiniteError",
    "NumericalError",
    "NumericalWarning",
    "OptEx",
    "OptExError",
    "PerformanceWarning",
    "ResumeWarning",
    "RunFolderError",
    "TrainConfig",
    "TrainResult",
    "resume",
    "train",
]

# Where `optex_rl.kfac`, `optex_rl.errors` and other names of modules before the wings are found.
__path__.append(f"{__path__[0]}/former")
