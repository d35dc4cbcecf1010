"""The N points on W processes, of this machine or of a cluster: an evaluator on Ray (extra ``cluster``)."""

from .evaluator import RayEvaluator as RayEvaluator
from .evaluator import choose_evaluator as choose_evaluator
from .evaluator import spread as spread
