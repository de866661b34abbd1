"""Shapes that the hot operations are tested and measured at: one list for both.

Tags: "ci" quick ones that every test run covers; "primary" what a benchmark reports; "tpu" what is
compiled ahead of time for TPUs, one a kind of row: a register wide, ragged, usual, wide.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from polycom_jax._errors import unknown
from polycom_jax.activations.polynomial import init_coeffs

Tag = Literal["ci", "primary", "tpu"]


@dataclass(frozen=True)
class ArgSpec:
    """Arguments of `poly_norm` and `poly_relu`.

    Attributes:
        name: for test ids and tables.
        shape: of x; the last axis is the hidden width F.
        dtype: of x; coefficients are float32.
        order: of the polynomial.
        tags: what it is for.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    order: int = 3
    tags: frozenset[Tag] = frozenset({"ci"})

    @property
    def bytes(self) -> int:
        """Size of x."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


_PRIMARY: frozenset[Tag] = frozenset({"primary"})
_TPU: frozenset[Tag] = frozenset({"tpu"})

ARG_SPECS: tuple[ArgSpec, ...] = (
    ArgSpec("vector", (7,), jnp.float32),
    ArgSpec("one_element_rows", (3, 1), jnp.float32),
    ArgSpec("odd", (5, 123), jnp.float32),
    ArgSpec("order_1", (4, 64), jnp.float32, order=1),
    ArgSpec("order_2", (4, 64), jnp.float32, order=2),
    ArgSpec("order_8", (4, 64), jnp.float32, order=8),
    ArgSpec("batched", (2, 3, 128), jnp.float32),
    ArgSpec("no_rows", (0, 16), jnp.float32),
    ArgSpec("many_rows", (513, 256), jnp.float32),
    ArgSpec("wide", (4, 65_536), jnp.float32),
    ArgSpec("bf16", (3, 5, 250), jnp.bfloat16),
    ArgSpec("bf16_wide", (2, 32_768), jnp.bfloat16),
    ArgSpec("f16", (7, 512), jnp.float16),
    # Two of a laptop's size, then bfloat16 shapes of accelerators: Liger-Kernel's published
    # benchmark, the paper's dense 1B model, an OLMoE expert, and the widths where others break.
    ArgSpec("cpu_2048x4096", (2048, 4096), jnp.float32, tags=_PRIMARY),
    ArgSpec("cpu_8192x1024", (8192, 1024), jnp.float32, tags=_PRIMARY),
    ArgSpec("liger_8192x4096", (8192, 4096), jnp.bfloat16, tags=_PRIMARY),
    ArgSpec("dense_1b", (8192, 8256), jnp.bfloat16, tags=_PRIMARY | _TPU),
    ArgSpec("moe_expert", (32_768, 1536), jnp.bfloat16, tags=_PRIMARY),
    ArgSpec("wide_2048x32768", (2048, 32_768), jnp.bfloat16, tags=_PRIMARY),
    ArgSpec("wide_2048x65536", (2048, 65_536), jnp.bfloat16, tags=_PRIMARY | _TPU),
    ArgSpec("tpu_128", (8192, 128), jnp.bfloat16, tags=_TPU),
    ArgSpec("tpu_1000", (8192, 1000), jnp.bfloat16, tags=_TPU),
    ArgSpec("tpu_2048", (8192, 2048), jnp.bfloat16, tags=_TPU),
    ArgSpec("tpu_16384", (8192, 16_384), jnp.bfloat16, tags=_TPU),
)


def select(tag: Tag) -> tuple[ArgSpec, ...]:
    """The specs with that tag; raises `InputError` where there are none."""
    chosen = tuple(spec for spec in ARG_SPECS if tag in spec.tags)
    if not chosen:
        raise unknown("tag", tag, set[str]().union(*(spec.tags for spec in ARG_SPECS)))
    return chosen


def make_arguments(
    spec: ArgSpec, key: Key[Array, ""]
) -> tuple[Float[Array, "*S F"], Float[Array, " R+1"], Float[Array, "*S F"]]:
    """(x, coeffs, dy): x and dy standard normal, coeffs in float32 about their initial values."""
    for_x, for_coeffs, for_dy = jax.random.split(key, 3)
    x = jax.random.normal(for_x, spec.shape, jnp.float32).astype(spec.dtype)
    dy = jax.random.normal(for_dy, spec.shape, jnp.float32).astype(spec.dtype)
    coeffs = init_coeffs(spec.order)
    return x, coeffs + 0.1 * jax.random.normal(for_coeffs, coeffs.shape), dy
