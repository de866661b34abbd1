"""Apertus (xIELU) folders, and Llama 3's rotary frequencies, without PyTorch."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_folders as tiny
from tiny_models import DENSE, MOE, same, values

from polycom_jax import InputError
from polycom_jax.interop import huggingface
from polycom_jax.interop.huggingface.config import PLAIN, from_json
from polycom_jax.models import RopeScaling

SCALING = RopeScaling(8.0, 1.0, 4.0, 128)
OURS = replace(DENSE, activation="xielu", qk_norm="head", rope_scaling=SCALING)
LLAMA3 = {**tiny.APERTUS["rope_parameters"], "original_max_position_embeddings": 32}
PUBLISHED = {
    "architectures": ["ApertusForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "xielu",
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 21504,
    "max_position_embeddings": 65536,
    "mlp_bias": False,
    "model_type": "apertus",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pad_token_id": 3,
    "post_norm": False,
    "qk_norm": True,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
        "type": "llama3",
    },
    "rope_theta": 12000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.56.0",
    "use_cache": True,
    "vocab_size": 131072,
}
"""The fields of the published 8B model."""


def apertus(path: Path, **changes) -> Path:
    return tiny.write(path, tiny.APERTUS | changes, tiny.weights(tiny.APERTUS))


def test_the_published_configuration_is_read_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cfg = from_json(PUBLISHED)
    assert (cfg.activation, cfg.qk_norm, cfg.hidden_width) == ("xielu", "head", 21504)
    assert (cfg.rope_theta, cfg.rope_scaling) == (12e6, RopeScaling(factor=8.0))
    assert (cfg.head_dim, cfg.num_kv_heads, cfg.context_length) == (128, 8, 65536)
    assert cfg.dtype == "bfloat16"


def test_absent_fields_mean_what_they_mean_in_transformers():
    left = ("rope_scaling", "rope_theta", "rms_norm_eps", "max_position_embeddings", "hidden_act")
    short = {name: value for name, value in PUBLISHED.items() if name not in left}
    assert from_json(short) == from_json(PUBLISHED)


def test_every_number_lands_in_its_place(tmp_path):
    cfg, params = huggingface.load(apertus(tmp_path))
    stored, layer = tiny.weights(tiny.APERTUS), params["layers"][0]
    name = "model.layers.1."
    for place, there in (
        (layer["attention"]["norm"], "attention_layernorm.weight"),
        (layer["attention"]["k_norm"], "self_attn.k_norm.weight"),
        (layer["ffn"]["norm"], "feedforward_layernorm.weight"),
        (layer["ffn"]["activation"]["alpha_p"], "mlp.act_fn.alpha_p"),
        (layer["ffn"]["activation"]["alpha_n"], "mlp.act_fn.alpha_n"),
    ):
        np.testing.assert_array_equal(np.ravel(place[1]), stored[name + there])
    assert "w_gate" not in layer["ffn"]
    assert (cfg.activation, cfg.rope_scaling) == ("xielu", SCALING)


def test_an_apertus_folder_is_written_as_it_was_read(tmp_path):
    from safetensors.numpy import load_file

    huggingface.save(tmp_path / "new", *huggingface.load(apertus(tmp_path / "old")))
    written = load_file(tmp_path / "new" / "model.safetensors")
    same(written, tiny.weights(tiny.APERTUS))
    assert {key: value.shape for key, value in written.items()} == tiny.shapes(tiny.APERTUS)
    stored = json.loads((tmp_path / "new" / "config.json").read_text())
    for key in tiny.APERTUS:
        assert stored[key] == tiny.APERTUS[key], key
    assert stored["rope_scaling"]["rope_type"] == "llama3"  # for transformers 4
    assert not list((tmp_path / "new").glob("*.py"))


@pytest.mark.parametrize("activation", PLAIN.values())
@pytest.mark.parametrize("scaling", [SCALING, RopeScaling()])
def test_what_was_saved_is_loaded_bit_for_bit(activation, scaling, tmp_path):
    cfg = replace(OURS, activation=activation, rope_scaling=scaling, tie_embeddings=True)
    params = values(cfg)
    huggingface.save(tmp_path, cfg, params, dtype="float32")
    loaded, back = huggingface.load(tmp_path)
    assert loaded == cfg
    same(back, params)


@pytest.mark.parametrize("base", [replace(DENSE, activation="swiglu"), DENSE, MOE])
def test_other_families_keep_the_rescaling_too(base, tmp_path):
    cfg = replace(base, rope_scaling=SCALING)
    huggingface.save(tmp_path, cfg, values(cfg))
    assert huggingface.load(tmp_path)[0] == cfg


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "swish"}, "hidden_act"),
        ({"hidden_act": "prelu"}, "hidden_act"),
        ({"qk_norm": False}, "qk_norm=False"),
        ({"post_norm": True}, "post_norm=True"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"head_dim": None}, "head_dim=None"),
        ({"rope_parameters": None, "rope_theta": 500000.0}, "rope_theta=500000.0"),
        ({"rope_parameters": None, "rope_scaling": None}, "rope_scaling=None"),
        ({"rope_parameters": {}}, "rope_parameters={}"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
    ],
)
def test_what_our_models_do_not_compute_is_refused_by_name(change, named, tmp_path):
    with pytest.raises(InputError) as caught:
        huggingface.load(apertus(tmp_path, **change))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("beta", np.float32(0.25), r"act_fn.beta is 0.25, and our models compute with 0.5"),
        ("eps", np.float32(-0.1), r"act_fn.eps is -0.1\d*, and .* -1e-5 or more"),
        ("eps", np.float32("nan"), r"act_fn.eps is nan"),
        ("beta", None, r"layers.1.mlp.act_fn.beta is missing"),
        ("alpha_p", np.float32(1), r"act_fn.alpha_p is \[\], not \[1\]"),
        (
            "alpha_n",
            np.array([np.inf], np.float32),
            r"act_fn.alpha_n holds numbers that are not finite",
        ),
    ],
)
def test_other_numbers_of_xielu_are_refused_by_name(name, value, message, tmp_path):
    tensors = tiny.weights(tiny.APERTUS)
    full = f"model.layers.1.mlp.act_fn.{name}"
    tensors |= {full: np.array(value)}
    if value is None:
        del tensors[full]
    with pytest.raises(InputError, match=message):
        huggingface.load(tiny.write(tmp_path, tiny.APERTUS, tensors))


@pytest.mark.parametrize("eps", [1e-6, 0.0, -1.0133e-6])
def test_the_eps_of_other_code_is_the_same_function(eps, tmp_path):
    tensors = tiny.weights(tiny.APERTUS)
    _, expected = huggingface.load(apertus(tmp_path / "a"))
    tensors |= {f"model.layers.{n}.mlp.act_fn.eps": np.array(eps, np.float32) for n in (0, 1)}
    same(huggingface.load(tiny.write(tmp_path / "b", tiny.APERTUS, tensors))[1], expected)


def test_xielu_without_a_norm_on_heads_has_no_family(tmp_path):
    for cfg, named in (
        (replace(OURS, qk_norm="none"), "qk_norm='none': Apertus .* has 'head'"),
        (replace(OURS, qk_norm="full"), "qk_norm='full': Apertus .* has 'head'"),
        (replace(OURS, head_dim=8), "head_dim=8 .* Apertus"),
        (replace(MOE, activation="xielu"), "Unknown activation in PyTorch 'xielu'"),
    ):
        with pytest.raises(InputError, match=named):
            huggingface.save(tmp_path / "new", cfg, values(cfg))


@pytest.mark.parametrize(
    "places",
    [
        {"rope_parameters": LLAMA3},
        {"rope_scaling": LLAMA3},
        {"rope_scaling": LLAMA3, "rope_parameters": LLAMA3, "rope_theta": 5000.0},
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 32},
        {
            "rope_scaling": {k: v for k, v in LLAMA3.items() if not k.startswith("original")},
            "max_position_embeddings": 32,
        },
    ],
)
def test_a_llama_with_rescaled_frequencies_is_read(places):
    llama = {name: value for name, value in tiny.LLAMA.items() if name != "rope_parameters"}
    cfg = from_json(llama | places)
    assert (cfg.rope_theta, cfg.rope_scaling) == (
        5000.0,
        replace(SCALING, original_context_length=32),
    )


def test_frequencies_divided_by_one_are_not_rescaled():
    assert from_json(tiny.LLAMA | {"rope_parameters": LLAMA3 | {"factor": 1}}) == from_json(
        tiny.LLAMA
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"factor": 0.5}, "factor=0.5 must be at least 1"),
        ({"factor": None}, "factor=None must be a positive"),
        ({"factor": True}, "factor=True must be a positive"),
        ({"low_freq_factor": 4.0}, "low_freq_factor=4.0 must be less than"),
        ({"high_freq_factor": "4"}, "high_freq_factor='4' must be a positive"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings=0 must be"),
        ({"original_max_position_embeddings": 8.0}, "original_max_position_embeddings=8.0 must"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ],
)
def test_llama_3_s_numbers_are_checked_by_name(change, named):
    with pytest.raises(InputError) as caught:
        from_json(tiny.LLAMA | {"rope_parameters": LLAMA3 | change})
    assert "config.json: rope_parameters" in str(caught.value)
    assert named in str(caught.value)


def test_two_places_that_rescale_differently_are_refused():
    for places in (
        {"rope_scaling": LLAMA3},  # beside rope_parameters that rescale nothing
        {"rope_scaling": LLAMA3, "rope_parameters": LLAMA3 | {"factor": 4.0}},
        {"rope_parameters": LLAMA3, "original_max_position_embeddings": 64},
    ):
        with pytest.raises(InputError, match=r"config.json: .*(differently|contradict)"):
            from_json(tiny.LLAMA | places)


@pytest.mark.parametrize("name", ["Motif", "motif", "motif3"])
def test_a_motif_model_is_refused_with_what_can_be_read(name):
    with pytest.raises(InputError, match=r"differential attention.*from_official") as caught:
        from_json(tiny.LLAMA | {"model_type": name})
    assert "\n" not in str(caught.value)
