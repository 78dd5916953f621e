"""Ranges of hyperparameters, stated once, in the annotation of the parameter they bound.

`alignlab.spec` reads them when a configuration is built, so a wrong value is refused before
anything loads. Infinity is excluded: β·0 would be NaN.
"""

from __future__ import annotations

import math
from typing import Annotated

from alignlab.annotations import Range

Positive = Annotated[float, Range(min=0.0, min_open=True, max=math.inf, max_open=True)]
NonNegative = Annotated[float, Range(min=0.0, max=math.inf, max_open=True)]
FlipRate = Annotated[float, Range(min=0.0, max=0.5, max_open=True)]
Share = Annotated[float, Range(min=0.0, max=1.0, max_open=True)]
