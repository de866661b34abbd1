"""Polynomials near a function of a Sobolev space, by Favard's means of its Chebyshev series.

With x = (1 + cos t) / 2 a function on [0, 1] becomes an even, periodic one, g(t) = f(x). Favard's
means multiply its k-th Fourier coefficient by `multipliers(n, N)[k]` and drop those from N on. Of
all linear methods by trigonometric polynomials of degree below N none has a smaller error on the
functions with |g^(n)| <= 1: it is `favard_constant(n)` N^-n, and sharp.

Reference: J. Favard (1937); N. I. Akhiezer and M. G. Krein (1937); DeVore and Lorentz,
"Constructive Approximation" (1993), chapter 7.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.polynomial import Polynomial

from polycom_jax._errors import require
from polycom_jax.approximation.bounds import check_cells, check_order
from polycom_jax.approximation.sobolev import Function

SAMPLES = 2**20
"""Values of the target that are taken at most, over all axes."""

OVERSAMPLING = 4
"""Samples on each axis are at least so many times the coefficients."""


def favard_constant(n: int) -> float:
    """K_n = 4/pi sum_{j>=0} (-1)^(j (n + 1)) / (2 j + 1)^(n + 1): pi/2, pi^2/8, pi^3/24, ...

    Raises:
        InputError: n below 1.
    """
    check_order(n, 1)
    if n == 1:
        return math.pi / 2
    j = np.arange(2**16)
    return float(4 / math.pi * np.sum((-1.0) ** (j * (n + 1)) / (2.0 * j + 1) ** (n + 1)))


def chain_constant(n: int) -> float:
    """sup |g^(n)| <= sum_{k=1}^n S(n, k) 2^-k for f in the unit ball of W^{n,inf}([0, 1]).

    g(t) = f((1 + cos t) / 2); all derivatives of the inner function are at most 1/2, and Faa di
    Bruno's formula has S(n, k) terms with f^(k), the Stirling numbers of the second kind.

    Raises:
        InputError: n below 1.
    """
    check_order(n, 1)
    values = [1.0]
    for m in range(n):
        values.append(sum(math.comb(m, k) * values[k] for k in range(m + 1)) / 2)
    return values[n]


def multipliers(n: int, degree: int) -> Float[np.ndarray, " N"]:
    """Favard's multipliers of the coefficients 0 ... N - 1, between 1 and 0.

    With t = k / (2 N): t^n sum_m (m + t)^-n for odd n and t^n sum_m (-1)^m (m + t)^-n for even n,
    m over all integers; these sums are derivatives of pi cot(pi t) and of pi / sin(pi t).

    Args:
        n: derivatives of the function.
        degree: N, the number of coefficients that stay.

    Raises:
        InputError: n or N below 1.
    """
    check_order(n, 1)
    check_cells(degree)
    angle = np.pi * np.arange(1, degree) / (2 * degree)
    cot = 1 / np.tan(angle)
    slope = Polynomial([-1.0, 0.0, -1.0])  # of cot, as a polynomial in cot
    factor = Polynomial([0.0, 1.0]) if n % 2 else Polynomial([1.0])
    for _ in range(n - 1):  # of cot q for odd n (q = factor), of q / sin for even n
        factor = slope * factor.deriv() - (0 if n % 2 else Polynomial([0.0, 1.0]) * factor)
    shape = factor(cot) if n % 2 else factor(cot) / np.sin(angle)
    scale = (-1) ** (n - 1) * angle**n / math.factorial(n - 1)
    return np.concatenate([[1.0], scale * shape])


def operator_norm(n: int, degree: int) -> float:
    """An upper bound of sup |A g| / sup |g| for Favard's means A, less than 2.5 % above it.

    It is the mean of |K| over a period, K(t) = 1 + 2 sum_k `multipliers`[k] cos(k t). Of M samples
    the mean is off by at most pi N / M of it, since that of |K'| is at most N times as large
    (Bernstein).

    Raises:
        InputError: n or N below 1.
    """
    kernel = multipliers(n, degree)
    count = 256 * degree
    values = count * np.fft.irfft(np.pad(kernel, (0, count // 2 + 1 - degree)), count)
    return float(np.abs(values).mean() / (1 - math.pi * degree / count))


def sampled_axis(d: int, degree: int) -> int:
    """Samples on each axis: all that `SAMPLES` allows.

    Raises:
        InputError: so many coefficients that `SAMPLES` does not allow `OVERSAMPLING`.
    """
    count = int(SAMPLES ** (1 / d) + 1e-9)
    require(
        count >= OVERSAMPLING * degree,
        f"degree={degree} in d={d} dimensions needs {OVERSAMPLING * degree:,} samples on each axis;"
        f" {SAMPLES:,} in all allow {count:,}. Take a smaller degree or a larger error.",
    )
    return count


def favard_bound(n: int, d: int, degree: int) -> float:
    """sup |f - A f| for f in the unit ball of W^{n,inf}([0, 1]^d), by means on each axis.

        K_n tau_n N^-n (1 + L + ... + L^(d-1)) + L^d (1 + l) K_n tau_n M^-n (1 + l + ... + l^(d-1))

    with K_n = `favard_constant`, tau_n = `chain_constant`, L = `operator_norm`. The second term is
    that of sampling: the means are taken of the function's interpolant at M Chebyshev nodes on each
    axis, whose Lebesgue constant is l <= 1 + 2/pi ln M.

    Args:
        n: derivatives of the target.
        d: variables.
        degree: N, coefficients on each axis.

    Raises:
        InputError: n, d or N below 1, or as for `sampled_axis`.
    """
    check_order(n, d)
    check_cells(degree)
    count, norm = sampled_axis(d, degree), operator_norm(n, degree)
    lebesgue = 1 + 2 / math.pi * math.log(count)
    constant = favard_constant(n) * chain_constant(n)
    means = float(degree) ** -n * sum(norm**k for k in range(d))
    sampling = (1 + lebesgue) * float(count) ** -n * sum(lebesgue**k for k in range(d))
    return constant * (means + norm**d * sampling)


def favard_means(f: Function, n: int, d: int, degree: int) -> Float[np.ndarray, "..."]:
    """c with sum_k c[k_1, ..., k_d] T_k1(2 x_1 - 1) ... T_kd(2 x_d - 1) near f; [N] * d, float64.

    Args:
        f: the target, at points [P, d] in [0, 1]^d.
        n: the derivatives that the means are made for.
        d: variables.
        degree: N, coefficients on each axis.

    Raises:
        InputError: a target that does not return [P] finite numbers, or as for `favard_bound`.
    """
    check_order(n, d)
    check_cells(degree)
    count = sampled_axis(d, degree)
    nodes = (1 + np.cos(np.pi * (np.arange(count) + 0.5) / count)) / 2
    points = np.stack(np.meshgrid(*[nodes] * d, indexing="ij"), axis=-1).reshape(-1, d)
    with jax.enable_x64(True):
        values = np.asarray(f(jnp.asarray(points)))
    require(
        values.shape == (len(points),) and bool(np.isfinite(values).all()),
        f"the target must map points {points.shape} to finite values [{len(points)}]; it gives"
        f" {values.shape}, {int(np.isfinite(values).sum())} of them finite.",
    )
    table = values.reshape([count] * d)
    for axis in range(d):
        moved = cosine_coefficients(np.moveaxis(table, axis, -1))[..., :degree]
        table = np.moveaxis(moved * multipliers(n, degree), -1, axis)
    return table


def cosine_coefficients(values: Float[np.ndarray, "... M"]) -> Float[np.ndarray, "... M"]:
    """c with values[j] = sum_k c[k] cos(k t_j) at t_j = pi (j + 1/2) / M, over the last axis."""
    count = values.shape[-1]
    both = np.fft.rfft(np.concatenate([values, values[..., ::-1]], axis=-1))[..., :count]
    turned = (both * np.exp(-0.5j * np.pi * np.arange(count) / count)).real / count
    turned[..., 0] /= 2
    return turned
