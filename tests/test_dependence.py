"""What a function of a user's own reads: gradients where channels mix, rows that stand alone."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polycom_jax as pc
from polycom_jax import Parameter

CHANNEL = Parameter((0.5, -0.25, 1.0), per="channel")

MIXED_CHANNELS: dict[str, Any] = {
    "softmax": lambda x, w: x * jax.nn.softmax(w[0], axis=-1),
    "mean": lambda x, w: x * w[0] / (2 + jnp.mean(w[1])),
    "cumsum": lambda x, w: x * jnp.cumsum(w[0], axis=-1),
    "reversed": lambda x, w: x * w[0, ..., ::-1],
    "rolled": lambda x, w: x * jnp.roll(w[0], 1, axis=-1),
    "sorted": lambda x, w: x * jnp.sort(w[0], axis=-1),
    "the last": lambda x, w: x * w[0, ..., -1:],
    "a matrix": lambda x, w: x * (w[0] @ jnp.tri(x.shape[-1])),
    "in a scan": lambda x, w: jax.lax.scan(lambda y, c: (y * c.mean() + x, None), x, w)[0],
    "in a branch": lambda x, w: jax.lax.cond(w.sum() > 0, lambda: x * w[0], lambda: x),
    "of groups of one": lambda x, w: (
        x * w[0].reshape(*w.shape[1:-1], 5, -1).mean(-1).repeat(x.shape[-1] // 5, axis=-1)
    ),
}


def gradients(f: Any, params: Any, x: Any) -> Any:
    dy = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    return jax.grad(lambda params, x: jnp.sum(f(params, x) * dy), (0, 1))(params, x)


@pytest.mark.parametrize("name", MIXED_CHANNELS)
def test_numbers_a_channel_that_mix_have_the_gradients_of_plain_jax(name: str):
    f = MIXED_CHANNELS[name]
    act = pc.activation(f, {"w": CHANNEL}, name="own")
    assert act.over_rows
    w = jax.random.normal(jax.random.key(0), (3, 10))
    x = jax.random.normal(jax.random.key(1), (4, 10))
    got = gradients(act.apply, {"w": w}, x)
    wanted = gradients(lambda p, x: f(x, p["w"][:, None]), {"w": w}, x)
    chex.assert_trees_all_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_group_s_numbers_that_mix_have_the_gradients_of_plain_jax():
    act = pc.activation(
        lambda x, w: x * w / jnp.mean(w), {"w": Parameter(1.0, per="group", groups=2)}, name="own"
    )
    x = jnp.arange(1.0, 13.0).reshape(3, 4)
    got, _ = gradients(act.apply, {"w": jnp.array([1.0, 2.0])}, x)
    wanted, _ = gradients(
        lambda p, x: x * jnp.repeat(p["w"], 2)[None] / jnp.mean(p["w"]),
        {"w": jnp.array([1.0, 2.0])},
        x,
    )
    np.testing.assert_allclose(got["w"], wanted["w"], rtol=1e-5)


@pytest.mark.parametrize(
    "mix",
    [
        jnp.cumsum,
        jnp.sort,
        lambda w: w[::-1],
        lambda w: jnp.roll(w, 1),
        lambda w: w @ jnp.tri(3),
        jax.nn.softmax,
    ],
)
def test_numbers_a_layer_may_mix_in_an_element_wise_row(mix: Any):
    def f(x: Any, w: Any) -> Any:
        a, b, c = mix(w)
        return a * x + b * jnp.tanh(x) + c

    act = pc.activation(f, {"w": (0.5, -0.25, 1.0)}, name="own")
    assert not act.over_rows
    x, params = jax.random.normal(jax.random.key(1), (4, 6)), act.init(jax.random.key(0))
    chex.assert_trees_all_close(
        gradients(act.apply, params, x),
        gradients(lambda p, x: f(x, p["w"]), params, x),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "f",
    [
        lambda x, w: jnp.tanh(x * w[0]) + w[::-1].sum(0),
        lambda x, w: jax.lax.scan(lambda y, c: (y * x + c, None), jnp.zeros_like(x), w)[0],
        lambda x, w: jnp.polyval(w, x),
        lambda x, w: jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y * w[0]), x),
        lambda x, w: (x.reshape(-1, x.shape[-1]) * w[0].reshape(1, -1)).reshape(x.shape),
    ],
)
def test_what_keeps_channels_apart_is_element_wise(f: Any):
    assert not pc.activation(f, {"w": CHANNEL}, name="own").over_rows


MIXED_ROWS: dict[str, Any] = {
    "mean": lambda x: x / jnp.sqrt(jnp.mean(x * x, axis=0, keepdims=True) + 1e-6),
    "tokens alone": lambda x: x - jnp.mean(x, axis=1, keepdims=True),
    "all": lambda x: x - jnp.mean(x),
    "cumulative": lambda x: jnp.cumsum(x, axis=-2),
    "shifted": lambda x: jnp.roll(x, 1, axis=-2),
    "the first": lambda x: x - x[:1],
    "another": lambda x: x + x[jnp.arange(x.shape[0])[::-1]],
    "attention": lambda x: jax.nn.softmax(x @ jnp.swapaxes(x, -1, -2)) @ x,
    "a scan": lambda x: jax.lax.scan(lambda c, row: (c + row, c), jnp.zeros_like(x[0]), x)[1],
    "a loop": lambda x: jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] - c[1].mean(0, keepdims=True)), (0, x)
    )[1],
}


@pytest.mark.parametrize("name", MIXED_ROWS)
def test_what_mixes_rows_is_refused_in_one_line(name: str):
    with pytest.raises(pc.InputError, match=r"own' mixes rows: .* axis=-1") as told:
        pc.activation(MIXED_ROWS[name], name="own")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6),
        lambda x: jax.nn.softmax(x.reshape(-1, x.shape[-1])).reshape(x.shape),
        lambda x: (lambda g: (g - g.mean(-1, keepdims=True)).reshape(x.shape))(
            x.reshape(*x.shape[:-1], 5, -1)
        ),
        lambda x: jax.lax.map(lambda row: row - row.mean(-1, keepdims=True), x),
        lambda x: jnp.vectorize(lambda row: row / jnp.linalg.norm(row), signature="(n)->(n)")(x),
        lambda x: x * (x >= jax.lax.top_k(x, 2)[0][..., -1:]),
        lambda x: x.at[..., 0].set(0.0),
        lambda x: pc.poly_norm(x, jnp.ones(4)),
        lambda x: jax.lax.fori_loop(
            0, x.shape[0], lambda i, y: y.at[i].set(x[i] - x[i].mean(-1, keepdims=True)), x
        ),
    ],
)
def test_what_reads_its_own_row_alone_is_taken(f: Any):
    assert pc.activation(f, name="own").over_rows
