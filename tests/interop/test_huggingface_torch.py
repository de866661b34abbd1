"""Against PyTorch and `transformers`, where they are installed (extra `bench`)."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_folders as tiny
from tiny_models import DENSE, MOE, OWN, same

from polycom_jax import ActivationOptions, InputError, models
from polycom_jax.interop import huggingface
from polycom_jax.interop.huggingface.config import GATES, IN_TORCH
from polycom_jax.interop.huggingface.fields import KINDS, NEUTRAL
from polycom_jax.models import ModelConfig

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
transformers: Any = pytest.importorskip(
    "transformers", reason="transformers is not installed (extra bench)"
)
pytestmark = [
    pytest.mark.filterwarnings("default"),  # theirs are not ours to mend
    pytest.mark.usefixtures("own_modules"),
]

ATOL = 1e-4
"""Logits of order 1 to 5, from float32 sums in different orders."""

FORWARD = jax.jit(models.forward, static_argnums=0)


def theirs(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, **options
    )


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tiny.TOKENS)).logits.float().numpy()


def ours(cfg: ModelConfig, params: Any) -> np.ndarray:
    return np.asarray(FORWARD(cfg, params, jnp.array(tiny.TOKENS)))


def trained(cfg: ModelConfig) -> Any:
    """Parameters away from where they start: logits of order one, no two coefficients equal."""
    params = models.init(cfg, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_stored_logits_are_those_of_the_installed_release(name, tmp_path):
    config = tiny.CONFIGS[name]
    model = theirs(tiny.write(tmp_path / "model", config, tiny.weights(config)))
    assert type(model).__name__ == config["architectures"][0]
    np.testing.assert_allclose(logits(model), tiny.reference_logits(name), atol=ATOL)


FOLDERS = list(product(("Llama", "Olmoe"), ("float32", "bfloat16", "float16"), (False, True)))
QUICK = [("Llama", "bfloat16", True), ("Olmoe", "float32", False)]


def quick_first(quick: list[Any], cases: list[Any]) -> list[Any]:
    """The quick ones, and the rest among the longer tests."""
    rest = [pytest.param(*case, marks=pytest.mark.slow) for case in cases if case not in quick]
    return [*quick, *rest]


@pytest.mark.parametrize(("kind", "dtype", "tied"), quick_first(QUICK, FOLDERS))
def test_what_transformers_saves_we_load(kind, dtype, tied, tmp_path):
    special = {"pad_token_id": None, "eos_token_id": None, "bos_token_id": None}
    moe = {"num_experts": 4, "num_experts_per_tok": 2} if kind == "Olmoe" else {}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        **moe,
        **special,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "model", max_shard_size="4KB")
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    cfg, params = huggingface.load(tmp_path / "model")
    # The same stored numbers, computed in float32 on both sides.
    exact = theirs(tmp_path / "model", dtype=torch.float32)
    found = ours(replace(cfg, dtype="float32"), params)
    np.testing.assert_allclose(found, logits(exact), atol=ATOL)


ROWS = list(product((DENSE, MOE, OWN), (*IN_TORCH, *GATES.values())))
OPTIONS = ActivationOptions(order=4, eps=0.5, sigmoid=True, bound=0.25, output_scale=2.0)
"""None as it is by default, and a bound that half of the coefficients are beyond."""
QUICK_ROWS = [
    *((DENSE, "poly_norm"), (DENSE, "poly_norm_glu"), (OWN, "poly_norm")),
    (replace(DENSE, activation_options=OPTIONS), "poly_norm"),
    (replace(DENSE, activation_options=ActivationOptions(eps=0.5)), "gelu_norm"),
]


@pytest.mark.parametrize(("base", "activation"), quick_first(QUICK_ROWS, ROWS))
def test_what_we_save_transformers_loads(base, activation, tmp_path):
    cfg = replace(base, activation=activation)
    params = trained(cfg)
    huggingface.save(tmp_path / "model", cfg, params)
    model = theirs(tmp_path / "model")
    np.testing.assert_allclose(logits(model), ours(cfg, params), atol=ATOL)


def test_poly_norm_in_pytorch_does_not_overflow(tmp_path):
    params = trained(DENSE)
    ffn = params["layers"][0]["ffn"]
    ffn["w_up"] = ffn["w_up"] * 1e12  # cubes beyond float32
    huggingface.save(tmp_path / "model", DENSE, params)
    np.testing.assert_allclose(logits(theirs(tmp_path / "model")), ours(DENSE, params), atol=ATOL)


def test_coefficients_stay_float32_whatever_is_asked_for(tmp_path):
    params = trained(DENSE)
    huggingface.save(tmp_path / "model", DENSE, params)
    exact = np.asarray(params["layers"][0]["ffn"]["activation"]["coeffs"])
    for model in (
        theirs(tmp_path / "model", dtype=torch.bfloat16),
        theirs(tmp_path / "model").to(torch.float16),
    ):
        assert model.model.layers[0].mlp.up_proj.weight.dtype != torch.float32
        for layer, expected in zip(model.model.layers, exact, strict=True):
            coeffs = layer.mlp.activation.coeffs
            assert coeffs.dtype == torch.float32
            np.testing.assert_array_equal(coeffs.detach().numpy(), expected)


def test_a_model_goes_there_and_back_again(tmp_path):
    params = trained(OWN)
    huggingface.save(tmp_path / "model", OWN, params)
    theirs(tmp_path / "model").save_pretrained(tmp_path / "again")
    cfg, back = huggingface.load(tmp_path / "again")
    assert cfg == OWN
    rows = OWN.vocab_size
    same(
        {**back, "embed": back["embed"][:rows], "unembed": back["unembed"][:rows]},
        {**params, "embed": params["embed"][:rows], "unembed": params["unembed"][:rows]},
    )


def test_greedy_tokens_are_those_of_our_own_cache(tmp_path):
    params = trained(DENSE)
    huggingface.save(tmp_path / "model", DENSE, params)
    prompt = np.array(tiny.TOKENS)
    mine = models.generate(
        DENSE,
        params,
        jnp.array(prompt),
        key=jax.random.key(0),
        max_new_tokens=24,
        temperature=0.0,
    )
    model = theirs(tmp_path / "model")
    done = model.generate(
        torch.tensor(prompt),
        attention_mask=torch.ones(prompt.shape, dtype=torch.long),
        do_sample=False,
        max_new_tokens=24,
        pad_token_id=0,
    )
    np.testing.assert_array_equal(done[:, prompt.shape[1] :].numpy(), mine)


def test_config_json_holds_nothing_that_transformers_warns_of(tmp_path):
    huggingface.save(tmp_path / "model", DENSE, trained(DENSE))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        read = transformers.PretrainedConfig.from_pretrained(tmp_path / "model")
    assert (read.rope_theta, read.rope_parameters["rope_theta"]) == (DENSE.rope_theta,) * 2


@pytest.mark.slow
def test_a_folder_loads_without_a_home(tmp_path):
    huggingface.save(tmp_path / "model", DENSE, trained(DENSE))
    code = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(\n"
        "    sys.argv[1], trust_remote_code=True)\n"
        "print(type(model).__name__)"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "HF_HOME")}
    env |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        env=env,
        check=True,
    )
    assert done.stdout.strip() == "PolyComLlamaForCausalLM"


LLAMA3 = {**tiny.APERTUS["rope_parameters"], "original_max_position_embeddings": 16}
ROPE = ({"type": "linear", "factor": 2.0}, {"rope_type": "default"}, {"type": "default"}, LLAMA3)
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 99, 3.5, 1.0, 5000.0, float("nan"), "x", "1", "relu"),
    *("float16", "eager", [], [1], ["full_attention"] * 2, {}, {"a": 1}, *ROPE),
)
NAMES = (*KINDS, *NEUTRAL, "layer_types", "original_max_position_embeddings", "qk_norm")
MUTATIONS = [(base, name, value) for base, name, value in product(tiny.CONFIGS, NAMES, VALUES)]


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_a_config_edited_at_random_is_refused_or_the_same_model(seed, tmp_path):
    drawn = np.random.default_rng(seed).permutation(len(MUTATIONS))[: 120 if seed == 0 else 600]
    read = 0
    folders = {
        name: tiny.write(tmp_path / name, config, tiny.weights(config))
        for name, config in tiny.CONFIGS.items()
    }
    for base, name, value in (MUTATIONS[index] for index in drawn):
        file = folders[base] / "config.json"
        file.write_text(json.dumps(tiny.CONFIGS[base] | {name: value}))
        try:
            cfg, params = huggingface.load(folders[base])
        except InputError:
            continue
        read += 1
        found = logits(theirs(folders[base], dtype=torch.float32))
        expected = ours(replace(cfg, dtype="float32"), params)
        np.testing.assert_allclose(found, expected, atol=ATOL, err_msg=f"{base} {name}={value!r}")
    assert read > 5
