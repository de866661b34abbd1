import dataclasses

import pytest

from polycom_jax import InputError
from polycom_jax.models import PRESETS, ModelConfig, count_params, preset


def test_the_paper_model_has_its_parameter_count_with_swiglu():
    assert count_params(preset("dense-1b", activation="swiglu")) == 1_345_423_360


def test_poly_norm_adds_four_parameters_a_layer_to_the_paper_model():
    assert count_params(preset("dense-1b")) == 1_345_423_360 + 4 * 24


def test_llama_7b_has_the_published_parameter_count():
    assert count_params(preset("llama-7b")) == 6_738_415_616


def test_dense_110m_is_what_its_name_says():
    assert count_params(preset("dense-110m")) == pytest.approx(110e6, rel=0.01)


def test_widths_follow_the_paper():
    assert preset("dense-1b", activation="swiglu").hidden_width == 5504
    assert preset("dense-1b", activation="gelu").hidden_width == 8256


def test_an_explicit_width_is_taken_literally():
    assert preset("dense-1b", activation="gelu", ffn_width=5000).hidden_width == 5000


@pytest.mark.parametrize("name", PRESETS)
def test_presets_match_gated_and_other_parameter_counts(name: str):
    gated = count_params(preset(name, activation="swiglu"))
    assert count_params(preset(name, activation="relu")) == gated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 12, "num_kv_heads": 5}, r"num_kv_heads=5; nearest: num_kv_heads=4 or 6\."),
        (  # at once, whatever the number
            {"num_heads": 2_147_483_646, "num_kv_heads": 4},
            r"num_kv_heads=4; nearest: num_kv_heads=2 or 3\.",
        ),
        ({"head_dim": 63}, "head_dim=63 must be even"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"qk_norm": "heads"}, "Did you mean 'head'"),
        ({"activation": "polynorm"}, "Did you mean 'poly_norm'"),
        ({"loss_chunk": 0}, "loss_chunk=0 must be at least 1"),
        ({"attention": "splosh"}, "Did you mean 'splash'"),
        ({"dtype": "float64"}, "Known: bfloat16, float16, float32"),
        ({"gated_width": 5, "activation": "gelu"}, "5"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be positive"),
        ({"embed_dims": 3}, "Did you mean 'embed_dim'"),
    ],
)
def test_bad_fields_name_field_value_and_rule(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        preset("tiny", **change)


def test_unknown_presets_name_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'dense-1b'"):
        preset("dense-2b")


def test_configs_are_frozen_and_hashable():
    cfg = preset("tiny")
    assert hash(cfg) == hash(preset("tiny"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.num_layers = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(cfg, ModelConfig)


def test_the_activation_is_found_by_its_name_of_before_too():
    cfg = preset("tiny")
    with pytest.warns(DeprecationWarning, match="activation_fn"):
        assert cfg.row is not None
    assert cfg.activation_fn.name == "poly_norm"
