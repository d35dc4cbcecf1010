"""OptEx for any loop of torch: the optimizer, its engine, and how it predicts, proposes and selects."""

from .optex import OptEx as OptEx
