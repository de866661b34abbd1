"""PolyReLU and PolyPReLU as users call them."""

from jaxtyping import Array, ArrayLike, Float

from polycom_jax.activations import learnable, polynomial
from polycom_jax.activations.inputs import check_coeffs, check_floating, check_slope
from polycom_jax.kernels.implementations import Implementation, Kernel, Operation
from polycom_jax.kernels.poly_relu import cpu, gpu, xla
from polycom_jax.kernels.restrictions import unsupported_on_tpu


def _kernel(x: Array, coeffs: Array) -> Array:
    # Pallas is slow to import.
    from polycom_jax.kernels.poly_relu import pallas_tpu

    return pallas_tpu.poly_relu(x, coeffs)


_POLY_RELU = Operation(
    "poly_relu",
    {
        "reference": Kernel(polynomial.poly_relu),
        "xla": Kernel(xla.poly_relu),
        "cpu": Kernel(cpu.poly_relu),
        "gpu": Kernel(gpu.poly_relu),
        "pallas_tpu": Kernel(_kernel, unsupported_on_tpu),
    },
)
_POLY_PRELU = Operation(
    "poly_prelu",
    {
        "reference": Kernel(learnable.poly_prelu),
        "xla": Kernel(xla.poly_prelu),
        "cpu": Kernel(cpu.poly_prelu),
        "gpu": Kernel(gpu.poly_prelu),
    },
)


def poly_relu(
    x: Float[ArrayLike, "*S"],
    coeffs: Float[ArrayLike, " R+1"],
    *,
    implementation: Implementation | None = None,
) -> Float[Array, "*S"]:
    """PolyReLU, a polynomial of the rectifier, with relu'(0) = 0:

        y = sum_i coeffs[i] * relu(x)^i

    Args:
        x: any shape and floating dtype.
        coeffs: [order + 1] of any order >= 1, ascending: coeffs[0] is the bias. Kept in float32 it
            is used, and its gradient comes back, in float32 whatever the dtype of `x`.
        implementation: None for the backend's best, or one of
            `kernels.implementations.IMPLEMENTATIONS`.

    Returns:
        The shape and dtype of `x`: computed in float32 (float64 for float64), rounded once. It is
        finite wherever the true value is. Saved for the backward pass: `x` and `coeffs`.

    Raises:
        InputError: no floating array, coefficients that are no vector of two or more, or an
            implementation that is unknown or cannot run here.

    Reference: Zhuo et al., arXiv 2411.03884, section 2 (type 1 with rho = ReLU).

        >>> import jax.numpy as jnp
        >>> poly_relu(jnp.array([-1.0, 2.0]), jnp.array([0.5, 1.0, 0.25])).tolist()
        [0.5, 3.5]
    """
    x, coeffs = check_floating("x", x), check_coeffs(coeffs)
    return _POLY_RELU(x, coeffs, implementation=implementation)


def poly_prelu(
    x: Float[ArrayLike, "*S"],
    coeffs: Float[ArrayLike, " R+1"],
    slope: Float[ArrayLike, ""],
    *,
    implementation: Implementation | None = None,
) -> Float[Array, "*S"]:
    """PolyPReLU, a polynomial of the rectifier with a learned slope:

        y = sum_i coeffs[i] * prelu(x)^i
        prelu(x) = x if x > 0 else slope * x

    Args:
        x: any shape and floating dtype.
        coeffs: [order + 1], ascending.
        slope: a learned scalar; 0 gives `poly_relu`.
        implementation: None for the backend's best, or one of
            `kernels.implementations.IMPLEMENTATIONS`.

    Returns:
        The shape and dtype of `x`, computed and saved as in `poly_relu`.

    Raises:
        InputError: as `poly_relu`, and for a slope that is no floating scalar.

    Reference: named in arXiv 2411.03884, section 4.3; the formula is our reading of the name.
    """
    x, coeffs = check_floating("x", x), check_coeffs(coeffs)
    return _POLY_PRELU(x, coeffs, check_slope(slope), implementation=implementation)
