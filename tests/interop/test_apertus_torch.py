"""Apertus and Llama 3's rotary frequencies against PyTorch and `transformers`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_folders as tiny
from tiny_models import DENSE

from polycom_jax import models
from polycom_jax.activations.trainable import xielu
from polycom_jax.interop import huggingface
from polycom_jax.interop.huggingface.config import PLAIN
from polycom_jax.models import RopeScaling

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
transformers: Any = pytest.importorskip(
    "transformers", reason="transformers is not installed (extra bench)"
)
pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to mend

ATOL = 1e-4
"""Logits of order 1 to 5, from float32 sums in different orders."""

LONG = np.random.default_rng(3).integers(0, 24, (2, 200))
"""So many tokens that slow frequencies turn."""

SCALING = RopeScaling(8.0, 1.0, 4.0, 128)
APERTUS = replace(
    DENSE,
    activation="xielu",
    qk_norm="head",
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rope_scaling=SCALING,
    context_length=256,
)
FORWARD = jax.jit(models.forward, static_argnums=0)


def theirs(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def logits(model: Any, tokens: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


def ours(cfg: Any, params: Any, tokens: Any) -> np.ndarray:
    return np.asarray(FORWARD(replace(cfg, dtype="float32"), params, jnp.array(tokens)))


SLOW = pytest.mark.slow


def trained(cfg: Any) -> Any:
    """Parameters away from where they start, no two alike."""
    leaves, tree = jax.tree.flatten(models.init(cfg, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=SLOW)])
def test_what_transformers_saves_we_load(dtype, tmp_path):
    config = transformers.ApertusConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=30,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        rope_parameters={**tiny.APERTUS["rope_parameters"], "rope_theta": 10_000.0},
        initializer_range=0.3,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.ApertusForCausalLM(config)
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            layer.mlp.act_fn.alpha_p += 0.5 + number
            layer.mlp.act_fn.alpha_n -= 0.3 + number
            layer.self_attn.q_norm.weight *= torch.linspace(0.5, 2, 8)
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size="4KB")
    cfg, params = huggingface.load(tmp_path)
    assert (cfg.activation, cfg.rope_scaling) == ("xielu", SCALING)
    # The same stored numbers, computed in float32 on both sides.
    exact = theirs(tmp_path, dtype=torch.float32)
    assert type(exact).__name__ == "ApertusForCausalLM"
    np.testing.assert_allclose(ours(cfg, params, LONG), logits(exact, LONG), atol=ATOL)


@pytest.mark.parametrize(
    "activation",
    [name if name == "xielu" else pytest.param(name, marks=SLOW) for name in PLAIN.values()],
)
def test_what_we_save_transformers_loads(activation, tmp_path):
    cfg = replace(APERTUS, activation=activation)
    params = trained(cfg)
    huggingface.save(tmp_path, cfg, params)
    model = theirs(tmp_path)
    assert type(model).__name__ == "ApertusForCausalLM"
    np.testing.assert_allclose(logits(model, LONG), ours(cfg, params, LONG), atol=ATOL)


@SLOW
def test_what_transformers_writes_again_is_the_same_model(tmp_path):
    params = trained(APERTUS)
    huggingface.save(tmp_path / "model", APERTUS, params)
    theirs(tmp_path / "model").save_pretrained(tmp_path / "again")
    cfg, back = huggingface.load(tmp_path / "again")
    # Notes of ours that its configuration carries along make it the same run's model.
    assert cfg == APERTUS
    rows = APERTUS.vocab_size
    for name in ("embed", "unembed"):
        np.testing.assert_array_equal(back[name][:rows], params[name][:rows])
    jax.tree.map(np.testing.assert_array_equal, back["layers"], params["layers"])


@SLOW
def test_greedy_tokens_are_those_of_our_own_cache(tmp_path):
    params = trained(APERTUS)
    huggingface.save(tmp_path, APERTUS, params)
    prompt = LONG[:, :40]
    mine = models.generate(
        APERTUS,
        params,
        jnp.array(prompt),
        key=jax.random.key(0),
        max_new_tokens=24,
        temperature=0.0,
    )
    done = theirs(tmp_path).generate(
        torch.tensor(prompt),
        attention_mask=torch.ones(prompt.shape, dtype=torch.long),
        do_sample=False,
        max_new_tokens=24,
        pad_token_id=0,
    )
    np.testing.assert_array_equal(done[:, prompt.shape[1] :].numpy(), mine)


def test_xielu_is_theirs_in_float64():
    x = np.concatenate([np.linspace(-30, 30, 2001), [-1e-3, -2e-6, 0.0, 1e-9, -300.0, 300.0]])
    for p, n in ((0.3, -1.2), (-4.0, 2.0)):
        act = transformers.activations.XIELUActivation(dtype=torch.float64)
        with torch.no_grad():
            act.alpha_p.fill_(p)
            act.alpha_n.fill_(n)
            expected = act(torch.tensor(x)).numpy()
        with jax.enable_x64(True):
            found = np.asarray(xielu(jnp.array(x), jnp.float64(p), jnp.float64(n)))
        assert found.dtype == np.float64
        # Theirs takes e^-0.000001 for every greater one up to x = 0. Ours has a series within 0.2
        # of 0, which ends with x^7: beyond it there are x^8 / 40320, times at most 2.7.
        near = (x <= 0) & (x > -1e-6)
        np.testing.assert_allclose(found[near], expected[near], atol=3e-6)
        np.testing.assert_allclose(found[~near], expected[~near], rtol=1e-13, atol=2e-10)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 12_000_000.0])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_frequencies_are_theirs(theta, factor):
    config = transformers.LlamaConfig(
        hidden_size=1024,
        num_attention_heads=8,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    make = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"]
    expected = make(config, "cpu")[0].numpy()
    plain = theta ** (-jnp.arange(64, dtype=jnp.float32) / 64)
    np.testing.assert_allclose(RopeScaling(factor).rescaled(plain), expected, rtol=2e-6)


@pytest.mark.parametrize("kind", ["llama", pytest.param("olmoe", marks=SLOW)])
def test_other_families_with_rescaled_frequencies_have_its_logits(kind, tmp_path):
    rope = {"rope_parameters": tiny.APERTUS["rope_parameters"], "max_position_embeddings": 256}
    shape = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = tiny.CONFIGS[kind] | rope | shape
    tiny.write(tmp_path / "old", config, tiny.weights(config))
    cfg, params = huggingface.load(tmp_path / "old")
    expected = logits(theirs(tmp_path / "old"), LONG)
    assert cfg.rope_scaling == SCALING
    np.testing.assert_allclose(ours(cfg, params, LONG), expected, atol=ATOL)
    plain = replace(cfg, rope_scaling=RopeScaling())
    assert np.abs(ours(plain, params, LONG) - expected).max() > 0.01
    huggingface.save(tmp_path / "new", cfg, params)
    np.testing.assert_allclose(logits(theirs(tmp_path / "new"), LONG), expected, atol=ATOL)
