"""PolyNorm, gated PolyNorm and PolyReLUNorm as users call them."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, ArrayLike, Float

from polycom_jax.activations import learnable, polynomial
from polycom_jax.activations.inputs import EPS, check_coeffs, check_gate, check_row
from polycom_jax.kernels.implementations import Implementation, Kernel, Operation
from polycom_jax.kernels.poly_norm import cpu, feature_sharded, gpu, tpu, xla
from polycom_jax.kernels.poly_norm.row_kernel import unsupported_on_gpu
from polycom_jax.kernels.restrictions import unsupported_on_tpu
from polycom_jax.kernels.sharded import axis_size
from polycom_jax.sharding import MeshAxes

Run = Callable[..., Array]


class _RowOperation:
    """An operation on rows, and the same where a mesh axis splits the feature axis.

    Each module of this folder has its versions of the operations, by the same names.
    """

    def __init__(self, name: str, reference: Run) -> None:
        def tpu_kernel(*arrays: Array, **static: Any) -> Array:
            # Pallas is slow to import.
            from polycom_jax.kernels.poly_norm import pallas_tpu

            return getattr(pallas_tpu, name)(*arrays, **static)

        def gpu_kernel(*arrays: Array, **static: Any) -> Array:
            from polycom_jax.kernels.poly_norm import pallas_gpu

            return getattr(pallas_gpu, name)(*arrays, **static)

        pallas = {"pallas_tpu": Kernel(tpu_kernel, unsupported_on_tpu)}
        on_gpu = {"gpu": Kernel(getattr(gpu, name), gpu.unsupported_reason)}
        modules = {"xla": xla, "cpu": cpu, "tpu": tpu}
        kernels = {"reference": reference}
        kernels |= {key: getattr(module, name) for key, module in modules.items()}
        self.unsharded = Operation(
            name,
            {key: Kernel(run) for key, run in kernels.items()}
            | {"pallas_gpu": Kernel(gpu_kernel, unsupported_on_gpu)}
            | on_gpu
            | pallas,
        )
        self.sharded = Operation(
            f"{name} over shards",
            {"xla": Kernel(getattr(feature_sharded, name))} | on_gpu | pallas,
        )

    def __call__(self, *arrays: Array, axis_name: MeshAxes, **options: Any) -> Array:
        if axis_name is None:
            return self.unsharded(*arrays, **options)
        axis_size(axis_name)  # raises where there is none
        return self.sharded(*arrays, axis_name=axis_name, **options)


_POLY_NORM = _RowOperation("poly_norm", polynomial.poly_norm)
_POLY_RELU_NORM = _RowOperation("poly_relu_norm", learnable.poly_relu_norm)
_POLY_NORM_GLU = _RowOperation("poly_norm_glu", learnable.poly_norm_glu)


def poly_norm(
    x: Float[ArrayLike, "*S F"],
    coeffs: Float[ArrayLike, " R+1"],
    *,
    eps: float = EPS,
    axis_name: MeshAxes = None,
    implementation: Implementation | None = None,
) -> Float[Array, "*S F"]:
    """PolyNorm, a polynomial of normalised powers:

        y = coeffs[0] + sum_{i>=1} coeffs[i] * norm(x^i)
        norm(u) = u / sqrt(mean(u^2) + eps)

    The mean runs over the whole last axis, also where GSPMD splits that axis over devices; where it
    does not, `kernels.sharded.unsharded_features` can say so, and a TPU sums rows faster.
    Inside `jax.shard_map` an array is one shard: where the last axis is split, say over what by
    `axis_name`, and value and gradients are those of the whole rows.

    Args:
        x: any shape of rank 1 or more, any floating dtype.
        coeffs: [order + 1] of any order >= 1, ascending: coeffs[0] is the bias. Kept in float32 it
            is used, and its gradient comes back, in float32 whatever the dtype of `x`.
        eps: a Python number in `activations.inputs.EPS_RANGE`, under each root.
        axis_name: inside `jax.shard_map`, the mesh axis (or axes) that splits the last axis; None:
            rows are whole. Shards exchange a few sums a row. "reference" has no such form.
        implementation: None for the backend's best, or one of
            `kernels.implementations.IMPLEMENTATIONS`.

    Returns:
        The shape and dtype of `x`: computed in float32 (float64 for float64) on rows scaled by an
        exact power of two, and rounded once. float32 values and gradients are within 2e-6 of exact
        ones, relative to the terms before they cancel, and finite for every finite input (orders up
        to 24, rows up to 65,536 wide) along cotangents up to 1e24. Inputs and powers under 1.2e-38
        may count as 0: an absolute error of up to 1.2e-38 |a_i| / sqrt(eps). Saved for the backward
        pass: `x` and `coeffs`, and order + 1 statistics of each row.

    Raises:
        InputError: no floating array, no last axis or an empty one, coefficients that are no vector
            of two or more, eps out of range, an axis name outside its `jax.shard_map`, or an
            implementation that is unknown or cannot run here.

    Reference: Zhuo et al., arXiv 2411.03884, section 2 (type 2 with rho = normalisation), in the
    form of its official code, whose weights run the other way: its weight is coeffs[:0:-1], its
    bias coeffs[0].

        >>> import jax.numpy as jnp
        >>> poly_norm(jnp.array([1.0, -1.0]), jnp.array([0.5, 1.0, 1.0])).round(3).tolist()
        [2.5, 0.5]
    """
    x, coeffs = check_row("x", x, eps), check_coeffs(coeffs)
    return _POLY_NORM(x, coeffs, eps=eps, axis_name=axis_name, implementation=implementation)


def poly_relu_norm(
    x: Float[ArrayLike, "*S F"],
    coeffs: Float[ArrayLike, " R+1"],
    *,
    eps: float = EPS,
    axis_name: MeshAxes = None,
    implementation: Implementation | None = None,
) -> Float[Array, "*S F"]:
    """PolyReLUNorm, which is `poly_norm` of relu(x):

        y = coeffs[0] + sum_{i>=1} coeffs[i] * norm(relu(x)^i)
        norm(u) = u / sqrt(mean(u^2) + eps)

    Arguments, result, memory and errors are those of `poly_norm`; relu'(0) = 0.

    Reference: named in arXiv 2411.03884, section 4.3; the formula is our reading of the name.
    """
    x, coeffs = check_row("x", x, eps), check_coeffs(coeffs)
    return _POLY_RELU_NORM(x, coeffs, eps=eps, axis_name=axis_name, implementation=implementation)


def poly_norm_glu(
    gate: Float[ArrayLike, "*S F"],
    up: Float[ArrayLike, "*S F"],
    coeffs: Float[ArrayLike, " R+1"],
    *,
    eps: float = EPS,
    axis_name: MeshAxes = None,
    implementation: Implementation | None = None,
) -> Float[Array, "*S F"]:
    """Gated PolyNorm, multiplied in float32 and rounded once:

        y = poly_norm(gate, coeffs) * up

    Args:
        gate: what PolyNorm is applied to.
        up: the same shape and dtype.
        coeffs: [order + 1], ascending.
        eps: as in `poly_norm`.
        axis_name: as in `poly_norm`.
        implementation: as in `poly_norm`.

    Returns:
        The shape and dtype of `gate`; finite as in `poly_norm`, whose cotangent is that of y times
        `up`. Saved for the backward pass: `gate`, `up` and `coeffs`.

    Raises:
        InputError: as `poly_norm`, and where `gate` and `up` differ in shape or dtype.

    Reference: FusedMulPolyNorm of Motif-Technologies/activation, the Motif models' feed-forward.
    """
    gate, coeffs = check_row("gate", gate, eps), check_coeffs(coeffs)
    return _POLY_NORM_GLU(
        gate,
        check_gate(gate, up),
        coeffs,
        eps=eps,
        axis_name=axis_name,
        implementation=implementation,
    )


FORMS: Mapping[Callable[..., Array], Mapping[str, bool]] = {
    poly_norm: {},
    poly_relu_norm: {"relu": True},
    poly_norm_glu: {"gated": True},
}
"""Operation -> the fields of `Form` that name it, for kernels that compute more than it."""
