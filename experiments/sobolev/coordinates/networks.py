"""Networks of coordinates x in [-1, 1]^d, as their authors published them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from experiments.sobolev.coordinates.arms import ARMS, FEATURES_SCALE, SL2A, uniform
from polycom_jax import params as pm
from polycom_jax._errors import require
from polycom_jax.params import Initializer, Params, ParamSpec, Specs
from polycom_jax.table import get_activation

MAX_WIDTH = 4096


@dataclass(frozen=True)
class Layered:
    """x -> w . h_L + b, h_l = f(W_l h_{l-1} + b_l), h_0 the coordinates or their features.

    Attributes:
        arm: a name of `ARMS`.
        widths: of the hidden layers.
        dim: d.
    """

    arm: str
    widths: tuple[int, ...]
    dim: int

    @cached_property
    def specs(self) -> Specs:
        """The parameters' declaration; features are among them, though they are not trained."""
        own, width = ARMS[self.arm], self.widths[0]
        fan_in = 2 * width if own.features else self.dim
        tree: dict[str, Specs] = {}
        if own.features:
            tree["features"] = _spec((self.dim, width), jax.nn.initializers.normal(FEATURES_SCALE))
        for layer, out in enumerate((*self.widths, 1)):
            tree[f"layer{layer}"] = self._affine(fan_in, out, layer)
            fan_in = out
        return tree

    def _affine(self, fan_in: int, out: int, layer: int) -> Specs:
        own, first = ARMS[self.arm], layer == 0
        shapes = {"w": ((fan_in, out), own.weights), "b": ((out,), own.biases)}
        tree: dict[str, Specs] = {
            name: _spec(shape, make(fan_in, first)) for name, (shape, make) in shapes.items()
        }
        if own.complex and not first:
            for name, (shape, make) in shapes.items():
                tree[f"{name}_imaginary"] = _spec(shape, make(fan_in, first))
        if isinstance(own.function, str) and layer < len(self.widths):
            tree["activation"] = get_activation(own.function).specs_at(out)
        return tree

    @property
    def size(self) -> int:
        """Number of trained parameters; a complex one counts as two."""
        fixed = self.dim * self.widths[0] if ARMS[self.arm].features else 0
        return pm.count(self.specs) - fixed

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial parameters."""
        return pm.init(self.specs, key)

    def apply(
        self, params: Params, x: Float[Array, "P d"], *, train: bool = False
    ) -> Float[Array, " P"]:
        """Values at the points; `train`: with the derivatives by parameters that are published."""
        h = _features(params["features"], x) if ARMS[self.arm].features else x
        for layer in range(len(self.widths)):
            own = params[f"layer{layer}"]
            h = self._function(own, _affine(own, h), train)
        return jnp.real(_affine(params[f"layer{len(self.widths)}"], h)[:, 0])

    def _function(self, params: Params, z: Array, train: bool) -> Array:
        own = ARMS[self.arm]
        if isinstance(own.function, str):
            return get_activation(own.function).apply(params["activation"], z)
        return (own.trained if train and own.trained else own.function)(z)


def _spec(shape: tuple[int, ...], init: Initializer) -> ParamSpec:
    return ParamSpec(shape, (None,) * len(shape), init, "matrix" if len(shape) > 1 else "norm")


def _affine(params: Params, h: Array) -> Array:
    weights, biases = params["w"], params["b"]
    if "w_imaginary" in params:
        weights = weights + 1j * params["w_imaginary"]
        biases = biases + 1j * params["b_imaginary"]
    return h @ weights + biases[None]


def _features(frequencies: Array, x: Array) -> Array:
    angles = 2 * math.pi * ((x + 1) / 2) @ jax.lax.stop_gradient(frequencies)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


@dataclass(frozen=True)
class Sl2a:
    """SL2A-INR (Heidari et al. 2025, 2409.10836): x -> w . y_L + b, with y_0 = u and

        u_j = LayerNorm(sum_ik c_ijk T_k(tanh x_i)), y_l = relu((u y_{l-1}) A_l B_l + b_l),

    T_k Chebyshev's polynomials and A_l B_l of low rank. Its authors take the degree equal to the
    width and half of it as the rank, so these are kept for smaller ones.

    Attributes:
        width: of all layers.
        degree: largest k.
        layers: all hidden ones, the first included.
        dim: d.
    """

    width: int
    degree: int
    layers: int
    dim: int

    @property
    def rank(self) -> int:
        """Of the products A_l B_l."""
        return max(1, self.width // 2)

    @cached_property
    def specs(self) -> Specs:
        """The parameters' declaration. Its code starts c as PyTorch's Xavier does 3-D arrays."""
        width, terms = self.width, self.degree + 1
        xavier = uniform(math.sqrt(6 / ((self.dim + width) * terms)))
        first = {
            "c": _spec((self.dim, width, terms), xavier),
            "gain": _spec((width,), jax.nn.initializers.ones),
            "shift": _spec((width,), jax.nn.initializers.zeros),
        }
        layer = {
            "a": _spec((width, self.rank), uniform(1 / math.sqrt(self.rank))),
            "b": _spec((self.rank, width), uniform(1 / math.sqrt(width))),
            "bias": _spec((width,), uniform(1 / math.sqrt(self.rank))),
        }
        out = uniform(1 / math.sqrt(width))
        last = {"w": _spec((width, 1), out), "b": _spec((1,), out)}
        rest = {f"layer{index}": layer for index in range(1, self.layers)}
        return {"layer0": first, **rest, "out": last}

    @property
    def size(self) -> int:
        """Number of parameters."""
        return pm.count(self.specs)

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial parameters."""
        return pm.init(self.specs, key)

    def apply(
        self, params: Params, x: Float[Array, "P d"], *, train: bool = False
    ) -> Float[Array, " P"]:
        """Values at the points."""
        first = params["layer0"]
        u = jnp.einsum("pdk,dwk->pw", chebyshev(jnp.tanh(x), self.degree), first["c"])
        centred = u - jnp.mean(u, axis=1, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(centred**2, axis=1, keepdims=True) + 1e-5)  # PyTorch's eps
        u = centred / deviation * first["gain"][None] + first["shift"][None]
        y = u
        for index in range(1, self.layers):
            own = params[f"layer{index}"]
            y = jax.nn.relu((u * y) @ (own["a"] @ own["b"]) + own["bias"][None])
        return _affine(params["out"], u * y)[:, 0]


def chebyshev(x: Float[Array, "P d"], degree: int) -> Float[Array, "P d K"]:
    """T_0 ... T_degree by T_k = 2 x T_(k-1) - T_(k-2): polynomials have derivatives at -1 and 1.

    Of cos(k arccos x), which is the same inside, the derivative is infinite times 0 there, and tanh
    rounds to 1.
    """

    def further(before: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        older, last = before
        return (last, 2 * x * last - older), last

    ones = jnp.ones_like(x)
    _, rows = jax.lax.scan(further, (x, ones), length=degree + 1)
    return jnp.moveaxis(rows, 0, -1)


@dataclass(frozen=True)
class Zoomed:
    """x -> network(extent x).

    Attributes:
        network: of coordinates in [-extent, extent]^d.
        extent: 1 for what was published.
    """

    network: Layered | Sl2a
    extent: float

    @property
    def size(self) -> int:
        """Number of trained parameters."""
        return self.network.size

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial parameters."""
        return self.network.init(key)

    def apply(
        self, params: Params, x: Float[Array, "P d"], *, train: bool = False
    ) -> Float[Array, " P"]:
        """Values at the points of [-1, 1]^d."""
        return self.network.apply(params, self.extent * x, train=train)


Network = Layered | Sl2a | Zoomed


def network_of_size(arm: str, size: int, *, dim: int, layers: int) -> Layered | Sl2a:
    """The largest one with at most `size` trained parameters.

    All layers have the widest width that fits. What is left goes to the last hidden layer, or to
    SL2A's degree, so that counts of all arms are close.

    Raises:
        InputError: not even width 2 fits, or more than width `MAX_WIDTH` does.
    """
    if arm == SL2A:
        width = _largest(lambda n: Sl2a(n, n, layers, dim), size, 2)
        most = _largest(lambda n: Sl2a(width, n, layers, dim), size, width)
        return Sl2a(width, most, layers, dim)
    width = _largest(lambda n: Layered(arm, (n,) * layers, dim), size, 2)
    head = (width,) * (layers - 1)
    last = _largest(lambda n: Layered(arm, (*head, n), dim), size, width)
    return Layered(arm, (*head, last), dim)


def _largest(at: Callable[[int], Network], size: int, low: int) -> int:
    """The largest n, from `low` on, whose network has at most `size` parameters."""
    require(
        at(low).size <= size < at(MAX_WIDTH).size,
        f"parameters={size} do not fit: the smallest network here has {at(low).size}, one of width"
        f" {MAX_WIDTH} {at(MAX_WIDTH).size}.",
    )
    high = MAX_WIDTH
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle).size <= size else (low, middle)
    return low
