"""PolyCom in JAX: polynomial composition activations (arXiv 2411.03884) and what trains them.

    >>> import jax.numpy as jnp
    >>> import polycom_jax as pc
    >>> pc.poly_relu(jnp.array([2.0, -2.0]), jnp.array([0.5, 1.0, 1.0])).tolist()
    [6.5, 0.5]

The names below are stable. Sub-packages are imported on first use: `pc.training`, `pc.data`,
`pc.modules` and the others cost nothing until then.

On a CPU under Linux, XLA takes large arrays from the C library, which gives them back to the system
when they are freed, and gets them again page by page. Start a program with
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1` (glibc 2.35 or later), and the pages are large
(experiments/results/speed/cpu.md, "Freed memory").
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from polycom_jax import models as models
from polycom_jax import params as params
from polycom_jax import sharding as sharding
from polycom_jax._errors import InputError as InputError
from polycom_jax.activations import init_coeffs as init_coeffs
from polycom_jax.activations import polycom as polycom
from polycom_jax.kernels.poly_norm import poly_norm as poly_norm
from polycom_jax.kernels.poly_relu import poly_relu as poly_relu
from polycom_jax.table import ACTIVATIONS as ACTIVATIONS
from polycom_jax.table import ActivationOptions as ActivationOptions
from polycom_jax.table import Parameter as Parameter
from polycom_jax.table import activation as activation
from polycom_jax.table import get_activation as get_activation

if TYPE_CHECKING:
    from polycom_jax import analysis as analysis
    from polycom_jax import approximation as approximation
    from polycom_jax import data as data
    from polycom_jax import interop as interop
    from polycom_jax import modules as modules
    from polycom_jax import testing as testing
    from polycom_jax import training as training

_LAZY = ("analysis", "approximation", "data", "interop", "modules", "testing", "training")

__version__ = "0.1.0"
__docformat__ = "google"
__all__ = [
    "ACTIVATIONS",
    "ActivationOptions",
    "InputError",
    "Parameter",
    "activation",
    "analysis",
    "approximation",
    "data",
    "get_activation",
    "init_coeffs",
    "interop",
    "models",
    "modules",
    "params",
    "poly_norm",
    "poly_relu",
    "polycom",
    "sharding",
    "testing",
    "training",
]


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"polycom_jax.{name}")
    raise AttributeError(f"module 'polycom_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
