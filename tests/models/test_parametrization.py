"""muP: what is equal at the base width, and what no width changes after some updates."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polycom_jax import InputError, models
from polycom_jax import params as pm
from polycom_jax.interop import huggingface
from polycom_jax.models import ModelConfig, MoEConfig, layers
from polycom_jax.models.moe import route
from polycom_jax.training import OptimConfig, make_optimizer
from polycom_jax.training.loss import hidden_nats
from polycom_jax.training.update_rules import WIDTH_POWERS

BASE = 32
UPDATES = 4


def model(width: int, **fields: Any) -> ModelConfig:
    """Heads and hidden width grow with the residual stream; a head does not."""
    cfg = ModelConfig(
        vocab_size=64,
        num_layers=1,
        embed_dim=width,
        num_heads=width // 16,
        num_kv_heads=width // 16,
        head_dim=16,
        gated_width=2 * width,
        context_length=16,
        parametrization="mup",
        mup_base_width=BASE,
    )
    return replace(cfg, **fields)


def standard(cfg: ModelConfig) -> ModelConfig:
    return replace(cfg, parametrization="standard", mup_base_width=64)


def initial(cfg: ModelConfig) -> Any:
    return jax.jit(partial(models.init, cfg))(jax.random.key(1))


def logits(cfg: ModelConfig, params: Any) -> jax.Array:
    tokens = jnp.arange(16, dtype=jnp.int32)[None]
    return jax.jit(partial(models.forward, cfg))(params, tokens)


def coordinates(cfg: ModelConfig, params: Any, tokens: jax.Array) -> dict[str, jax.Array]:
    """What the one block computes on the way to the logits."""
    block = jax.tree.map(lambda x: x[0], params["layers"][0])
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    x = params["embed"][tokens]
    found = {"embedding": x}
    turned = layers.rotary(cfg, positions)
    found["attention"], _ = layers.attention(cfg, block["attention"], x, turned, None, None, None)
    x = x + found["attention"]
    found["before the activation"] = layers.pre_activations(cfg, block["ffn"], x, None)[0]
    found["feed-forward"] = layers.ffn(cfg, block["ffn"], x, None)
    x = layers.final_norm(cfg, params, x + found["feed-forward"])
    return found | {"logits": models.unembed(cfg, params, x)}


@cache
def changes(cfg: ModelConfig, optimizer: Any = "adamw") -> dict[str, float]:
    """Root mean square of what some updates on one batch change in each of these."""
    rate = 2**-6 if optimizer != "lion" else 2**-7
    optim = OptimConfig(optimizer=optimizer, peak_learning_rate=rate, schedule="constant")
    rule = make_optimizer(optim, models.specs(cfg), 100)
    tokens = jax.random.randint(jax.random.key(5), (4, 17), 0, cfg.vocab_size, jnp.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "mask": tokens[:, 1:] >= 0}

    def loss(params: Any) -> jax.Array:
        x, _, _ = models.hidden(cfg, params, batch["tokens"])
        return hidden_nats(cfg, params, x, batch) / batch["mask"].size

    def update(state: Any, _: Any) -> tuple[Any, None]:
        params, moments = state
        step, moments = rule.update(jax.grad(loss)(params), moments, params)
        return (optax.apply_updates(params, step), moments), None

    @jax.jit
    def run() -> Any:
        params = models.init(cfg, jax.random.key(0))
        (after, _), _ = jax.lax.scan(update, (params, rule.init(params)), None, length=UPDATES)
        old, new = (coordinates(cfg, p, batch["tokens"]) for p in (params, after))
        return {n: jnp.sqrt(jnp.mean(jnp.square(new[n] - old[n]))) for n in old}

    return {name: float(value) for name, value in run().items()}


def spread(narrow: ModelConfig, wide: ModelConfig, optimizer: str = "adamw") -> dict[str, float]:
    """The change in the wide model in units of that in the narrow one."""
    small, large = changes(narrow, optimizer), changes(wide, optimizer)
    return {name: large[name] / small[name] for name in small}


@pytest.mark.parametrize(
    "fields",
    [
        {"activation": "poly_norm"},
        pytest.param({"activation": "swiglu"}, marks=pytest.mark.slow),
        pytest.param({"activation": "relu2", "init": "olmo"}, marks=pytest.mark.slow),
        pytest.param({"tie_embeddings": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_updates_change_as_much_at_every_width(fields: Any):
    narrow, wide = model(BASE, **fields), model(8 * BASE, **fields)
    found = spread(narrow, wide)
    assert all(0.6 < ratio < 1.7 for ratio in found.values()), found


@pytest.mark.slow
def test_without_it_they_change_more_the_wider_the_model():
    found = spread(standard(model(BASE)), standard(model(8 * BASE)))
    assert found["attention"] > 5, found
    assert found["before the activation"] > 2.3, found
    assert found["feed-forward"] > 2.3, found


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", sorted(WIDTH_POWERS.keys() - {"adamw"}))
def test_every_optimiser_has_its_own_power_of_the_width(optimizer: str):
    found = spread(model(BASE), model(8 * BASE), optimizer)
    assert all(0.5 < ratio < 2.0 for ratio in found.values()), found


@pytest.mark.parametrize("optimizer", WIDTH_POWERS)
def test_what_an_update_does_to_its_own_input_does_not_grow_with_the_width(optimizer: str):
    def change(width: int) -> float:
        """Root mean square of x U, x of entries of order one and U the first update of x y^T."""
        spec = models.specs(model(width))["layers"][0]["ffn"]["w_up"]
        optim: Any = {"optimizer": optimizer, "peak_learning_rate": 1.0, "schedule": "constant"}
        rule = make_optimizer(OptimConfig(**optim, weight_decay=0.0), {"w": spec}, 10)
        x, y = (jax.random.normal(jax.random.key(i), (n,)) for i, n in enumerate(spec.shape[1:]))
        grads = {"w": jnp.outer(x, y)[None] / width}
        params = jax.tree.map(jnp.zeros_like, grads)
        update: Any = rule.update(grads, rule.init(params), params)[0]
        return float(jnp.sqrt(jnp.mean(jnp.square(x @ update["w"][0]))))

    # Means over 256 to 2,048 normal numbers.
    assert change(32 * BASE) / change(8 * BASE) == pytest.approx(1, rel=0.1)


def test_at_the_base_width_it_is_the_standard_parametrization():
    moe = MoEConfig(num_experts=4, top_k=2)
    for cfg in (model(BASE), model(BASE, init="olmo", moe=moe, tie_embeddings=True)):
        plain = standard(cfg)
        params, expected = (
            jax.jit(partial(models.init, c))(jax.random.key(1)) for c in (cfg, plain)
        )
        jax.tree.map(np.testing.assert_array_equal, params, expected)
        shapes = pm.abstract(models.specs(cfg))
        tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
        of = (jax.make_jaxpr(partial(models.forward, c))(shapes, tokens) for c in (cfg, plain))
        assert len({str(program) for program in of}) == 1
        rules = (make_optimizer(OptimConfig(), models.specs(c), 10) for c in (cfg, plain))
        states = [jax.tree.structure(jax.eval_shape(rule.init, shapes)) for rule in rules]
        assert states[0] == states[1]


def test_initial_values_and_updates_follow_the_table():
    optim = OptimConfig(peak_learning_rate=1.0, schedule="constant")

    def rows(cfg: ModelConfig) -> Any:
        rule = make_optimizer(optim, models.specs(cfg), 10)

        @jax.jit
        def found() -> Any:
            params = models.init(cfg, jax.random.key(0))
            ones, zeros = (jax.tree.map(lambda x, v=v: jnp.full_like(x, v), params) for v in (1, 0))
            step, _ = rule.update(ones, rule.init(params), zeros)
            decay, _ = rule.update(zeros, rule.init(params), ones)
            return params, step, decay

        return zip(*map(jax.tree.leaves, found()), strict=True)

    specs = jax.tree.leaves(models.specs(model(BASE)), is_leaf=pm.is_spec)
    for spec, narrow, wide in zip(specs, rows(model(BASE)), rows(model(4 * BASE)), strict=True):
        (small, slow, kept), (large, fast, lost) = (
            [np.asarray(x) for x in of] for of in (narrow, wide)
        )
        matrix = spec.role == "matrix"
        if small.std() > 0:
            assert large.std() / small.std() == pytest.approx(0.5 if matrix else 1, rel=0.1)
        assert fast.mean() / slow.mean() == pytest.approx(0.25 if matrix else 1, rel=1e-4)
        np.testing.assert_allclose(lost.mean(), kept.mean(), rtol=1e-5)


@pytest.mark.parametrize("init", ["megatron", "olmo"])
def test_matrices_alone_start_smaller_in_a_wider_model(init: Any):
    wide = model(4 * BASE, init=init)
    # At the base width, of standard deviations that the config documents.
    matrix = 0.02 if init == "olmo" else (2 / (5 * BASE)) ** 0.5
    output = matrix if init == "olmo" else matrix / 2**0.5
    cut = 0.9866 if init == "olmo" else 1  # what a cut at three deviations leaves
    for draw, wanted in zip(
        layers.initializers(wide), (matrix / 2, output / 2, matrix), strict=True
    ):
        drawn = draw(jax.random.key(0), (128, 256), jnp.float32)
        assert float(drawn.std()) == pytest.approx(cut * wanted, rel=0.02)


def test_a_router_s_logits_are_divided_by_the_width():
    cfg = model(4 * BASE, moe=MoEConfig(num_experts=4, top_k=2))
    keys = jax.random.split(jax.random.key(0))
    router, y = (jax.random.normal(keys[i], (128, n)) for i, n in enumerate((4, 20)))
    p = jax.nn.softmax(jnp.dot(y.T, router, precision="highest") / 4)
    wanted = jax.lax.top_k(p, 2)
    tree = {"layers": [{"moe": {"router": router, "w_up": router}}], "final_norm": jnp.ones(128)}
    plain, folded = models.as_standard(cfg, tree)
    block = folded["layers"][0]["moe"]
    np.testing.assert_array_equal(block["w_up"], router)
    np.testing.assert_array_equal(folded["final_norm"], 0.25)
    for at, own in ((cfg, router), (plain, block["router"])):
        weights, chosen, _ = route(at, own, y.T)
        np.testing.assert_allclose(weights, wanted[0], rtol=1e-5)
        np.testing.assert_array_equal(chosen, wanted[1])


@pytest.mark.slow
def test_routers_and_unembeddings_are_read_through_one_over_the_width():
    cfg = model(4 * BASE, moe=MoEConfig(num_experts=4, top_k=2), qk_norm="full", init="olmo")
    cfg = replace(cfg, activation="swiglu", document_mask=False)
    params = initial(cfg)
    plain, folded = models.as_standard(cfg, params)
    assert plain.parametrization == "standard"
    np.testing.assert_array_equal(folded["final_norm"], 0.25)
    tokens = jnp.arange(16, dtype=jnp.int32)[None]
    expected = models.forward(cfg, params, tokens)
    np.testing.assert_allclose(
        models.forward(plain, folded, tokens), expected, rtol=1e-5, atol=1e-7
    )
    assert models.as_standard(plain, folded)[1] is folded


def test_transformers_gets_the_model_that_computes_the_same(tmp_path):
    cfg = model(4 * BASE, activation="swiglu", document_mask=False)
    params = initial(cfg)
    huggingface.save(tmp_path / "folder", cfg, params)
    loaded, values = huggingface.load(tmp_path / "folder")
    tokens = jnp.arange(16, dtype=jnp.int32)[None]
    expected = models.forward(cfg, params, tokens)
    np.testing.assert_allclose(
        models.forward(loaded, values, tokens), expected, rtol=1e-5, atol=1e-7
    )


def test_a_base_without_the_parametrization_is_refused():
    with pytest.raises(InputError, match="mup_base_width=32 with parametrization=standard"):
        model(64, parametrization="standard")
