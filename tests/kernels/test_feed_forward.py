"""The feed-forward block in each backend's form is the formula: values and derivatives."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from polycom_jax import ACTIVATIONS, InputError, get_activation
from polycom_jax.kernels.feed_forward import feed_forward
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.kernels.poly_norm import gpu_product
from polycom_jax.kernels.poly_norm.variants import RECASTS
from polycom_jax.kernels.projection import project

BACKENDS = ("cpu", "gpu", "tpu")
ON_ROWS = [name for name in ACTIVATIONS if get_activation(name).row.function in RECASTS]
QUICK = ("poly_norm_l2", "motif3_glu")


def drawn(name: str, activation: str) -> tuple[Any, Any]:
    """Parameters and an input of the block, from keys of their names."""
    row = get_activation(activation)
    shapes = {"x": (2, 5, 6), "w_up": (6, 10), "w_down": (10, 6)}
    shapes |= {"w_gate": (6, 10)} if row.gated else {}
    keys = jax.random.split(jax.random.key(len(name)), len(shapes) + 1)
    arrays = {
        n: jax.random.normal(k, s) for k, (n, s) in zip(keys[1:], shapes.items(), strict=True)
    }
    own = {n: 0.3 * jax.random.normal(keys[0], s.shape) for n, s in row.specs.items()}
    return arrays.pop("x"), {**arrays, "activation": own}


@cache
def of_the_formula(activation: str) -> Any:
    return derivatives(activation, "reference", "none")


def derivatives(activation: str, implementation: Any, remat: Any) -> Any:
    """The value, a gradient, a derivative in forward mode, and one of second order."""
    x, params = drawn("primal", activation)
    along = drawn("tangents", activation)

    def loss(x: Any, params: Any) -> jax.Array:
        out = feed_forward(
            get_activation(activation), params, x, remat=remat, implementation=implementation
        )
        return jnp.sum(jnp.sin(out))

    gradient = jax.value_and_grad(loss, argnums=(0, 1))

    def everything(x: Any, params: Any) -> Any:
        return jax.jvp(gradient, (x, params), along)

    return jax.jit(everything)(x, params)


def assert_near(got: Any, wanted: Any) -> None:
    """Leaf by leaf, in the norm: sums of up to 10^3 terms of float32, in another order."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert jnp.linalg.norm(a - b) <= 2**-24 * 10**3 * jnp.linalg.norm(b)


@pytest.mark.parametrize(
    ("activation", "remat"),
    [
        ("poly_norm", "none"),
        ("poly_norm_glu", "dots"),
        pytest.param("poly_norm", "dots", marks=pytest.mark.slow),
        pytest.param("poly_norm_glu", "none", marks=pytest.mark.slow),
        pytest.param("relu2", "none", marks=pytest.mark.slow),
        ("swiglu", "none"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_s_block_is_the_formula(activation: str, remat: Any, backend: str):
    with compiling_for(backend):
        got = derivatives(activation, None, remat)
    assert_near(got, of_the_formula(activation))


@pytest.mark.parametrize(
    "activation",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ON_ROWS],
)
def test_through_interpreted_kernels_it_is_the_formula(
    activation: str, monkeypatch: pytest.MonkeyPatch
):
    interpreted = partial(gpu_product.activated_product, interpret=True)
    monkeypatch.setattr(gpu_product, "activated_product", interpreted)
    with compiling_for("gpu", "9.0"):
        got = derivatives(activation, "gpu", "none")
    assert_near(got, of_the_formula(activation))


def test_a_variant_s_eps_is_refused_as_the_activation_itself_refuses_it():
    x, params = drawn("primal", "poly_norm_l2")
    act = get_activation("poly_norm_l2", eps=1e-30)
    with compiling_for("gpu", "9.0"), pytest.raises(InputError, match=r"eps=1e-30 .*width 10"):
        jax.eval_shape(lambda: feed_forward(act, params, x))


def test_the_reference_is_written_out_here_once_more():
    x, params = drawn("primal", "swiglu")
    out = feed_forward(get_activation("swiglu"), params, x, implementation="reference")
    wanted = (jax.nn.silu(x @ params["w_gate"]) * (x @ params["w_up"])) @ params["w_down"]
    assert_near(out, wanted)


def test_a_form_that_cannot_take_the_activation_says_so():
    x, params = drawn("primal", "relu2")
    with pytest.raises(InputError, match="feed_forward: implementation='tpu' cannot run here"):
        feed_forward(get_activation("relu2"), params, x, implementation="tpu")
    with pytest.raises(InputError, match="implementation of feed_forward"):
        feed_forward(get_activation("relu2"), params, x, implementation="fast")  # pyright: ignore


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_projection_contracts_all_axes_behind_batch_and_sequence(backend: str):
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    w = jax.random.normal(jax.random.key(1), (4, 5, 6, 7))
    with compiling_for(backend):
        assert_near(project(x, w), jnp.einsum("btkc,kchd->bthd", x, w))
        y = project(x.reshape(2, 3, 20), w.reshape(20, 42))
    assert_near(y.reshape(2, 3, 6, 7), jnp.einsum("btkc,kchd->bthd", x, w))
