"""PolyNorm's kernels for GPUs with the product behind them: interpreted, and what is traced."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from polycom_jax import InputError, get_activation
from polycom_jax import compile_ahead as aot
from polycom_jax.kernels.feed_forward import feed_forward
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.kernels.poly_norm import pallas_gpu
from polycom_jax.kernels.poly_norm.api import FORMS, poly_norm, poly_norm_glu
from polycom_jax.kernels.poly_norm.form import Form
from polycom_jax.kernels.poly_norm.gpu_product import activated_product
from polycom_jax.sharding import Rules, make_mesh

EPS = 1e-6
ON_ROWS = [
    *("poly_norm", "poly_relu_norm", "poly_norm_glu", "pnglu", "motif3_glu", "poly_norm_l2"),
    *("poly_norm_chebyshev", "poly_norm_hermite", "poly_norm_bernstein"),
]
Arrays = tuple[jax.Array, ...]


def drawn(gated: bool, dtype: Any = jnp.float32, rows: int = 6) -> Arrays:
    """w, coeffs, and the inputs."""
    shapes = [(10, 4), (4,)] + [(rows, 10)] * (2 if gated else 1)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    w, c, *inputs = (jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
    return w.astype(dtype), 0.3 * c, *(x.astype(dtype) for x in inputs)


def through(f: Callable[..., jax.Array], rules: Rules | None = None) -> Callable[..., jax.Array]:
    def product(w: jax.Array, coeffs: jax.Array, *inputs: jax.Array) -> jax.Array:
        form = Form(coeffs.size - 1, EPS, **FORMS[f])
        return activated_product(form, rules, w, coeffs, *inputs, interpret=True)

    return product


def gradients(product: Callable[..., jax.Array], arrays: Arrays) -> Any:
    def loss(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(product(*arrays).astype(jnp.float32)))

    return jax.grad(loss, tuple(range(len(arrays))))(*arrays)


@pytest.mark.parametrize("f", FORMS)
def test_it_rounds_as_the_kernel_and_a_product_behind_it(f: Callable[..., jax.Array]):
    arrays = drawn(FORMS[f].get("gated", False), jnp.bfloat16)
    kernel = getattr(pallas_gpu, f.__name__)

    def apart(w: jax.Array, coeffs: jax.Array, *inputs: jax.Array) -> jax.Array:
        return kernel(*inputs, coeffs, eps=EPS, interpret=True) @ w

    for got, wanted in zip(
        jax.tree.leaves((through(f)(*arrays), gradients(through(f), arrays))),
        jax.tree.leaves((apart(*arrays), gradients(apart, arrays))),
        strict=True,
    ):
        assert got.dtype == wanted.dtype
        assert jnp.array_equal(got, wanted)


def test_second_derivatives_are_the_formula_s_in_either_mode():
    arrays = drawn(gated=True)
    along = jax.tree.map(lambda a: jnp.cos(a + 1), arrays)

    def formula(w: jax.Array, coeffs: jax.Array, gate: jax.Array, up: jax.Array) -> jax.Array:
        return poly_norm_glu(gate, up, coeffs, eps=EPS, implementation="reference") @ w

    def forward(product: Callable[..., jax.Array]) -> Any:
        return jax.jvp(lambda *a: gradients(product, a), arrays, along)[1]

    def reverse(product: Callable[..., jax.Array]) -> Any:
        return jax.vjp(lambda *a: gradients(product, a), *arrays)[1](along)

    for order in (forward, reverse):
        got, wanted = (jax.jit(partial(order, f))() for f in (through(poly_norm_glu), formula))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            assert jnp.linalg.norm(a - b) <= 2**-24 * 10**2 * jnp.linalg.norm(b)


def test_devices_with_rows_of_their_own_add_up_the_gradients():
    arrays, rules = drawn(gated=False, rows=16), Rules()
    mesh = make_mesh(data=4, fsdp=2)
    spec = rules.partition(("batch", "mlp"))
    with jax.set_mesh(mesh):
        w, coeffs, x = (
            jax.device_put(a, NamedSharding(mesh, P(*entries)))
            for a, entries in zip(arrays, ((), (), spec), strict=True)
        )
        got = jax.jit(lambda *a: gradients(through(poly_norm, rules), a))(w, coeffs, x)
    for a, b in zip(got, gradients(through(poly_norm), arrays), strict=True):
        assert jnp.linalg.norm(a - b) <= 2**-24 * 10**2 * jnp.linalg.norm(b)


def block(
    activation: str, *, tokens: int = 16, widths: tuple[int, int] = (64, 96), **options: Any
) -> tuple[Any, Any, jax.ShapeDtypeStruct]:
    """An activation, parameters of its block, and an input."""
    act, (inner, hidden) = get_activation(activation, **options), widths
    matrices = {"w_up": (inner, hidden), "w_down": (hidden, inner)}
    matrices |= {"w_gate": (inner, hidden)} if act.gated else {}
    params = {name: jax.ShapeDtypeStruct(s, jnp.bfloat16) for name, s in matrices.items()}
    own = {name: jax.ShapeDtypeStruct(s.shape, jnp.float32) for name, s in act.specs.items()}
    return (
        act,
        {**params, "activation": own},
        jax.ShapeDtypeStruct((2, tokens // 2, inner), jnp.bfloat16),
    )


def kernels(activation: str) -> int:
    """Of the forward and the backward pass of a block, traced for an H100."""
    act, params, x = block(activation)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(feed_forward(act, params, x).astype(jnp.float32))

    with compiling_for("gpu", "9.0"):
        return str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, x)).count(" gpu_kernel[")


@pytest.mark.parametrize("name", ON_ROWS)
def test_a_block_needs_one_kernel_forward_and_one_backward(name: str):
    assert kernels(name) == 2


@pytest.mark.parametrize(
    ("name", "remat", "options", "reason"),
    [
        ("poly_norm", "none", {}, "traced for cpu"),
        ("poly_norm", "full", {}, "keeps nothing of rows"),
        ("poly_norm", "none", {"implementation": "xla"}, "implementation is 'xla'"),
        ("relu2", "none", {}, "none of PolyNorm's kernels"),
    ],
)
def test_what_it_cannot_take_is_refused(
    name: str, remat: Any, options: dict[str, Any], reason: str
):
    act, params, x = block(name, **options)
    with pytest.raises(InputError, match=reason):
        jax.eval_shape(
            lambda p, x: feed_forward(act, p, x, remat=remat, implementation="gpu"), params, x
        )


@pytest.mark.gpu_backend
@pytest.mark.parametrize("products", aot.PRODUCT_BACKENDS)
@pytest.mark.parametrize("name", ["poly_norm", "poly_norm_l2"])
def test_a_block_s_passes_move_the_bytes_of_squared_relu(name: str, products: str):
    device, capability = aot.devices("h100")[0], aot.GPUS["h100"].compute_capability

    def moved(activation: str) -> list[float]:
        act, params, x = block(activation, tokens=2048, widths=(1024, 3072))

        def f(params: Any, x: jax.Array) -> jax.Array:
            return feed_forward(act, params, x, remat="none")

        with compiling_for("gpu", capability):
            y, pull = jax.eval_shape(lambda *a: jax.vjp(f, *a), params, x)
            programs = ((f, (params, x)), (lambda pull, dy: pull(dy), (pull, y)))
            options = aot.PRODUCT_BACKENDS[products]
            return [
                aot.predict(
                    aot.compile(g, *aot.place(given, device), compiler_options=options)
                ).bytes_accessed
                for g, given in programs
            ]

    for own, least in zip(moved(name), moved("relu2"), strict=True):
        assert own < 1.01 * least
