"""Training: options, presets, and the trainer that wires environments, agent and optimizer together."""

from .builders import EvaluatorFactory as EvaluatorFactory
from .builders import fuse as fuse
from .trainer import Trainer as Trainer
