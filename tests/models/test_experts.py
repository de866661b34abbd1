"""Experts, sorted, sent and combined, against a plain loop over them; on every kind of mesh."""

import contextlib
import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from polycom_jax import params as pm
from polycom_jax.kernels.grouped_matmul import grouped_matmul
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.models import ModelConfig, MoEConfig, exchange, experts, preset
from polycom_jax.models.experts import run_experts
from polycom_jax.models.moe import moe_specs
from polycom_jax.models.permutation import combine, dispatch, inverse, permute
from polycom_jax.sharding import Rules, make_mesh

TOKENS, WIDTH, EXPERTS = 32, 8, 8
MESHES = {
    "one": None,
    "data 8": {"data": 8},
    "expert 8": {"data": 1, "expert": 8},
    "expert 4, tensor 2": {"data": 1, "expert": 4, "tensor": 2},
    "fsdp 2, expert 2, tensor 2": {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2},
    "data 2, expert 4": {"data": 2, "expert": 4},
}
QUICK = ("one", "expert 8", "fsdp 2, expert 2, tensor 2")


def config(activation: str = "poly_norm", k: int = 2, **moe: Any) -> ModelConfig:
    return preset(
        "moe-tiny",
        embed_dim=WIDTH,
        gated_width=8,
        activation=activation,
        moe=MoEConfig(num_experts=EXPERTS, top_k=k, **moe),
    )


def routing(kind: str, k: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    chosen = np.stack([rng.permutation(EXPERTS)[:k] for _ in range(TOKENS)])
    if kind == "one has all, one has none":
        chosen = np.stack([3 + rng.permutation(EXPERTS - 4)[: k - 1] % 4 for _ in range(TOKENS)])
        chosen = np.concatenate([np.zeros((TOKENS, 1), int), 1 + chosen % 6], axis=1)
    return chosen.astype(np.int32)


def problem(cfg: ModelConfig, chosen: np.ndarray):
    rng = np.random.default_rng(2)
    specs = {name: spec for name, spec in moe_specs(cfg).items() if name not in ("norm", "router")}

    def draw(spec: pm.ParamSpec) -> jax.Array:
        return jnp.asarray(rng.standard_normal(spec.shape) * 0.5, jnp.float32)

    params = pm.map_specs(draw, specs)
    y, dy = (jnp.asarray(rng.standard_normal((TOKENS, WIDTH)), jnp.float32) for _ in range(2))
    weights = jnp.asarray(rng.random(chosen.shape), jnp.float32)
    return params, y, weights, dy


def loop(cfg: ModelConfig, params: Any, y: Any, weights: Any, chosen: Any) -> jax.Array:
    """Every expert, one after the other, on all tokens; those that did not choose it get none."""
    own, total = cfg.moe.coefficients == "expert", jnp.zeros(y.shape)
    for e in range(EXPERTS):
        names = ("w_gate", "w_up") if cfg.activation_fn.gated else ("w_up",)
        hidden = [jnp.dot(y, params[name][e]) for name in names]
        activation = {name: v[e] if own else v for name, v in params["activation"].items()}
        out = jnp.dot(cfg.activation_fn.apply(activation, *hidden), params["w_down"][e])
        total += jnp.sum(weights * (chosen == e), axis=1, keepdims=True) * out
    return total


def with_gradients(f: Any, dy: Any, *arguments: Any) -> tuple[Any, Any]:
    y, pull = jax.vjp(f, *arguments)
    return y, pull(dy)


@functools.partial(jax.jit, static_argnums=0)
def looped(cfg: ModelConfig, params: Any, y: Any, weights: Any, chosen: Any, dy: Any) -> Any:
    return with_gradients(lambda p, y, w: loop(cfg, p, y, w, chosen), dy, params, y, weights)


@functools.cache
def wanted(activation: str, k: int, kind: str, coefficients: str) -> Any:
    cfg, chosen = config(activation, k, coefficients=coefficients), routing(kind, k)
    params, y, weights, dy = problem(cfg, chosen)
    return jax.device_get(looped(cfg, params, y, weights, chosen, dy))


@functools.cache  # one program serves every routing
def program(cfg: ModelConfig, *traced_with: Any) -> Any:
    """`traced_with`: what else the program depends on."""
    del traced_with

    def run(params: Any, y: Any, weights: Any, chosen: Any, dy: Any) -> Any:
        f = lambda p, y, w: run_experts(cfg, p, y, w, chosen, Rules())  # noqa: E731
        out, pull, dropped = jax.vjp(f, params, y, weights, has_aux=True)
        return out, pull(dy), dropped

    return jax.jit(run)


def got(cfg: ModelConfig, chosen: np.ndarray, mesh: str) -> tuple[Any, Any, int]:
    params, y, weights, dy = problem(cfg, chosen)
    sizes = MESHES[mesh]
    on = make_mesh(devices=jax.devices()[:1]) if sizes is None else make_mesh(**sizes)
    with jax.set_mesh(on):
        run = program(cfg, exchange.exchange(), experts.grouped_matmul)
        out, gradients, dropped = jax.device_get(run(params, y, weights, chosen, dy))
    return out, gradients, int(dropped)


def ragged_all_to_all(
    operand: Any,
    output: Any,
    begins: Any,
    sizes: Any,
    places: Any,
    arriving: Any,
    *,
    axis_name: Any,
) -> Any:
    """`jax.lax.ragged_all_to_all` as its documentation has it, from what every CPU backend has."""
    gather = functools.partial(jax.lax.all_gather, axis_name=axis_name)
    me = jax.lax.axis_index(axis_name)
    place = jnp.arange(output.shape[0])
    begins, sizes, places = (gather(a)[:, me] for a in (begins, sizes, places))
    for part, rows in enumerate(gather(operand)):
        number = place - places[part]
        here = (number >= 0) & (number < sizes[part])
        row = rows[jnp.clip(begins[part] + number, 0, rows.shape[0] - 1)]
        output = jnp.where(here[:, None], row, output)
    # The receiver's own count of what comes must agree, or hardware waits for ever.
    return jnp.where(jnp.all(arriving == sizes), output, jnp.nan)


@pytest.fixture(params=["padded", "ragged"])
def either_exchange(request, monkeypatch):
    with contextlib.ExitStack() as stack:
        if request.param == "ragged":
            monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_all_to_all)
            stack.enter_context(compiling_for("gpu"))
        assert exchange.exchange() is exchange.EXCHANGES[request.param]
        yield


def assert_same(a: Any, b: Any) -> None:
    def check(x: Any, y: Any) -> None:
        # float32 sums of up to 64 terms of the size of the largest.
        np.testing.assert_allclose(x, y, rtol=0, atol=5e-6 * max(1.0, np.max(np.abs(y))))

    jax.tree.map(check, a, b)


@pytest.mark.parametrize(
    "mesh",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MESHES],
)
@pytest.mark.parametrize("kind", ["any", "one has all, one has none"])
def test_values_and_gradients_are_those_of_a_loop_on_any_mesh(mesh, kind):
    out, gradients, dropped = got(config(), routing(kind, 2), mesh)
    assert_same((out, gradients), wanted("poly_norm", 2, kind, "layer"))
    assert dropped == 0


@pytest.mark.parametrize(
    ("activation", "k", "coefficients", "mesh"),
    [
        pytest.param(*("swiglu", 2, "layer", "expert 4, tensor 2"), marks=pytest.mark.slow),
        ("poly_norm_glu", 3, "expert", "expert 4, tensor 2"),
        pytest.param(*("poly_relu", 1, "layer", "expert 8"), marks=pytest.mark.slow),
        pytest.param(*("poly_norm", 8, "layer", "data 2, expert 4"), marks=pytest.mark.slow),
        pytest.param(*("poly_norm", 2, "expert", "one"), marks=pytest.mark.slow),
        pytest.param(
            *("poly_prelu", 2, "expert", "fsdp 2, expert 2, tensor 2"), marks=pytest.mark.slow
        ),
    ],
)
def test_activations_and_numbers_of_choices(activation, k, coefficients, mesh):
    cfg = config(activation, k, coefficients=coefficients)
    out, gradients, _ = got(cfg, routing("any", k), mesh)
    assert_same((out, gradients), wanted(activation, k, "any", coefficients))


def test_the_loop_itself_is_the_formula():
    """Against float64 NumPy, since everything above rests on it."""
    cfg, chosen = config(), routing("any", 2)
    params, y, weights, _ = problem(cfg, chosen)
    up, down, coeffs, y64, w64 = oracles.float64(
        params["w_up"], params["w_down"], params["activation"]["coeffs"], y, weights
    )
    total = np.zeros((TOKENS, WIDTH))
    for n in range(TOKENS):
        for j, e in enumerate(chosen[n]):
            h = y64[n] @ up[e]
            powers = [h**i / np.sqrt(np.mean(h ** (2 * i)) + 1e-6) for i in (1, 2, 3)]
            act = coeffs[0] + sum(c * p for c, p in zip(coeffs[1:], powers, strict=True))
            total[n] += w64[n, j] * (act @ down[e])
    np.testing.assert_allclose(wanted("poly_norm", 2, "any", "layer")[0], total, atol=2e-5)


def test_weights_of_a_bfloat16_mixture_are_not_rounded():
    cfg = replace(config(), dtype="bfloat16")
    params, y, weights, _ = problem(cfg, routing("any", 2))
    chosen = jnp.array(routing("any", 2))
    specs = {name: moe_specs(cfg)[name] for name in params}
    args = pm.cast(specs, params, "bfloat16"), y.astype(jnp.bfloat16)
    run = jax.jit(lambda w: run_experts(cfg, *args, jnp.full_like(weights, w), chosen, None)[0])
    third, whole = (np.asarray(run(weight), np.float64) for weight in (1 / 3, 1.0))
    # In bfloat16 a third is 0.33398; what else is rounded falls to either side.
    share = np.sum(third * whole) / np.sum(whole**2)
    assert share == pytest.approx(1 / 3, rel=2**-10)


@pytest.mark.usefixtures("either_exchange")
@pytest.mark.parametrize("kind", ["any", "one has all, one has none"])
def test_both_exchanges_come_to_the_same(kind):
    out, gradients, dropped = got(config(), routing(kind, 2), "expert 4, tensor 2")
    assert_same((out, gradients), wanted("poly_norm", 2, kind, "layer"))
    assert dropped == 0


@pytest.mark.parametrize("coefficients", ["layer", "expert"])
def test_what_stands_behind_all_rows_reaches_nothing(monkeypatch, coefficients):
    """A grouped product may leave anything there, in values and gradients: here it leaves NaN."""

    def behind(x: Any, sizes: Any) -> Any:
        return jnp.arange(x.shape[0])[:, None] >= jnp.sum(sizes)

    def leave_nan(x: Any, w: Any, sizes: Any) -> Any:
        x = nan_gradient(x, sizes)
        return jnp.where(behind(x, sizes), jnp.nan, grouped_matmul(x, w, sizes))

    @jax.custom_vjp
    def nan_gradient(x: Any, sizes: Any) -> Any:
        del sizes
        return x

    def pull(sizes: Any, dx: Any) -> Any:
        return jnp.where(behind(dx, sizes), jnp.nan, dx), None

    nan_gradient.defvjp(lambda x, sizes: (x, sizes), pull)
    monkeypatch.setattr(experts, "grouped_matmul", leave_nan)
    cfg = config(coefficients=coefficients)
    out, gradients, _ = got(cfg, routing("any", 2), "data 2, expert 4")
    assert_same((out, gradients), wanted("poly_norm", 2, "any", coefficients))


@pytest.mark.usefixtures("either_exchange")
def test_a_capacity_drops_the_last_rows_and_counts_them():
    chosen = np.zeros((TOKENS, 2), np.int32)
    chosen[:, 1] = 7
    # Each device has four tokens: four rows for the first device of its expert axis and four for
    # the last, of which ceil(0.75 * 4 * 2 / 4) = 2 travel.
    cfg = config(capacity_factor=0.75)
    out, gradients, dropped = got(cfg, chosen, "data 2, expert 4")
    assert dropped == 8 * 2 * (4 - 2)
    kept = jnp.asarray(np.arange(TOKENS)[:, None] % 4 < 2, jnp.float32)
    params, y, weights, dy = problem(cfg, chosen)

    @jax.jit
    def run(*arguments: Any) -> Any:
        return with_gradients(lambda p, y, w: loop(cfg, p, y, w * kept, chosen), dy, *arguments)

    assert_same((out, gradients), run(params, y, weights))


@pytest.mark.usefixtures("either_exchange")
def test_tokens_that_do_not_count_take_no_capacity_of_those_that_do():
    chosen = np.tile(np.array([[0, 1]], np.int32), (TOKENS, 1))
    # Eight rows of each device for the first one of its expert axis, of which 2 travel: both of
    # the last token, the only one that counts, though its are the last for either expert.
    cfg = config(capacity_factor=0.75)
    counts = np.arange(TOKENS) % 4 == 3
    params, y, weights, dy = problem(cfg, chosen)

    def run(params: Any, y: Any, weights: Any) -> Any:
        ids, first = jnp.array(chosen), jnp.array(counts)
        f = lambda p, y, w: run_experts(cfg, p, y, w, ids, Rules(), first)  # noqa: E731
        out, pull, dropped = jax.vjp(f, params, y, weights, has_aux=True)
        return out, pull(dy), dropped

    with jax.set_mesh(make_mesh(data=2, expert=4)):
        out, gradients, dropped = jax.device_get(jax.jit(run)(params, y, weights))
    assert dropped == 0

    @jax.jit
    def plain(*arguments: Any) -> Any:
        kept = jnp.asarray(counts[:, None], jnp.float32)
        return with_gradients(lambda p, y, w: loop(cfg, p, y, w * kept, chosen), dy, *arguments)

    assert_same((out, gradients), plain(params, y, weights))


def test_a_capacity_for_the_worst_drops_nothing():
    assert exchange.slots(16, 8, 64, 8, None) == 16 * 8
    assert exchange.slots(16, 2, 64, 8, None) == 16 * 2
    assert exchange.slots(16, 8, 64, 32, None) == 16 * 2
    assert exchange.slots(16, 8, 64, 8, 100.0) == 16 * 8
    assert exchange.slots(16, 8, 64, 8, 1.5) == 24


def test_moved_rows_come_back_and_gradients_are_transposes():
    rng = np.random.default_rng(3)
    order = jnp.asarray(rng.permutation(12), jnp.int32)
    back = inverse(order)
    np.testing.assert_array_equal(back[order], np.arange(12))
    x = jnp.asarray(rng.standard_normal((12, 2)), jnp.float32)
    np.testing.assert_array_equal(permute(permute(x, order, back), back, order), x)
    some = jnp.where(jnp.arange(12) < 9, order, -1)
    way_back = jnp.where(back < 9, back, -1)
    part = lambda x: permute(x, some, way_back, False)  # noqa: E731
    np.testing.assert_array_equal(part(x)[:9], x[order[:9]])
    assert not part(x)[9:].any()

    def matrix(f: Any, like: Any) -> np.ndarray:
        return np.asarray(jax.jacobian(f)(like)).reshape(-1, like.size)

    there = lambda x: dispatch(x, order, back, 3)  # noqa: E731
    again = lambda y: combine(y, order, back, 3)  # noqa: E731
    thin = jnp.ones((4, 2))
    np.testing.assert_array_equal(matrix(there, thin).T, matrix(again, x))
    plain = np.eye(4)[np.asarray(order) // 3]
    np.testing.assert_array_equal(matrix(there, thin), np.kron(plain, np.eye(2)))
    plain = np.eye(12)[np.asarray(order)] * (np.arange(12) < 9)[:, None]
    np.testing.assert_array_equal(matrix(part, x), np.kron(plain, np.eye(2)))


def test_moved_rows_have_every_derivative():
    order = jnp.asarray(np.random.default_rng(3).permutation(12), jnp.int32)
    back = inverse(order)
    whole = jax.random.normal(jax.random.key(0), (2, 12, 2))
    for f, (x, along) in (
        (lambda x: permute(x, order, back), whole),
        (lambda x: permute(x, jnp.where(order < 9, order, -1), back, False), whole),
        (lambda x: dispatch(x, order, back, 3), whole[:, :4]),
        (lambda y: combine(y, order, back, 3), whole),
    ):
        np.testing.assert_array_equal(jax.jvp(f, (x,), (along,))[1], f(along))
