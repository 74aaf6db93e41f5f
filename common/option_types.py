"""The types of options: what a number must be, whatever names it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token
from cyclopts.validators import Number


def finite(_: object, value: Any) -> None:  # noqa: ANN401
    """Refuse NaN and infinity, which every bound lets through or half through."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number.")


def whole(_: type, tokens: Sequence[Token]) -> int:
    """Convert to int, for which 1.5 is no number, rather than round."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError("not a whole number") from None


Positive = Annotated[int, Parameter(converter=whole, validator=Number(gte=1))]
Count = Annotated[int, Parameter(converter=whole, validator=Number(gte=0))]
PositiveFloat = Annotated[float, Parameter(validator=(finite, Number(gt=0)))]
NonNegativeFloat = Annotated[float, Parameter(validator=(finite, Number(gte=0)))]
BelowOne = Annotated[float, Parameter(validator=(finite, Number(gte=0, lt=1)))]
BelowHalf = Annotated[float, Parameter(validator=(finite, Number(gte=0, lt=0.5)))]
Share = Annotated[float, Parameter(validator=(finite, Number(gt=0, lte=1)))]
