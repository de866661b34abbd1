"""PolyNorm networks of fixed width that reach the optimal rate in Sobolev spaces.

Favard's means of the target (`favard`) are evaluated by Clenshaw's recurrence, one coefficient a
layer. A layer of PolyNorm squares affine forms exactly, up to one factor for the row, and
4 u v = (u + v)^2 - (u - v)^2 makes products of squares. The page with statement and proof:
experiments/results/sobolev/polynorm_theorem.md.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from polycom_jax._errors import require
from polycom_jax.activations.inputs import EPS
from polycom_jax.approximation.bounds import check_eps, least
from polycom_jax.approximation.favard import favard_bound, favard_means
from polycom_jax.approximation.network import Vector
from polycom_jax.approximation.normed_network import PolyNormNetwork, Rows, least_factor
from polycom_jax.approximation.sobolev import Function

SQUARE = (0.0, 0.0, 1.0)
"""Coefficients of the normalised square alone."""

PEAK = 1e4
"""The last row's first number beside the others: readouts are off by about its -4th power."""

FORMS = 6
"""Forms of each variable: with its coordinate y and the recurrence's b, b', they are b + y, b - y,
b + y + 1, b - y + 1, b' + 1 and b' - 1."""

FOURTH_POWERS = 2**4 + 3**4 + 1 + 2**4
"""The largest sum of fourth powers of these for |y|, |b|, |b'| <= 1. It is convex, and reached at
y = b = b' = 1."""


def poly_norm_network(
    f: Function,
    n: int,
    d: int,
    degree: int | None = None,
    *,
    error: float | None = None,
    coeffs: Vector = SQUARE,
    peak: float = PEAK,
    eps: float = EPS,
) -> PolyNormNetwork:
    """A PolyNorm network for `f` on [0, 1]^d, of depth N^d and width 6 d + 1.

    For `f` in the unit ball of W^{n,inf} its error is at most `poly_norm_bound(n, d, N, ...)`,
    which is O(N^-n): so O(error^(-d/n)) layers, weights and units are enough, at a width that
    depends on d alone. The numbers in it depend continuously on `f`, and for such methods the
    exponent is optimal (DeVore, Howard and Micchelli 1989). Weights are at most 2 max(1, 1/|c_2|),
    into the last row `peak` times that; the readout has `peak`^2 times a bound of the recurrence.

    Args:
        f: the target, at points [P, d].
        n: derivatives of the target that are used.
        d: variables.
        degree: N, coefficients on each axis; or give `error`.
        error: the error wanted for the unit ball; N is then the least that `favard_bound` allows.
        coeffs: of every layer's PolyNorm, order 2 or 3, with c_2 != 0. With c_1, c_3 or a bias, as
            (0, 1/3, 1/3, 1/3) at the start of training, rows are twice as wide.
        peak: the last row's first number beside the others, at least 10.
        eps: PolyNorm's.

    Raises:
        InputError: numbers out of range, both or neither of `degree` and `error`, or as for
            `favard_means`.

        >>> import jax.numpy as jnp
        >>> net = poly_norm_network(lambda x: jnp.sin(x[:, 0]), n=2, d=1, degree=8)
        >>> net.depth, net.width
        (8, 7)
    """
    require(
        (degree is None) != (error is None),
        f"give one of degree and error, not degree={degree} and error={error}.",
    )
    degree = degree_for(error or 0, n, d) if degree is None else degree
    rows = check_coeffs(coeffs)
    require(peak >= 10 and math.isfinite(peak), f"peak={peak} must be 10 or more, and finite.")
    least_factor(_mean_fourth(rows, d), eps)
    return clenshaw_network(favard_means(f, n, d, degree), rows, peak, eps)


def poly_norm_bound(
    n: int,
    d: int,
    degree: int,
    *,
    coeffs: Vector = SQUARE,
    peak: float = PEAK,
    eps: float = EPS,
) -> float:
    """sup |f - network| for f in the unit ball of W^{n,inf}([0, 1]^d), in exact arithmetic.

        B + (2 + B) (s + eps w / k^4) / (2 D^4),   B = favard_bound(n, d, N)

    with the sum s = 114 d of fourth powers in a row of w numbers, `least_factor` k^2 and the peak
    D: what the last row's norm is off from that of its first number, times what is read from it.

    Raises:
        InputError: as for `poly_norm_network`.
    """
    rows, means = check_coeffs(coeffs), favard_bound(n, d, degree)
    k2 = least_factor(_mean_fourth(rows, d), eps)
    width = rows.width(1 + FORMS * d) / (1 if rows.single else 2)
    return means + (2 + means) * (FOURTH_POWERS * d + eps * width / k2**2) / (2 * peak**4)


def degree_for(error: float, n: int, d: int) -> int:
    """The least N with `favard_bound(n, d, N)` <= error.

    Raises:
        InputError: an error outside (0, 1), or one that needs more samples than `favard.SAMPLES`.
    """
    check_eps(error)
    return least(lambda degree: favard_bound(n, d, degree) <= error)


def check_coeffs(coeffs: Vector) -> Rows:
    """Refuses coefficients that have no square to read out, or a fourth power in it."""
    values = tuple(float(c) for c in coeffs)
    require(
        3 <= len(values) <= 4 and all(map(math.isfinite, values)) and values[2] != 0,
        f"coeffs={values} must be c_0, c_1, c_2 and perhaps c_3, finite, with c_2 not 0: the square"
        " is what products are made of.",
    )
    return Rows(values)


def _mean_fourth(rows: Rows, d: int) -> float:
    forms = 1 + FORMS * d
    share = 1.0 if rows.single else 2.0
    return max(1.0, share * (1 + FOURTH_POWERS * d) / rows.width(forms))


def clenshaw_network(
    table: Float[np.ndarray, "..."], rows: Rows, peak: float, eps: float
) -> PolyNormNetwork:
    """sum_k table[k] prod_i T_ki(2 x_i - 1) as a network of one layer a coefficient.

    The recurrence b_k = c_k + 2 y b_(k+1) - b_(k+2) runs in the last variable; each time it ends,
    its value c_0 + y b_1 - b_2 is a coefficient for the variable before. All b are divided by one
    number that bounds them: |b_k| <= sum_j |c_j| (j - k + 1).
    """
    d, depth = table.ndim, table.size
    orders = np.prod(np.indices(table.shape) + 1, axis=0)
    scale = max(1.0, float(np.sum(np.abs(table) * orders)))
    peaks = [1.0] * (depth - 1) + [peak]
    forms = [rows.enter(_forms(d, each)) for each in peaks]
    squares = rows.squares(_squares(d, 1.0))
    steps = [_step(d, ended, value / scale) for ended, value in _schedule(table)]
    maps = [enter @ step @ squares for enter, step in zip(forms[1:], steps[:-1], strict=True)]
    entry = forms[0] @ _start(d)
    width = len(entry)
    copies = 1 if rows.single else 2
    norm = scale * peak**2 * math.sqrt(copies / width)
    return PolyNormNetwork(
        entry=entry[:, 1:],
        shift=entry[:, 0],
        weights=np.array(maps).reshape(depth - 1, width, width),
        coeffs=np.tile(np.array(rows.coeffs), (depth, 1)),
        readout=norm * rows.squares(_value(d, d)[None] @ _squares(d, peak)),
        offset=table.ravel()[:1],
        eps=eps,
    )


def _schedule(table: Float[np.ndarray, "..."]) -> Iterator[tuple[int, float]]:
    """For each coefficient in turn, how many recurrences end with it, the last variable's first."""
    for index in itertools.product(*(range(n - 1, -1, -1) for n in table.shape)):
        ended = len(list(itertools.takewhile(lambda k: k == 0, index[::-1])))
        yield ended, float(table[index])


def _registers(variable: int) -> tuple[int, int, int]:
    """Where y, b and b' of a variable stand, counted from the last one; 0 is the number 1."""
    return 1 + 3 * variable, 2 + 3 * variable, 3 + 3 * variable


def _start(d: int) -> Float[np.ndarray, "R d+1"]:
    """(1, x) to the registers: y = 2 x - 1, and zeros."""
    start = np.zeros((1 + 3 * d, 1 + d))
    start[0, 0] = 1
    for variable in range(d):
        start[_registers(variable)[0], [0, d - variable]] = -1, 2
    return start


def _forms(d: int, peak: float) -> Float[np.ndarray, "m R"]:
    """Registers to the number `peak` and the `FORMS` of each variable."""
    forms = np.zeros((1 + FORMS * d, 1 + 3 * d))
    forms[0, 0] = peak
    for variable in range(d):
        y, b, before = _registers(variable)
        own = forms[1 + FORMS * variable :][:FORMS]
        own[:4, b], own[:4, y], own[4:, before] = 1, [1, -1, 1, -1], 1
        own[2:, 0] = [1, 1, 1, -1]
    return forms


def _squares(d: int, peak: float) -> Float[np.ndarray, "R+d m"]:
    """Squares of the forms to the registers and, behind them, the products y b."""
    readings = np.zeros((1 + 4 * d, 1 + FORMS * d))
    readings[0, 0] = 1 / peak**2
    for variable in range(d):
        y, b, before = _registers(variable)
        own = slice(1 + FORMS * variable, 1 + FORMS * (variable + 1))
        readings[b, own] = np.array([-1, -1, 1, 1, 0, 0]) / 4
        readings[b, 0] = -1 / (2 * peak**2)
        readings[y, own] = np.array([-1, 1, 1, -1, 0, 0]) / 4
        readings[before, own] = np.array([0, 0, 0, 0, 1, -1]) / 4
        readings[1 + 3 * d + variable, own] = np.array([1, -1, 0, 0, 0, 0]) / 4
    return readings


def _value(d: int, ended: int) -> Float[np.ndarray, " R+d"]:
    """What the first `ended` recurrences add to the coefficient when they end: y b - b' of each."""
    value = np.zeros(1 + 4 * d)
    for variable in range(ended):
        value[_registers(variable)[2]], value[1 + 3 * d + variable] = -1, 1
    return value


def _step(d: int, ended: int, coefficient: float) -> Float[np.ndarray, "R R+d"]:
    """One coefficient's step: `ended` recurrences end and begin anew, the next one goes on."""
    step = np.zeros((1 + 3 * d, 1 + 4 * d))
    step[0, 0] = 1
    for variable in range(d):
        y, b, before = _registers(variable)
        step[y, y] = 1
        if variable == ended:
            step[b] = _value(d, ended)
            step[b, [0, before, 1 + 3 * d + variable]] += coefficient, -1, 2
            step[before, b] = 1
        elif variable > ended:
            step[b, b] = step[before, before] = 1
    return step
