"""PolyNorm and its two relatives as kernels for NVIDIA GPUs (Pallas, lowered by Triton).

A program holds a row in registers: it reads it once, forms scale, moments and value, and writes
that, with the row's statistics for the backward pass, which in turn reads row and cotangent once.
Rows that do not fit the registers are read twice, the second time from the cache where that holds
them. Each program adds up its rows' part of the coefficients' gradient; XLA adds the parts.

The kernels compute values and first derivatives in reverse mode. Every other derivative is that of
`xla`: of the kernel's value, and of its gradient, in forward mode.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.activations.inputs import in_work_dtype
from polycom_jax.kernels import triton
from polycom_jax.kernels.checkpoint_names import checkpoint_as
from polycom_jax.kernels.linear import linear_map
from polycom_jax.kernels.poly_norm import gpu_kernels, xla
from polycom_jax.kernels.poly_norm.form import Form
from polycom_jax.kernels.poly_norm.gpu_plan import Plan
from polycom_jax.kernels.poly_norm.relatives import Rules, gated_by, of_relu
from polycom_jax.kernels.poly_norm.row_kernel import call_kernel
from polycom_jax.kernels.recompute import along, transposed

Arrays = Sequence[Array]


@dataclass(frozen=True)
class _Kernel:
    """One of the two kernels, for groups of rows: every array is [groups, rows, ...].

    With `value` the backward kernel writes the value, too.
    """

    form: Form
    backward: bool
    interpret: bool
    value: bool = False

    def _plan(self, x: Any) -> Plan:
        return Plan(x.shape[-1], 1 + self.form.gated + self.backward)

    def shapes(self, *arrays: Any) -> list[jax.ShapeDtypeStruct]:
        x, coefficients = arrays[-1], self.form.order + 1
        groups, rows, _ = x.shape
        own = jax.ShapeDtypeStruct(x.shape, x.dtype)
        if not self.backward:
            return [own, jax.ShapeDtypeStruct((groups, rows, coefficients), jnp.float32)]
        parts = (groups, -(-rows // self._plan(x).rows), coefficients)
        return [own] * (1 + self.form.gated + self.value) + [
            jax.ShapeDtypeStruct(parts, jnp.float32)
        ]

    def __call__(self, *arrays: Array) -> Arrays:
        x, plan = arrays[-1], self._plan(arrays[-1])
        body = gpu_kernels.backward if self.backward else gpu_kernels.forward
        return triton.call(
            f"poly_norm_{'backward' if self.backward else 'forward'}",
            partial(body, self.form, plan),
            arrays,
            self.shapes(*arrays),
            programs=x.shape[0] * -(-x.shape[1] // plan.rows),
            warps=plan.warps,
            interpret=self.interpret,
        )


@dataclass(frozen=True)
class Static:
    """What is known of an operation while it is traced.

    Attributes:
        form: of the three.
        interpret: run the kernels as XLA operations, for tests.
        value: whether the gradient's kernel writes the value, too.
    """

    form: Form
    interpret: bool = False
    value: bool = False

    def kernel(self, *, backward: bool) -> _Kernel:
        """That of the value, or of the gradient."""
        return _Kernel(self.form, backward, self.interpret, backward and self.value)

    @property
    def rules(self) -> Rules:
        """Value and tangent in plain XLA operations."""
        rules: Rules = (xla.value, xla.tangent, None)
        if self.form.relu:
            return of_relu(*rules)
        return gated_by(*rules) if self.form.gated else rules

    def forward(self, fixed: Arrays, tangents: Arrays) -> Array:
        """The value's change, from inputs, coefficients and row_stats."""
        return self._along(fixed)(_unpacked(fixed), tangents)

    def plain_backward(self, fixed: Arrays, g: Array) -> Arrays:
        """The transpose of `forward`, by JAX."""
        return transposed(self._along(fixed), len(fixed) - 1)(_unpacked(fixed), g)

    def plain_value(self, *primals: Array) -> Array:
        """The value, rounded once."""
        return in_work_dtype(partial(self.rules[0], eps=self.form.eps), *primals)

    def plain_row(self, *primals: Array) -> Float[Array, "*S R+1"]:
        """The statistics of each row."""
        options: dict[str, Any] = {"eps": self.form.eps, "relu": self.form.relu}
        return jnp.concatenate(xla.row((primals[0], primals[-1]), **options), axis=-1)

    def _along(self, fixed: Arrays) -> Callable[..., Array]:
        return along(self.rules[1], len(fixed) - 1, {"eps": self.form.eps})


def _unpacked(fixed: Arrays) -> list[Array]:
    *primals, row_stats = fixed
    return [*primals, *jnp.split(row_stats, row_stats.shape[-1], axis=-1)]


def _grouped(x: Float[Array, "*S F"]) -> Float[Array, "1 N F"]:
    return x.reshape(1, -1, x.shape[-1])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def value_and_row(static: Static, *primals: Array) -> tuple[Array, Array]:
    """The value, and statistics of each row [*S, R+1] that the gradient needs."""
    *inputs, coeffs = primals
    numbers = coeffs.astype(jnp.float32)[None]
    y, row_stats = call_kernel(static.kernel(backward=False), numbers, *map(_grouped, inputs))
    shape = inputs[0].shape
    return y.reshape(shape), row_stats.reshape(*shape[:-1], coeffs.size)


@value_and_row.defjvp
def _value_and_row_rule(static: Static, primals: Arrays, tangents: Arrays) -> Any:
    out, row_stats = value_and_row(static, *primals)
    change = _change(static, primals, row_stats, tangents)
    return (out, row_stats), (change, jax.jvp(static.plain_row, primals, tangents)[1])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value(static: Static, *primals: Array) -> Array:
    return value_and_row(static, *primals)[0]


@_value.defjvp
def _value_rule(static: Static, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    out, row_stats = value_and_row(static, *primals)
    return out, _change(static, primals, checkpoint_as("row", row_stats), tangents)


def _change(static: Static, primals: Arrays, row_stats: Array, tangents: Arrays) -> Array:
    def backward(fixed: Arrays, g: Array) -> Arrays:
        return gradient(static, *fixed, g)

    return linear_map(static.forward, backward, (*primals, row_stats), tangents)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def gradient(static: Static, *arrays: Array) -> tuple[Array, ...]:
    """Of inputs, coefficients, row statistics and cotangent: the gradients of inputs, then the
    value if `static.value`, then the gradient of coefficients."""
    *inputs, coeffs, row_stats, g = arrays
    numbers, stats = coeffs.astype(jnp.float32)[None], _grouped(row_stats)
    rows = map(_grouped, (g.astype(inputs[0].dtype), *inputs))
    *grads, parts = call_kernel(static.kernel(backward=True), numbers, stats, *rows)
    dcoeffs = jnp.sum(parts, axis=(0, 1)).astype(coeffs.dtype)
    return *(d.reshape(inputs[0].shape) for d in grads), dcoeffs


@gradient.defjvp
def _gradient_rule(static: Static, primals: Arrays, tangents: Arrays) -> Any:
    def plain(*arrays: Array) -> tuple[Array, ...]:
        *fixed, g = arrays
        *grads, dcoeffs = static.plain_backward(fixed, g)
        value = (static.plain_value(*fixed[:-1]),) if static.value else ()
        return *grads, *value, dcoeffs

    return gradient(static, *primals), jax.jvp(plain, primals, tangents)[1]


_compiled = jax.jit(_value, static_argnums=0)


def _operation(**form: bool) -> Callable[..., Array]:
    def run(*arrays: Array, eps: float, interpret: bool = False) -> Array:
        """As in `api`; `interpret` runs the kernels as XLA operations, for tests."""
        return _compiled(Static(Form(arrays[-1].size - 1, eps, **form), interpret), *arrays)

    return run


poly_norm, poly_relu_norm = _operation(), _operation(relu=True)
poly_norm_glu = _operation(gated=True)
