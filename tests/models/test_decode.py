import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from shapes import SMALL

from polycom_jax import InputError
from polycom_jax.models import decode, forward, generate, init, init_cache, specs
from polycom_jax.models.decode import advance, prefill
from polycom_jax.models.sampling import NO_TOKEN
from polycom_jax.params import abstract, shardings
from polycom_jax.sharding import Rules, make_mesh

CFG = replace(SMALL, num_kv_heads=1)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: jax.tree.map(lambda p: p * 8, init(CFG, key)))(jax.random.key(0))


# One program: operation by operation it would be hundreds.
filled = jax.jit(prefill, static_argnums=0, static_argnames="room")


def test_greedy_decoding_equals_repeated_uncached_forward_passes(params):
    prompt = jax.random.randint(jax.random.key(1), (2, 5), 0, CFG.vocab_size)
    got = generate(CFG, params, prompt, key=jax.random.key(2), max_new_tokens=8, temperature=0)
    # Uncached: what a forward pass over everything says, at every place.
    everything = jnp.concatenate([prompt, got], axis=1)
    logits = jax.jit(forward, static_argnums=0)(CFG, params, everything)
    np.testing.assert_array_equal(got, logits[:, 4:-1].argmax(-1))


@pytest.mark.slow
def test_a_longer_continuation_begins_with_the_shorter_one(params):
    prompt = jnp.array([[1, 2, 3]])
    key = jax.random.key(3)
    short = generate(CFG, params, prompt, key=key, max_new_tokens=7)
    long = generate(CFG, params, prompt, key=key, max_new_tokens=9)
    np.testing.assert_array_equal(long[:, :7], short)


def test_rows_stop_at_the_stop_token(params):
    prompt = jnp.tile(jnp.array([[1, 2, 3]]), (64, 1))
    key = jax.random.key(3)
    out = np.asarray(generate(CFG, params, prompt, key=key, max_new_tokens=24, stop_token=7))
    stopped = [row for row in out if 7 in row[:-1]]
    assert stopped
    for row in stopped:
        assert set(row[list(row).index(7) :]) == {7}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 1.5}, r"top_p=1.5 must be in \(0, 1\]"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": True}, "max_new_tokens=True must be a whole number"),
        ({"max_new_tokens": 2.0}, "max_new_tokens=2.0 must be a whole number"),
        ({"stop_token": 40}, "stop_token=40 must be an id of the model, from 0 to 39"),
        ({"stop_token": -1}, "stop_token=-1 must be an id of the model"),
        ({"stop_token": True}, "stop_token=True must be a whole number"),
        ({"rules": Rules()}, "rules are given, and no mesh"),
    ],
)
def test_settings_without_a_distribution_are_refused(params, settings: dict, message: str):
    settings = {"max_new_tokens": 2, **settings}
    with pytest.raises(InputError, match=message):
        generate(CFG, params, jnp.array([[1]]), key=jax.random.key(0), **settings)


@pytest.mark.slow
def test_bfloat16_models_generate_from_a_bfloat16_cache(params):
    cfg = replace(CFG, dtype="bfloat16")
    out = generate(cfg, params, jnp.array([[1, 2]]), key=jax.random.key(0), max_new_tokens=3)
    assert out.shape == (1, 3)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (np.zeros((1, 0), np.int32), r"prompt of shape \[1, 0\] must be \[batch, tokens\]"),
        (np.zeros((0, 3), np.int32), "must .* hold at least one token"),
        (np.array([1, 2]), r"prompt of shape \[2\] must be \[batch, tokens\]"),
        (np.array([[1, 40]]), "prompt: 40, which is not from 0 to 39"),
        (np.array([[1, -100]]), "prompt: -100"),
        (np.array([[1, 2**40]]), f"prompt: {2**40}"),
        (np.array([[1.0, 2.0]]), "prompt holds float32, not integer ids"),
    ],
)
def test_prompts_that_are_none_are_refused(params, prompt: Any, message: str):
    with pytest.raises(InputError, match=message):
        generate(CFG, params, prompt, key=jax.random.key(0), max_new_tokens=2)
    with pytest.raises(InputError, match=message):
        prefill(CFG, params, prompt, room=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"room": 2}, "room=2 must hold the 3 tokens"),
        ({"room": 8.0}, "room=8.0 must be a whole number"),
        ({"room": 8, "lengths": np.array([0, 3])}, "lengths must be from 1 to 3"),
        ({"room": 8, "lengths": np.array([1, 4])}, "lengths must be from 1 to 3"),
        ({"room": 8, "lengths": np.array([1])}, r"one a row of the prompt \(2\)"),
        ({"room": 8, "lengths": np.array([1.0, 2.0])}, "lengths float32"),
    ],
)
def test_a_cache_that_does_not_fit_the_prompts_is_refused(params, settings: dict, message: str):
    with pytest.raises(InputError, match=message):
        prefill(CFG, params, jnp.array([[1, 2, 3], [4, 5, 6]]), **settings)


def test_lengths_and_ids_that_are_traced_and_wrong_give_no_number(params):
    lengths = jnp.array([0, 1, 3, 4])
    prompt = jnp.array([[1, 2, 3], [4, -7, 99], [7, 8, 9], [1, 2, 3]])
    logits, _ = filled(CFG, params, prompt, room=8, lengths=lengths)
    # The filling of row 1 is no id, and none of its matter.
    np.testing.assert_array_equal(np.isnan(logits).all(axis=1), [True, False, False, True])
    alone, _ = filled(CFG, params, jnp.array([[4]]), room=8)
    np.testing.assert_allclose(logits[1], alone[0], rtol=1e-4, atol=1e-4)
    logits, _ = filled(CFG, params, prompt.at[2, 1].set(40), room=8, lengths=lengths)
    np.testing.assert_array_equal(np.isnan(logits).all(axis=1), [True, False, True, True])


def test_a_full_cache_is_refused_and_while_traced_gives_no_number(params):
    prompt = jnp.array([[1, 2, 3], [4, 5, 6]])
    _, cache = filled(CFG, params, prompt, room=4, lengths=jnp.array([2, 3]))
    traced = jax.jit(lambda token, cache: advance(CFG, params, token, cache))
    token = jnp.array([7, 8])
    logits, cache = traced(token, cache)
    assert np.isfinite(logits).all()
    with pytest.raises(InputError, match="1 tokens do not fit a cache for 4 that holds 4"):
        advance(CFG, params, token, cache)
    logits, after = traced(token, cache)
    np.testing.assert_array_equal(np.isnan(logits).all(axis=1), [False, True])
    for name in ("k", "v"):  # what was there is there
        np.testing.assert_array_equal(
            after["layers"][0][name][:, 1], cache["layers"][0][name][:, 1]
        )
    logits, _ = traced(token, after)  # and a row that is full stays so
    assert np.isnan(logits).all()


def test_an_id_outside_the_vocabulary_does_not_go_on(params):
    _, cache = filled(CFG, params, jnp.array([[1]]), room=8)
    with pytest.raises(InputError, match="token: 40"):
        advance(CFG, params, jnp.array([40]), cache)
    logits, _ = jax.jit(lambda *given: advance(CFG, params, *given))(jnp.array([NO_TOKEN]), cache)
    assert np.isnan(logits).all()


def test_a_model_that_is_no_number_writes_nothing(params):
    broken = {**params, "final_norm": params["final_norm"] * jnp.nan}
    prompt, settings = jnp.array([[1, 2, 3]]), {"key": jax.random.key(0), "max_new_tokens": 7}
    for temperature in (0.0, 1.0):
        with pytest.raises(InputError, match="logits are NaN or infinite"):
            generate(CFG, broken, prompt, temperature=temperature, **settings)
    traced = jax.jit(lambda p: generate(CFG, p, prompt, **settings))
    np.testing.assert_array_equal(traced(broken), [[NO_TOKEN] * 7])


def test_other_settings_need_no_other_program(params):
    prompt, key = jnp.array([[1, 2, 3]]), jax.random.key(0)
    program: Any = decode._generate
    generate(CFG, params, prompt, key=key, max_new_tokens=7)
    before = program._cache_size()
    every: list[Any] = [
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"temperature": np.float32(1.3), "top_k": 3},
        {"top_k": 500, "top_p": 0.9},
        {"top_p": 0.5, "stop_token": 3},
    ]
    for settings in every:
        generate(CFG, params, prompt, key=key, max_new_tokens=7, **settings)
    assert program._cache_size() == before


def test_every_place_has_a_draw_of_its_own(params):
    even = {**params, "final_norm": 0 * params["final_norm"]}  # all tokens alike
    prompt = jnp.array([[1, 2, 3]])
    out = generate(CFG, even, prompt, key=jax.random.key(0), max_new_tokens=7)
    assert len(set(np.asarray(out[0]).tolist())) > 4  # of 40


@pytest.mark.slow
def test_decoding_ends_when_all_rows_have_ended(params, monkeypatch: pytest.MonkeyPatch):
    steps = []

    def counted(*args, **options):
        jax.debug.callback(lambda: steps.append(1))
        return advance(*args, **options)

    monkeypatch.setattr(decode, "advance", counted)
    cfg = replace(CFG, context_length=33)  # of its own, for a program of its own
    prompt, key = jnp.array([[1, 2, 3], [4, 5, 6]]), jax.random.key(4)
    free = np.asarray(generate(cfg, params, prompt, key=key, max_new_tokens=64))
    jax.effects_barrier()
    assert len(steps) == 63
    stop = int(next(token for token in free[0] if token in free[1]))
    ends = [list(row).index(stop) for row in free]
    steps.clear()
    out = generate(cfg, params, prompt, key=key, max_new_tokens=64, stop_token=stop)
    jax.effects_barrier()
    assert len(steps) == max(ends) < 63
    for row, whole, end in zip(np.asarray(out), free, ends, strict=True):
        np.testing.assert_array_equal(row, [*whole[:end], *[stop] * (64 - end)])


@pytest.mark.parametrize(("batch", "unroll"), [(1, None), (3, None), (3, 1)])
def test_the_cache_is_written_in_place(batch: int, unroll: int | None):
    """The heap of the compiled step holds no second cache: a layer of it at most."""
    cfg = replace(CFG, num_layers=4, unroll=unroll)
    cache = jax.eval_shape(lambda: init_cache(cfg, batch, 4096))
    step = jax.jit(lambda p, t, c: advance(cfg, p, t, c), donate_argnums=2)
    token = jax.ShapeDtypeStruct((batch,), jnp.int32)
    compiled: Any = step.lower(abstract(specs(cfg)), token, cache).compile()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache["layers"]))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < 0.5 * size
    shape = ",".join(map(str, cache["layers"][0]["k"].shape))
    assert f"f32[{shape}]" in compiled.as_text()
    assert not re.search(rf"f32\[{shape}\]\S* copy\(", compiled.as_text())
    if batch == 1:  # a scatter is counted as if it went over the whole array
        moved = compiled.cost_analysis()["bytes accessed"]
        assert moved < 4 * size  # a layer's keys and values are read, set apart, and read


def test_generating_holds_one_cache():
    cfg, room = replace(CFG, num_layers=4, unroll=1), 4096
    key, number = jax.random.key(0), jnp.float32(1)
    program: Any = decode._generate
    compiled = program.lower(
        cfg,
        None,
        room - 8,
        abstract(specs(cfg)),
        jax.ShapeDtypeStruct((2, 8), jnp.int32),
        key,
        (number, jnp.int32(1), number),
        jnp.int32(0),
    ).compile()
    cache = jax.eval_shape(lambda: init_cache(cfg, 2, room))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache["layers"]))
    # And a layer of it, set apart to be read.
    assert compiled.memory_analysis().temp_size_in_bytes < 1.6 * size


def test_on_a_mesh_the_cache_is_split_and_the_tokens_are_the_same(params):
    cfg = replace(CFG, num_layers=1, num_kv_heads=2)
    whole = jax.jit(lambda key: jax.tree.map(lambda p: p * 8, init(cfg, key)))(jax.random.key(0))
    prompt = jax.random.randint(jax.random.key(1), (4, 5), 0, cfg.vocab_size)
    settings = {"key": jax.random.key(2), "max_new_tokens": 6, "temperature": 0.0}
    expected = generate(cfg, whole, prompt, **settings)
    mesh, rules = make_mesh(data=2, tensor=2, devices=jax.devices()[:4]), Rules()
    split = jax.device_put(whole, shardings(specs(cfg), mesh, rules))
    with jax.set_mesh(mesh):
        got = generate(cfg, split, prompt, rules=rules, **settings)
        step = jax.jit(lambda p, t, c: advance(cfg, p, t, c, rules=rules)[1])
        cache = step(split, prompt[:, 0], init_cache(cfg, 4, 16, rules=rules))
        with pytest.raises(InputError, match="cache: dimension 'batch' of size 3 does not divide"):
            generate(cfg, split, prompt[:3], rules=rules, **settings)
    np.testing.assert_array_equal(got, expected)
    for x in jax.tree.leaves(cache["layers"]):
        assert x.addressable_shards[0].data.size * 4 == x.size


def test_a_cache_lies_on_a_mesh_of_one_axis_and_wants_one(params):
    with pytest.raises(InputError, match="there is none"):
        init_cache(CFG, 2, 4, rules=Rules())
    with jax.set_mesh(jax.make_mesh((2,), ("data",), (AxisType.Auto,))):
        cache = init_cache(CFG, 2, 4, rules=Rules())
    assert cache["length"].shape == (2,)
