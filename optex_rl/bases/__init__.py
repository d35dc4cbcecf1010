"""Base optimizers: the table of their names, what they ask for, and their steps on flat vectors."""

from .protocols import AskingBase as AskingBase
from .protocols import GradientFunction as GradientFunction
from .protocols import Objective as Objective
from .protocols import RefreshedBase as RefreshedBase
from .registry import BASES as BASES
from .registry import ELEMENTWISE as ELEMENTWISE
from .registry import Base as Base
from .registry import ImportedBase as ImportedBase
from .registry import check_name as check_name
from .registry import fused_kwargs as fused_kwargs
from .registry import make_base as make_base
from .registry import resolve_base as resolve_base
