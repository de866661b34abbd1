"""`make_train_step` with others' losses, optimizers and models."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from polycom_jax import InputError
from polycom_jax.modules import linen
from polycom_jax.modules import nnx as modules_nnx
from polycom_jax.sharding import Rules, make_mesh
from polycom_jax.training import (
    Checkpoints,
    Layout,
    SummedLoss,
    abstract_state,
    evaluate,
    make_train_step,
    start_state,
)
from polycom_jax.training.checksums import checksums

RNG = np.random.default_rng(0)
BATCH = {"x": RNG.normal(size=(16, 8)).astype(np.float32)}
BATCH["y"] = np.sin(BATCH["x"]).sum(1)


def mean_square(predict: Any) -> Any:
    def loss(params: Any, batch: Any) -> Any:
        return jnp.mean((predict(params, batch["x"])[:, 0] - batch["y"]) ** 2)

    return loss


def assert_trains(loss: Any, params: Any, optimizer: Any = None) -> None:
    """The loss falls, and nothing is compiled after the first step."""
    optimizer = optimizer or optax.adam(1e-2)
    step = make_train_step(loss, optimizer)
    state, losses = start_state(params, optimizer), []
    for _ in range(20):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]
    assert losses[-1] < 0.7 * losses[0]
    assert int(state.step) == 20
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_a_linen_model_trains():
    model = nn.Sequential([nn.Dense(16), linen.PolyNorm(), nn.Dense(1)])
    params = model.init(jax.random.key(0), BATCH["x"])
    assert_trains(mean_square(model.apply), params)


def test_an_nnx_model_trains():
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)
            self.activation = modules_nnx.PolyNorm()

        def __call__(self, x: Any) -> Any:
            return self.down(self.activation(self.up(x)))

    graph, params = nnx.split(Model(nnx.Rngs(0)), nnx.Param)
    assert_trains(mean_square(lambda p, x: nnx.merge(graph, p)(x)), params)


def test_an_equinox_model_trains():
    eqx = pytest.importorskip("equinox", reason="extra test")
    model = eqx.nn.MLP(8, 1, 16, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    assert_trains(mean_square(lambda p, x: jax.vmap(eqx.combine(p, static))(x)), params)


def test_a_tree_with_holes_trains_as_equinox_partitions_one():
    keys = jax.random.split(jax.random.key(0))
    params = {"up": (jax.random.normal(keys[0], (8, 16)) / 3, None), "activation": None}
    params["down"] = (jax.random.normal(keys[1], (16, 1)) / 4, jnp.zeros(1))

    def predict(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["up"][0]) @ p["down"][0] + p["down"][1][None]

    assert_trains(mean_square(predict), params, optax.lion(1e-2))


def linen_model() -> tuple[Any, Any]:
    model = nn.Sequential([nn.Dense(16), linen.PolyNorm(), nn.Dense(1)])
    return mean_square(model.apply), model.init(jax.random.key(0), BATCH["x"])


def tree_model() -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0))
    params = [jax.random.normal(keys[0], (8, 16)) / 3, {"out": jax.random.normal(keys[1], (16, 1))}]
    return mean_square(lambda p, x: jnp.tanh(x @ p[0]) @ p[1]["out"]), params


@pytest.mark.parametrize("make", [linen_model, tree_model])
def test_another_model_is_saved_and_goes_on_bit_for_bit(make: Any, tmp_path: Any):
    loss, params = make()
    optimizer = optax.adamw(1e-2)
    step, state = make_train_step(loss, optimizer), start_state(params, optimizer)
    with Checkpoints(tmp_path, run_metadata={"width": 16}) as checkpoints:
        for _ in range(3):
            state, _ = step(state, BATCH)
        checkpoints.save(3, state)
        for _ in range(2):
            state, _ = step(state, BATCH)
    with Checkpoints(tmp_path, run_metadata={"width": 16}) as checkpoints:
        again = checkpoints.restore(abstract_state(params, optimizer))
        alone = checkpoints.restore_params(abstract_state(params, optimizer).params)[1]
        jax.tree.map(np.testing.assert_array_equal, alone, again.params)
        for _ in range(2):
            again, _ = step(again, BATCH)
        checkpoints.save(5, again)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.parametrize("value", [True, 1 + 2j, jax.random.key(0)], ids=["bool", "complex", "key"])
def test_what_any_optimizer_keeps_is_saved_and_its_bits_are_compared(value: Any, tmp_path: Any):
    def keeping(value: Any) -> optax.GradientTransformation:
        kept = {"kept": jnp.stack([value, value])}
        update: Any = optax.identity().update
        return optax.GradientTransformation(lambda params: kept, update)

    params, optimizer = {"w": jnp.ones(3)}, optax.apply_if_finite(keeping(value), 3)
    state, abstract = start_state(params, optimizer), abstract_state(params, optimizer)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        again: Any = checkpoints.restore(abstract)
    assert checksums(again) == checksums(state)
    other = {bool: False, complex: 2 + 1j}.get(type(value), jax.random.key(1))
    swapped = start_state(params, optax.apply_if_finite(keeping(other), 3))
    different = [n for n, s in checksums(swapped).items() if s != checksums(state)[n]]
    assert different == ["opt_state.inner_state.kept"]


@pytest.mark.parametrize("dtype", ["int4", "int2", "float4_e2m1fn", "float8_e4m3fn", "float8_e5m2"])
def test_numbers_of_few_bits_are_saved_bit_for_bit_and_one_that_differs_is_seen(
    dtype: str, tmp_path: Any
):
    params, optimizer = {"w": jnp.ones(3)}, optax.identity()
    few = jnp.arange(-8, 7).reshape(3, 5).astype(dtype)
    state: Any = start_state(params, optimizer)
    state = state.replace(opt_state={"few": few})
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        again = checkpoints.restore(abstract).opt_state["few"]
    assert again.dtype == dtype
    ours, theirs = (np.asarray(x).view(np.uint8) for x in (few, again))
    np.testing.assert_array_equal(ours, theirs)
    sums = [checksums({"few": x})["few"] for x in (few, few.at[2, 4].set(few[0, 0]))]
    assert sums[0] != sums[1]


@pytest.mark.parametrize("dtype", ["uint4", "uint2", "float8_e4m3"])
def test_numbers_that_no_checkpoint_can_hold_are_refused_before_anything_is_written(
    dtype: str, tmp_path: Any
):
    state: Any = start_state({"w": jnp.ones(3)}, optax.identity())
    state = state.replace(opt_state={"few": jnp.ones(3, dtype)})
    with (
        Checkpoints(tmp_path / "run") as checkpoints,
        pytest.raises(InputError, match=rf"opt_state\.few is {dtype}, which Orbax"),
    ):
        checkpoints.save(1, state)
    assert not (tmp_path / "run").exists()


def test_the_abstract_state_of_another_model_lies_as_its_parameters():
    mesh = make_mesh(fsdp=8)
    split = NamedSharding(mesh, P("fsdp"))
    params = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=split), "none": None}
    abstract = abstract_state(params, optax.adam(1e-2))
    assert abstract.params["w"].sharding == split
    assert optax.tree.get(abstract.opt_state, "nu")["w"].sharding == split
    assert abstract.step.sharding == NamedSharding(mesh, P())


def test_another_model_is_evaluated_by_its_two_sums():
    loss, params = tree_model()

    @jax.jit
    def eval_step(params: Any, batch: Any) -> Any:
        return {"nats": 16 * loss(params, batch), "targets": 16.0}

    found = evaluate(eval_step, params, [BATCH, BATCH], num_bytes=32)
    assert found["loss"] == pytest.approx(float(loss(params, BATCH)), rel=1e-6)
    assert found["tokens"] == 32


def square(params: Any, batch: Any) -> Any:
    error = batch["x"] @ params - batch["y"]
    return jnp.mean(error**2), {"error": jnp.mean(error)}


PARAMS = jnp.arange(8.0) / 8


def one_step(loss: Any, batch: Any = BATCH, optimizer: Any = None, **options: Any) -> Any:
    optimizer = optimizer or optax.sgd(0.1)
    return make_train_step(loss, optimizer, **options)(start_state(PARAMS, optimizer), batch)


def test_a_step_is_optax_by_hand():
    state, metrics = one_step(square)
    (loss, aux), grads = jax.value_and_grad(square, has_aux=True)(PARAMS, BATCH)
    np.testing.assert_allclose(state.params, PARAMS - 0.1 * grads, rtol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert float(metrics["error"]) == pytest.approx(float(aux["error"]), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(jnp.linalg.norm(grads)), rel=1e-6)
    assert float(metrics["param_norm"]) == pytest.approx(float(jnp.linalg.norm(PARAMS)), rel=1e-6)
    assert set(metrics) == {"loss", "error", "grad_norm", "param_norm", "skipped", "spike"}


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_aux_has_no_name_of_the_step_s_own_metrics(name: str):
    with pytest.raises(InputError, match=f"aux has {name}, which the step reports itself"):
        one_step(lambda params, batch: (square(params, batch)[0], {name: jnp.zeros(2)}))


def test_micro_batches_change_nothing_of_a_mean():
    (one, a), (other, b) = one_step(square), one_step(square, accumulation_steps=4)
    np.testing.assert_allclose(one.params, other.params, rtol=1e-5)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)


def test_rows_of_other_weights_are_for_a_summed_loss():
    weight = np.arange(16.0, dtype=np.float32)
    batch = BATCH | {"weight": weight}

    def part(params: Any, micro: Any, total: Any) -> Any:
        error = micro["x"] @ params - micro["y"]
        loss = jnp.sum(micro["weight"] * error**2) / total
        return loss, {"loss": loss}

    loss = SummedLoss(lambda batch: jnp.sum(batch["weight"]), part)
    (one, a), (other, b) = (one_step(loss, batch, accumulation_steps=n) for n in (1, 4))
    np.testing.assert_allclose(one.params, other.params, rtol=1e-5)
    assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-6)


def test_an_update_that_is_not_finite_is_left_out():
    batch = BATCH | {"x": np.where(np.arange(8) == 3, np.inf, BATCH["x"])}
    state, metrics = one_step(square, batch, optax.adam(0.1))
    assert float(metrics["skipped"]) == 1
    np.testing.assert_array_equal(state.params, PARAMS)
    assert int(optax.tree.get(state.opt_state, "count")) == 0


def test_a_rate_from_outside_goes_to_the_optimizer_and_compiles_nothing_anew():
    def update(updates: Any, state: Any, params: Any = None, **given: Any) -> Any:
        return jax.tree.map(lambda u: -given["rate"] * u, updates), state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
    step = make_train_step(square, optimizer, update_args=("rate",))
    state, norms = start_state(PARAMS, optimizer), []
    for rate in (0.0, 0.1):
        before = np.asarray(state.params)
        state, _ = step(state, BATCH, np.float32(rate))
        norms.append(np.abs(state.params - before).max())
    assert norms[0] == 0 < norms[1]
    assert step._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_parameters_of_a_users_own_axes_are_split_and_train():
    mesh, rules = make_mesh(data=4, tensor=2), Rules(extra={"state": "tensor"})
    optimizer = optax.adam(0.1)
    params = jax.device_put(PARAMS, NamedSharding(mesh, rules.partition(("state",))))
    state = start_state(params, optimizer)
    everywhere = NamedSharding(mesh, P())
    places = jax.tree.map(lambda x: x.sharding if x.ndim else everywhere, state)
    rows = NamedSharding(mesh, rules.partition(("batch",)))
    layout = Layout(mesh, places, rows)
    step = make_train_step(square, optimizer, layout=layout, accumulation_steps=2)
    batch = {name: jax.device_put(value, rows) for name, value in BATCH.items()}
    state, metrics = step(jax.device_put(state, places), batch)
    assert state.params.sharding.spec == P("tensor")
    assert optax.tree.get(state.opt_state, "mu").sharding.spec == P("tensor")
    expected, single = one_step(square, optimizer=optimizer)
    np.testing.assert_allclose(state.params, expected.params, rtol=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(single["loss"]), rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_step(lambda p, b: b["x"] @ p), r"one number, and has the shape \(16,\)"),
        (lambda: one_step(lambda p, b: (jnp.sum(p), {"spike": p})), "has spike, which the step"),
        (lambda: one_step(square, accumulation_steps=3), "batch_size=16 .* nearest: 15 or 18"),
        (lambda: one_step(square, accumulation_steps=0), "accumulation_steps=0"),
        (lambda: one_step(None), "not a NoneType; for a ModelConfig there is make_model_step"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(call: Any, message: str):
    with pytest.raises(InputError, match=message):
        call()
