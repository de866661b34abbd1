"""float64 NumPy evaluations that the library is held against, written apart from it.

`*_terms` give the size of what is added up before anything cancels: the scale of rounding errors.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
EPS = 1e-6


def float64(*arrays) -> list[Array]:
    return [np.asarray(a).astype(np.float64) for a in arrays]


def _sum(terms: Sequence[Array]) -> Array:
    return np.sum(np.stack(terms), axis=0)


def _row(x: Array, order: int, eps: float) -> tuple[Array, Array, list[Array]]:
    """z = x / m with m = max(1, max|x|), m, and s_1 ... s_r of the scaled row."""
    m = np.maximum(1.0, np.max(np.abs(x), axis=-1, keepdims=True))
    z = x / m
    with np.errstate(over="ignore", under="ignore"):
        gains = [
            1 / np.sqrt(np.mean(z ** (2 * i), axis=-1, keepdims=True) + eps / m ** (2.0 * i))
            for i in range(1, order + 1)
        ]
    return z, m, gains


def poly_norm(x, coeffs, eps: float = EPS) -> tuple[Array, Array]:
    """The value, and the sum of its terms' absolute values."""
    x, c = float64(x, coeffs)
    z, _, gains = _row(x, len(c) - 1, eps)
    terms = [np.full_like(x, c[0])] + [c[i] * z**i * s for i, s in enumerate(gains, 1)]
    return _sum(terms), _sum([np.abs(t) for t in terms])


def poly_norm_gradients(x, coeffs, dy, eps: float = EPS) -> tuple[list[Array], list[Array]]:
    """d<dy, y>/dx and /dcoeffs in closed form, and the size of their terms."""
    x, c, dy = float64(x, coeffs, dy)
    z, m, gains = _row(x, len(c) - 1, eps)
    dx, dx_size = np.zeros_like(x), np.zeros_like(x)
    dc, dc_size = [dy.sum()], [np.abs(dy).sum()]
    for i, s in enumerate(gains, 1):
        moment = np.mean(dy * z**i, axis=-1, keepdims=True)
        moment_size = np.mean(np.abs(dy * z**i), axis=-1, keepdims=True)
        direct, pull = c[i] * i * s * z ** (i - 1), c[i] * i * s**3 * z ** (2 * i - 1)
        dx += (direct * dy - pull * moment) / m
        dx_size += (np.abs(direct * dy) + np.abs(pull) * moment_size) / m
        dc.append((dy * z**i * s).sum())
        dc_size.append(np.abs(dy * z**i * s).sum())
    return [dx, np.array(dc)], [dx_size, np.array(dc_size)]


def poly_relu(x, coeffs) -> tuple[Array, Array]:
    x, c = float64(x, coeffs)
    terms = [c[i] * np.maximum(x, 0) ** i for i in range(len(c))]
    return _sum(terms), _sum([np.abs(t) for t in terms])


def poly_relu_gradients(x, coeffs, dy) -> tuple[list[Array], list[Array]]:
    x, c, dy = float64(x, coeffs, dy)
    z = np.maximum(x, 0)
    slopes = [i * c[i] * z ** (i - 1) * (x > 0) * dy for i in range(1, len(c))]
    powers = [dy * z**i for i in range(len(c))]
    return (
        [_sum(slopes), np.array([p.sum() for p in powers])],
        [_sum([np.abs(s) for s in slopes]), np.array([np.abs(p).sum() for p in powers])],
    )


_erf = np.vectorize(math.erf)


def _gelu(x):
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x):
    return x / (1 + np.exp(-x))


def _sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def _softplus(x):
    return np.logaddexp(0, x)


def _mish(x, beta=1.0):
    return x * np.tanh(_softplus(beta * x))


def _elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _swiglu_oai(gate, up):
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate * _sigmoid(1.702 * gate) * (up + 1)


def _powlu(gate, up):
    positive = np.maximum(gate, 1e-300)
    power = np.where(gate > 0, positive ** (3 / (np.sqrt(positive) + 1)), gate)
    return power * _sigmoid(gate) * up


def _xi(p, x, negative, cube=0.0):
    positive = _softplus(p["alpha_p"]) * x**2 + cube * x**3
    return np.where(x > 0, positive, negative) + x / 2


def _xielu(p, x, cube=0.0):
    curved = np.expm1(np.minimum(x, 0)) - np.minimum(x, 0)
    return _xi(p, x, (0.5 + _softplus(p["alpha_n"])) * curved, cube)


def _widened(x, gate, alpha):
    return x * (gate * (1 + 2 * alpha) - alpha)


def _prelu_polynomial(p, x):
    z = np.where(x > 0, x, p["slope"] * x)
    return np.polynomial.polynomial.polyval(z, p["coeffs"])


def _poly_norm_l2(p, x):
    c = p["coeffs"]
    lengths = [np.sqrt(np.sum(x ** (2 * i), axis=-1, keepdims=True) + EPS) for i in (1, 2, 3)]
    return c[0] + _sum([c[i] * x**i / n for i, n in enumerate(lengths, 1)])


def _of_powers(p, x, rho):
    c = p["coeffs"]
    return c[0] + _sum(
        [
            c[i] * rho(i - 1, np.sign(x**i) * np.minimum(np.abs(x) ** i, 1e30))
            for i in range(1, len(c))
        ]
    )


_TO_POWERS = {
    "chebyshev": [[1, 0, -1, 0], [0, 1, 0, -3], [0, 0, 2, 0], [0, 0, 0, 4]],
    "hermite": [[1, 0, -1, 0], [0, 1, 0, -3], [0, 0, 1, 0], [0, 0, 0, 1]],
    "bernstein": [[1, 0, 0, 0], [-3, 3, 0, 0], [3, -6, 3, 0], [-1, 3, -3, 1]],
}


def _in_basis(basis):
    return lambda p, x: poly_norm(x, np.array(_TO_POWERS[basis]) @ p["weights"])[0]


def _rational(form):
    def value(p, x):
        top, below = p["numerator"], p["denominator"]
        if below.ndim > 1:
            below = np.repeat(below, x.shape[-1] // below.shape[-1], axis=-1)
        terms = [b * x**i for i, b in enumerate(below, 1)]
        rest = _sum([np.abs(t) for t in terms]) if form == "a" else np.abs(_sum(terms))
        return np.polynomial.polynomial.polyval(x, top) / (1 + rest)

    return value


def _srelu(p, x):
    left = p["t_l"] + p["a_l"] * (x - p["t_l"])
    right = p["t_r"] + p["a_r"] * (x - p["t_r"])
    return np.where(x >= p["t_r"], right, np.where(x <= p["t_l"], left, x))


def _evonorm_s0(p, x):
    groups = x.reshape(*x.shape[:-1], 32, -1)
    normed = groups / np.sqrt(np.var(groups, axis=-1, keepdims=True) + 1e-5)
    return p["gamma"] * normed.reshape(x.shape) * _sigmoid(p["v"] * x) + p["beta"]


def _gdn(p, x):
    within = np.kron(np.eye(x.shape[-1] // 8), np.ones((8, 8)))
    weights = np.tile(p["gamma"], (x.shape[-1] // 8, 1)) ** 2 * within
    return x / np.sqrt(p["beta"] ** 2 + 1e-6 + x**2 @ weights)


def _unit_rms(y):
    return y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + EPS)


# One row an activation: value(params, *hidden) of float64 arrays.
ACTIVATIONS: dict[str, Callable[..., Array]] = {
    "poly_norm": lambda p, x: poly_norm(x, p["coeffs"])[0],
    "poly_relu": lambda p, x: poly_relu(x, p["coeffs"])[0],
    "poly_prelu": _prelu_polynomial,
    "poly_relu_norm": lambda p, x: poly_norm(np.maximum(x, 0), p["coeffs"])[0],
    "poly_norm_glu": lambda p, gate, up: poly_norm(gate, p["coeffs"])[0] * up,
    "relu": lambda _, x: np.maximum(x, 0),
    "relu2": lambda _, x: np.maximum(x, 0) ** 2,
    "gelu": lambda _, x: _gelu(x),
    "gelu_tanh": lambda _, x: _gelu_tanh(x),
    "silu": lambda _, x: _silu(x),
    "tanh": lambda _, x: np.tanh(x),
    "swiglu": lambda _, gate, up: _silu(gate) * up,
    "geglu": lambda _, gate, up: _gelu(gate) * up,
    "reglu": lambda _, gate, up: np.maximum(gate, 0) * up,
    "gelu_norm": lambda _, x: _unit_rms(_gelu(x)),
    "relu2_norm": lambda _, x: _unit_rms(np.maximum(x, 0) ** 2),
    "swiglu_norm": lambda _, gate, up: _unit_rms(_silu(gate) * up),
    "leaky_relu2": lambda _, x: np.where(x > 0, x, x / 2) ** 2,
    "mish": lambda _, x: _mish(x),
    "softplus": lambda _, x: _softplus(x),
    "elu": lambda _, x: _elu(x),
    "selu": lambda _, x: 1.0507009873554805 * _elu(x, 1.6732632423543772),
    "bilinear": lambda _, gate, up: gate * up,
    "relu2_glu": lambda _, gate, up: np.maximum(gate, 0) ** 2 * up,
    "silu2_glu": lambda _, gate, up: _silu(gate) ** 2 * up,
    "swiglu_oai": lambda _, gate, up: _swiglu_oai(gate, up),
    "powlu": lambda _, gate, up: _powlu(gate, up),
    "xielu": _xielu,
    "xiprelu": lambda p, x: _xi(p, x, _softplus(p["alpha_n"]) * x**2),
    "xiep": lambda p, x: _xielu(p, x, _softplus(p["alpha_3"])),
    "prelu": lambda p, x: np.where(x > 0, x, p["slope"] * x),
    "swish": lambda p, x: x * _sigmoid(p["beta"] * x),
    "parametric_mish": lambda p, x: _mish(x, p["beta"]),
    "xsilu": lambda p, x: _widened(x, _sigmoid(x), p["alpha"]),
    "xgelu": lambda p, x: _widened(x, (1 + _erf(x / math.sqrt(2))) / 2, p["alpha"]),
    "xatlu": lambda p, x: _widened(x, 0.5 + np.arctan(x) / math.pi, p["alpha"]),
    "asqu": lambda p, x: np.where(x > 0, 1, p["beta"]) * x**2,
    "crrelu": lambda p, x: np.maximum(x, 0) + p["epsilon"] * x * np.exp(-(x**2) / 2),
    "pnglu": lambda p, g, up: poly_norm(g, [0, *np.abs(p["a"])])[0] * up,
    "motif3_glu": lambda p, g, up: (
        poly_norm(g, [np.clip(p["bias"], -0.5, 0.5), *_sigmoid(p["weights"])])[0] * up / 2
    ),
    "poly_norm_l2": _poly_norm_l2,
    "poly_tanh": lambda p, x: _of_powers(p, x, lambda i, power: np.tanh(p["alpha"][i] * power)),
    "poly_erf": lambda p, x: _of_powers(
        p, x, lambda i, power: _erf(p["alpha"][i] * power + p["shift"][i])
    ),
    **{f"poly_norm_{basis}": _in_basis(basis) for basis in _TO_POWERS},
    **{
        f"rational_{form}_{degrees}{groups}": _rational(form)
        for form in "ab"
        for degrees in ("5_4", "3_2")
        for groups in ("", "_groups")
    },
    "la": lambda p, x: p["c"] @ np.stack([x, np.maximum(x, 0), np.tanh(x), _silu(x)], axis=-2),
    "series": lambda p, x: _sum([_silu(a * x + b) for a, b in zip(p["a"], p["b"], strict=True)]),
    "srelu": _srelu,
    "dyt": lambda p, x: p["weight"] * np.tanh(p["alpha"] * x) + p["bias"],
    "derf": lambda p, x: p["weight"] * _erf(p["alpha"] * x + p["shift"]) + p["bias"],
    "evonorm_s0": _evonorm_s0,
    "gdn": _gdn,
}


def numeric_gradients(f: Callable[..., float], arrays: Sequence[Array]) -> list[Array]:
    """d f / d arrays by central differences of two steps, extrapolated: error about 1e-11."""

    def slope(array: Array, at, step: float) -> float:
        kept = array[at]
        array[at] = kept + step
        high = f(*arrays)
        array[at] = kept - step
        low = f(*arrays)
        array[at] = kept
        return (high - low) / (2 * step)

    gradients = []
    for array in arrays:
        gradient = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            gradient[at] = (4 * slope(array, at, 5e-4) - slope(array, at, 1e-3)) / 3
        gradients.append(gradient)
    return gradients
