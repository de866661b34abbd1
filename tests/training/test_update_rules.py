"""Every optimiser of the table: what its update is, how its state lies, and what is refused."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import scale_by_muon

from polycom_jax import InputError, Parameter, activation, models
from polycom_jax import params as pm
from polycom_jax.models import MoEConfig
from polycom_jax.training import (
    Checkpoints,
    Multipliers,
    OptimConfig,
    abstract_state,
    make_model_step,
    make_optimizer,
    make_state,
    model_specs,
    put_batch,
)
from polycom_jax.training.update_rules import FOR_MATRICES, MUON_RMS, RULES, sides_of

USUAL = {"peak_learning_rate": 1.0, "clip_norm": None, "weight_decay": 0.0, "schedule": "constant"}


def drawn(specs):
    return pm.map_specs(
        lambda spec: jax.random.normal(jax.random.key(spec.size), spec.shape) * 1e-3, specs
    )


def first_update(specs, name, **more):
    """By role, the leaves of a first update, its sign that of the gradient."""
    optimizer = make_optimizer(OptimConfig(optimizer=name, **(USUAL | more)), specs, 10**6)
    grads = drawn(specs)
    update, _ = jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g))(grads)
    return grads, jax.tree.map(jnp.negative, update)


def by_role(specs, *trees):
    flat = jax.tree.leaves(specs, is_leaf=pm.is_spec)
    return list(zip(flat, *map(jax.tree.leaves, trees), strict=True))


def sizes(spec, update):
    """Singular values of each layer's matrix, seen from the residual stream."""
    stream = sides_of(spec).reduction_axis
    front = np.moveaxis(np.asarray(update, np.float64), stream, [1])
    return np.linalg.svd(front.reshape(*front.shape[:2], -1), compute_uv=False)


def test_muon_turns_matrices_into_orthogonal_ones_and_leaves_the_rest_to_adam(model):
    specs = models.specs(model())
    _, adam = first_update(specs, "adamw")
    _, muon = first_update(specs, "muon")
    for spec, by_adam, by_muon in by_role(specs, adam, muon):
        if spec.role != "matrix":
            np.testing.assert_array_equal(by_muon, by_adam)
            continue
        (axis,) = np.atleast_1d(sides_of(spec).reduction_axis)
        stream = spec.shape[axis]
        longer = max(stream, spec.size // spec.shape[0] // stream)
        found = sizes(spec, by_muon) / (MUON_RMS * longer**0.5)
        # Five steps of Newton and Schulz bring singular values near one, not to it.
        assert 0.3 < found.min() <= found.max() < 1.3


@pytest.mark.parametrize(
    ("axes", "sides"),
    [
        (("embed", "heads", "head_dim"), ((1,), (2, 3))),
        (("heads", "head_dim", "embed"), ((3,), (1, 2))),
        (("embed", "mlp"), ((1,), (2,))),
        (("expert", "mlp", "embed"), ((3,), (2,))),
    ],
)
def test_a_matrix_has_the_residual_stream_on_one_side(axes, sides):
    spec = pm.ParamSpec((4,) * len(axes), axes, jax.nn.initializers.ones, "matrix")
    assert tuple(sides_of(pm.stack(spec, 2))) == sides


@pytest.mark.parametrize("name", sorted(FOR_MATRICES))
def test_an_activation_s_own_numbers_are_no_matrix_whatever_decays_them(model, name):
    slope = {"slope": Parameter(0.5, role="matrix")}
    own = activation(lambda x, slope: slope * jnp.tanh(x), params=slope, name="own")
    specs = models.specs(model(activation=own))
    _, adam = first_update(specs, "adamw")
    _, found = first_update(specs, name)
    others = [(a, b) for spec, a, b in by_role(specs, adam, found) if spec.axes == ("layers",)]
    assert others
    for by_adam, update in others:
        np.testing.assert_array_equal(update, by_adam)
    wide = pm.widened(specs, 4.0)
    assert {s.width_multiple for s, _ in by_role(wide, adam) if s.axes == ("layers",)} == {1.0}


def updates(specs, name, count, **more):
    """Gradients and updates, one a step, of random gradients."""
    optimizer = make_optimizer(OptimConfig(optimizer=name, **(USUAL | more)), specs, 10**6)
    params = pm.map_specs(lambda spec: jnp.zeros(spec.shape), specs)
    state, update, found = optimizer.init(params), jax.jit(optimizer.update), []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        grads = pm.map_specs(
            lambda spec, rng=rng: jnp.asarray(rng.normal(size=spec.shape), jnp.float32), specs
        )
        moved, state = update(grads, state, params)
        found.append((grads, jax.tree.map(jnp.negative, moved)))
    return found


def test_muon_is_optax_s_of_each_matrix_by_itself_at_adamw_s_size(model):
    spec = models.specs(model(embed_dim=16, gated_width=32))["layers"][0]["ffn"]["w_up"]
    alone, state = scale_by_muon(beta=0.95), None
    for grads, update in updates({"w": spec}, "muon", 4):
        one = grads["w"][0]
        state = state or alone.init(one)
        wanted, state = alone.update(one, state)
        size = 0.2 * max(one.shape) ** 0.5
        # Five products of matrices of some dozen rows.
        np.testing.assert_allclose(update["w"][0], size * wanted, atol=size * 2**-16)


def test_lion_is_the_sign_of_one_mean_and_keeps_another():
    spec = pm.ParamSpec((64,), ("embed",), jax.nn.initializers.ones, "norm")
    mean = np.zeros(64)
    for grads, update in updates({"w": spec}, "lion", 5, b1=0.7, b2=0.6):
        g = np.asarray(grads["w"], np.float64)
        np.testing.assert_array_equal(update["w"], np.sign(0.7 * mean + 0.3 * g))
        mean = 0.6 * mean + 0.4 * g


def test_lion_goes_by_signs(model):
    specs = models.specs(model())
    grads, lion = first_update(specs, "lion")
    jax.tree.map(lambda g, u: np.testing.assert_array_equal(np.sign(g), u), grads, lion)


def test_adafactor_keeps_sums_over_rows_and_columns_of_matrices(model):
    cfg = model(embed_dim=128, gated_width=128, num_layers=1)
    specs = models.specs(cfg)
    optim = OptimConfig(optimizer="adafactor", **USUAL)
    shapes = pm.abstract(specs)
    state = jax.eval_shape(make_optimizer(optim, specs, 10).init, shapes)
    rows, full = (optax.tree.get(state, name)["layers"][0] for name in ("v_row", "v"))
    w_up = shapes["layers"][0]["ffn"]["w_up"]
    assert rows["ffn"]["w_up"].shape in (w_up.shape[:2], (1, w_up.shape[2]))
    assert full["ffn"]["w_up"].size == 1
    _, adam = first_update(specs, "adamw")
    _, factored = first_update(specs, "adafactor")
    for spec, by_adam, update in by_role(specs, adam, factored):
        if spec.role == "matrix":
            assert float(jnp.sqrt(jnp.mean(update**2))) <= 1 + 1e-5
        else:
            np.testing.assert_array_equal(update, by_adam)


def test_adafactor_is_that_of_the_paper_in_float64(model):
    spec = models.specs(model(embed_dim=128, gated_width=96, num_layers=1))["layers"][0]["ffn"]
    params = {"w": jnp.zeros(spec["w_up"].shape)}
    optim = OptimConfig(optimizer="adafactor", **USUAL)
    optimizer = make_optimizer(optim, {"w": spec["w_up"]}, 10)
    rng, rows, columns, largest = np.random.default_rng(0), 0, 0, []
    state, apply = optimizer.init(params), jax.jit(optimizer.update)
    for t, scale in enumerate((1.0, 1e-2, 3.0), start=1):
        grad = scale * rng.normal(size=params["w"].shape).astype(np.float32)
        update, state = apply({"w": grad}, state, params)
        # Algorithm 4 with the decay of section 7.2 and the clip of section 6.
        old, square = 1 - t**-0.8, np.square(grad[0], dtype=np.float64)
        rows = old * rows + (1 - old) * square.mean(1, keepdims=True)
        columns = old * columns + (1 - old) * square.mean(0, keepdims=True)
        wanted = grad[0] / np.sqrt(rows * columns / rows.mean())
        largest.append(np.sqrt(np.mean(wanted**2)))
        wanted = wanted / max(1.0, largest[-1])
        np.testing.assert_allclose(-update["w"][0], wanted, rtol=1e-5)
    assert min(largest) < 0.1 < 1.1 < max(largest)


@pytest.mark.parametrize(
    ("many", "number"),
    [(0, {"num_layers": 192}), (1, {"moe": MoEConfig(num_experts=192, top_k=1)})],
    ids=["layers", "experts"],
)
def test_adafactor_factors_a_matrix_and_neither_layers_nor_experts(model, many, number):
    def updated(spec, *grads):
        optimizer = make_optimizer(OptimConfig(optimizer="adafactor", **USUAL), {"w": spec}, 10)
        params = {"w": jnp.zeros(spec.shape)}
        update: Any = None
        state = optimizer.init(params)
        for grad in grads:
            update, state = optimizer.update({"w": jnp.asarray(grad)}, state, params)
        return update["w"]

    layer = models.specs(model(embed_dim=128, gated_width=96, **number))["layers"][0]
    spec = layer["moe" if many else "ffn"]["w_up"]
    assert spec.shape[many] == 192
    grads = np.random.default_rng(0).normal(size=(2, *spec.shape)).astype(np.float32)
    # Of one matrix there was hardly a gradient before: its update alone is clipped.
    one = (slice(None),) * many + (3,)
    grads[0][one] *= 1e-3
    shape, axes = list(spec.shape), list(spec.axes)
    del shape[many], axes[many]
    alone = replace(spec, shape=tuple(shape), axes=tuple(axes), stacked=many)
    expected = updated(alone, *(grad[one] for grad in grads))
    np.testing.assert_allclose(updated(spec, *grads)[one], expected, rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_every_state_lies_as_the_parameters_do(model, meshes, name):
    cfg, mesh = model(embed_dim=128, gated_width=128), meshes["fsdp 4, tensor 2"]
    state = abstract_state(cfg, OptimConfig(optimizer=name), mesh)
    large = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.size > 2**10]
    assert large
    for leaf in large:  # along at least one of the two, all that can be
        assert np.prod(leaf.sharding.shard_shape(leaf.shape)) <= leaf.size / 4
    ours = jax.tree.structure(abstract_state(cfg, OptimConfig(), mesh))
    assert (jax.tree.structure(state) == ours) == (name == "adamw")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n if n == "muon" else pytest.param(n, marks=pytest.mark.exhaustive) for n in RULES]
)
def test_every_one_trains_alike_on_any_mesh_and_its_state_goes_to_another(
    model, meshes, make_batch, tmp_path, name
):
    cfg = model(embed_dim=128, gated_width=128)
    optim = OptimConfig(optimizer=name, peak_learning_rate=1e-3, schedule="constant")
    losses, last = {}, {}
    for where in ("one device", "fsdp 4, tensor 2"):
        mesh = meshes[where]
        state = make_state(cfg, optim, jax.random.key(0), mesh)
        step, batch = make_model_step(cfg, optim, 10, mesh), put_batch(make_batch(), mesh)
        losses[where] = []
        for _ in range(4):
            state, metrics = step(state, batch)
            losses[where].append(float(metrics["loss"]))
        last[where] = state
    np.testing.assert_allclose(*losses.values(), rtol=2e-4)
    assert losses["one device"][-1] < losses["one device"][0]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, last["one device"])
        mesh = meshes["fsdp 4, tensor 2"]
        abstract: Any = abstract_state(cfg, optim, mesh)
        there = checkpoints.restore(abstract, specs=model_specs(cfg, mesh))
    here = last["one device"]
    np.testing.assert_array_equal(there.params["final_norm"], here.params["final_norm"])


@pytest.mark.parametrize("name", sorted(FOR_MATRICES))
def test_what_is_for_matrices_is_refused_where_these_are_frozen(name):
    with pytest.raises(InputError, match=f"optimizer={name} is for matrices, .* take adamw"):
        OptimConfig(optimizer=name, multipliers=Multipliers(matrix=0))


def test_other_roles_may_be_frozen(model):
    specs = models.specs(model())
    for name in RULES:
        frozen = Multipliers(embedding=0, norm=0)
        _, update = first_update(specs, name, multipliers=frozen)
        for spec, leaf in by_role(specs, update):
            assert bool(jnp.any(leaf)) == (spec.role not in ("embedding", "norm"))


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"sgd.*adamw"):
        OptimConfig(optimizer="sgd")  # pyright: ignore[reportArgumentType]
