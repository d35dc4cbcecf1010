"""The errors that optex-rl raises on purpose. Each message is one sentence with the value and what is allowed."""

from __future__ import annotations


class OptExError(Exception):
    """Base class: the command line prints these as one sentence and exits with a non-zero status."""


class ConfigError(OptExError, ValueError):
    """An option, a name or a shape that the user chose cannot be used."""


class RunFolderError(OptExError, OSError):
    """A run folder exists already, is missing, or does not hold a usable run."""


class WorkerError(OptExError, RuntimeError):
    """Processes that evaluate the points were lost too often, or their cluster is gone."""


class NumericalError(OptExError, ArithmeticError):
    """Base class of numerical faults."""


class NonFiniteError(NumericalError):
    """A loss, gradient or parameter holds NaN or infinite values."""


class NotPositiveDefiniteError(NumericalError):
    """A kernel matrix could not be factorised, even with the largest jitter allowed."""


class Interrupted(Exception):  # noqa: N818  # no error, like StopIteration
    """A stop was requested: what is under way is given up, between two steps of the environments."""


class ResumeWarning(UserWarning):
    """A run is resumed, but not bit for bit as if it had never stopped."""


class WorkerWarning(RuntimeWarning):
    """A process that evaluates points was lost; the text says what became of its points."""


class PerformanceWarning(UserWarning):
    """A computation takes more time than it would with another network; its results are right."""


class NumericalWarning(RuntimeWarning):
    """A computation went on after a stated correction, such as jitter on a kernel matrix."""
