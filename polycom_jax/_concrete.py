"""What an array holds, where that is known: while a function is traced it is not."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def concrete(x: Any) -> np.ndarray | None:
    """The values of `x`; None while tracing, or where other processes hold a part of them."""
    if isinstance(x, Tracer):
        return None
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return None
    return np.asarray(x)
