"""optex-rl: policy-gradient reinforcement learning with parallel policy updates from OptEx (arXiv 2402.11427)."""

from .config import TrainConfig as TrainConfig
from .errors import ConfigError as ConfigError
from .errors import NonFiniteError as NonFiniteError
from .errors import NotPositiveDefiniteError as NotPositiveDefiniteError
from .errors import NumericalError as NumericalError
from .errors import NumericalWarning as NumericalWarning
from .errors import OptExError as OptExError
from .errors import PerformanceWarning as PerformanceWarning
from .errors import ResumeWarning as ResumeWarning
from .errors import RunFolderError as RunFolderError
from .estimator import GradientEstimator as GradientEstimator
from .loop import TrainResult as TrainResult
from .loop import resume as resume
from .loop import train as train
from .optimizer import OptEx as OptEx

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
