"""What config.json may hold: read, refused by name, or told; without PyTorch."""

import json
import os
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny_folders as tiny
from tiny_models import DENSE, MOE, same, values

from polycom_jax import InputError
from polycom_jax._errors import InputWarning
from polycom_jax.interop import huggingface
from polycom_jax.interop.huggingface.config import from_json
from polycom_jax.models import ModelConfig

WITHOUT_ROPE = {name: value for name, value in tiny.LLAMA.items() if name != "rope_parameters"}


def model(base: str = "llama", **changes) -> ModelConfig:
    return from_json(tiny.CONFIGS[base] | changes)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear"}},
        {"rope_parameters": {"rope_type": "yarn", "type": "default", "factor": 4.0}},
        {"rope_parameters": {"rope_type": None}},
        {"rope_parameters": {"rope_type": ["default"]}},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": {"type": "default"}, "rope_parameters": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        {"partial_rotary_factor": 0.5},
        {"rope_theta": 0},
        {"rope_theta": None},
        {"rope_theta": "10000"},
        {"rope_theta": True},
        {"rope_parameters": {"rope_theta": -1.0}},
        {"rope_scaling": "linear"},
        {"rope_parameters": []},
        # rope_scaling is read in its place, and has no theta.
        {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 5000.0}},
    ],
)
def test_rescaled_or_unclear_rotary_frequencies_are_refused(rope):
    with pytest.raises(InputError, match=r"config.json: .*(rope|rotary)"):
        from_json(WITHOUT_ROPE | rope)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "default"}, "rope_theta": 5000.0},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 5000.0}},
        {"rope_scaling": {"type": "linear", "factor": 1.0}, "rope_theta": 5000},
        {"rope_scaling": {}, "rope_parameters": {"type": "default", "rope_theta": 5000.0}},
        {"rope_parameters": {"rope_type": "default", "type": "linear", "rope_theta": 5000.0}},
        {"rope_parameters": {"rope_theta": 5000, "partial_rotary_factor": 1}},
        {"rope_parameters": None, "rope_theta": 5000.0, "partial_rotary_factor": 1.0},
    ],
)
def test_what_rescales_nothing_is_read(rope):
    assert from_json(WITHOUT_ROPE | rope).rope_theta == 5000.0


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ("llama", {"is_causal": False}),
        ("llama", {"is_causal": 0}),
        ("llama", {"is_encoder_decoder": True}),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("llama", {"layer_types": ["full_attention"]}),
        ("llama", {"layer_types": "full_attention"}),
        ("llama", {"attention_chunk_size": 8}),
        ("llama", {"per_layer_config": {"0": {"intermediate_size": 8}}}),
        ("llama", {"pruned_heads": {"0": [1]}}),
        ("llama", {"quantization_config": {}}),
        ("llama", {"attention_bias": 1}),
        ("olmoe", {"clip_qkv": 0}),
        ("olmoe", {"num_local_experts": 8}),
        ("olmoe", {"num_experts": 0}),
        ("olmoe", {"num_experts_per_tok": 5}),
        ("olmoe", {"norm_topk_prob": None}),
        ("olmoe", {"router_aux_loss_coef": "0.01"}),
        ("llama", {"hidden_act": None}),
        ("llama", {"hidden_act": ["silu"]}),
        ("llama", {"model_type": ["llama"]}),
        ("llama", {"hidden_size": 18}),
        ("llama", {"num_attention_heads": 0}),
        ("llama", {"num_key_value_heads": 3}),
        ("llama", {"head_dim": 3}),
        ("llama", {"attn_implementation": "best"}),
        ("llama", {"dtype": "int8"}),
        ("llama", {"dtype": 32}),
        ("llama", {"eos_token_id": "2"}),
        ("llama", {"eos_token_id": [2, None]}),
        ("llama", {"bos_token_id": [1]}),
        ("llama", {"pad_token_id": 24}),
        ("llama", {"polycom": []}),
        ("llama", {"polycom": {"activation": "poly_norm"}}),
        ("llama", {"polycom": {"document_mask": "no"}}),
    ],
)
def test_other_models_and_nonsense_are_refused_by_name(base, change):
    with pytest.raises(InputError) as caught:
        model(base, **change)
    message = str(caught.value)
    assert "config.json" in message
    assert "\n" not in message
    name = str(next(iter(change)))
    ours: dict[str, str] = {"num_key_value_heads": "num_kv_heads", "polycom": ""}
    ours["num_experts_per_tok"] = "top_k"
    assert ours.get(name, name) in message


NUMBERS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", [None, "16", [], [16], {}, -1, 0, float("nan"), float("inf"), 10**400, 2**31]
)
def test_values_of_another_kind_are_refused_in_a_line(name, value):
    with pytest.raises(InputError, match=rf"config.json: {name}=") as caught:
        model(**{name: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "change",
    [
        {"attention_dropout": 0.5, "initializer_range": 0.1, "use_cache": False},
        {"pretraining_tp": 4, "output_attentions": True, "transformers_version": "4.31.0.dev0"},
        {"attention_bias": False, "mlp_bias": False, "sliding_window": None, "clip_qkv": None},
        {"is_causal": True, "is_encoder_decoder": False, "layer_types": ["full_attention"] * 2},
        {"temperature": 0.6, "top_p": 0.9, "max_length": 4096, "do_sample": True},
        {"_name_or_path": "somewhere", "architectures": ["LlamaModel"], "torch_dtype": "float16"},
        {"num_key_value_heads": 2, "head_dim": None, "pad_token_id": -1, "eos_token_id": [1, 2]},
        {"quantization_config": None, "per_layer_config": {}, "pruned_heads": {}},
        {"layer_types": None, "attn_implementation": "flash_attention_2"},
    ],
)
def test_what_changes_nothing_is_read_without_a_word(change):
    assert model(**change) == model()


def test_the_other_name_of_experts_is_read():
    named = {name: value for name, value in tiny.OLMOE.items() if name != "num_experts"}
    assert from_json(named | {"num_local_experts": 4}) == model("olmoe")
    assert model("olmoe", num_local_experts=4) == model("olmoe")


def test_fields_that_nothing_is_known_of_are_told():
    with pytest.warns(InputWarning, match=r"logits_scaling='8.0'.* another model") as told:
        assert model(logits_scaling=8.0, query_pre_attn_scalar=256) == model()
    assert len(told) == 1
    assert "query_pre_attn_scalar" in str(told[0].message)


def test_our_own_notes_are_complete_and_known(tmp_path):
    huggingface.save(tmp_path, MOE, values(MOE))
    stored = json.loads((tmp_path / "config.json").read_text())
    assert from_json(stored) == MOE
    for name in ("activation", "order", "sigmoid", "coefficients"):
        notes = {key: value for key, value in stored["polycom"].items() if key != name}
        with pytest.raises(InputError, match=f"polycom lacks {name}"):
            from_json(stored | {"polycom": notes})
    for notes, message in (
        ({"ordre": 3}, "Did you mean 'order'"),
        ({"order": "3"}, "order='3' must be a whole number"),
        ({"activation": "swish"}, "polycom.activation"),
        ({"activation": ["poly_norm"]}, "polycom.activation"),
        ({"bound": -1.0}, "bound=-1.0"),
        ({"coefficients": "token"}, "coefficients"),
    ):
        with pytest.raises(InputError, match=message):
            from_json(stored | {"polycom": stored["polycom"] | notes})


@pytest.mark.parametrize(
    "text",
    ['{"model_type": "llama", ', "[]", '"llama"', "null", "", "\ufeff{}", "[" * 100_000, "NaN"],
)
def test_a_file_that_holds_no_object_is_refused_in_a_line(text, tmp_path):
    tiny.write(tmp_path, tiny.LLAMA, tiny.weights(tiny.LLAMA))
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"config.json") as caught:
        huggingface.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_numbers_are_written_as_transformers_reads_them(tmp_path):
    cfg = replace(MOE, norm_eps=1, rope_theta=5, moe=replace(MOE.moe, load_balance_weight=0))
    huggingface.save(tmp_path, cfg, values(cfg))
    text = (tmp_path / "config.json").read_text()
    assert '"rms_norm_eps": 1.0' in text
    assert '"router_aux_loss_coef": 0.0' in text
    assert huggingface.load(tmp_path)[0] == cfg


def test_one_matrix_may_go_by_the_head_s_name(tmp_path):
    config = tiny.LLAMA | {"tie_word_embeddings": True}
    tensors = tiny.weights(config)
    _, expected = huggingface.load(tiny.write(tmp_path / "embed", config, tensors))
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    for files in (1, 3):
        path = tiny.write(tmp_path / f"head{files}", config, tensors, files=files)
        same(huggingface.load(path)[1], expected)
    # Untied, it is the head alone.
    with pytest.raises(InputError, match=r"model.embed_tokens.weight is missing"):
        huggingface.load(tiny.write(tmp_path / "untied", tiny.LLAMA, tensors))
    del tensors["lm_head.weight"]
    tensors["model.embed_tokens.weight"] = tiny.weights(config)["model.embed_tokens.weight"]
    with pytest.raises(InputError, match=r"lm_head.weight is missing .*tie_word_embeddings=true"):
        huggingface.load(tiny.write(tmp_path / "headless", tiny.LLAMA, tensors))


def test_float64_is_rounded_and_what_it_cannot_hold_is_told(tmp_path):
    wide = tiny.weights(tiny.LLAMA, "float64")
    _, params = huggingface.load(tiny.write(tmp_path / "a", tiny.LLAMA, wide))
    _, expected = huggingface.load(tiny.write(tmp_path / "b", tiny.LLAMA, tiny.weights(tiny.LLAMA)))
    same(params, expected)
    wide["model.norm.weight"][3] = 1e300
    with pytest.raises(InputError, match=r"model.norm.weight holds .*not finite"):
        huggingface.load(tiny.write(tmp_path / "c", tiny.LLAMA, wide))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_that_are_not_finite_are_told_by_name(value, dtype, tmp_path):
    tensors = tiny.weights(tiny.OLMOE, dtype)
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    tensors[name][3, 4] = value
    with pytest.raises(InputError, match=f"{name} holds numbers that are not finite"):
        huggingface.load(tiny.write(tmp_path, tiny.OLMOE, tensors))


def test_files_that_are_cut_or_lost_are_told(tmp_path):
    whole = tiny.write(tmp_path / "one", tiny.LLAMA, tiny.weights(tiny.LLAMA))
    data = (whole / "model.safetensors").read_bytes()
    for size in (0, 4, 8, 200, len(data) // 2, len(data) - 1):
        (whole / "model.safetensors").write_bytes(data[:size])
        with pytest.raises(InputError, match="damaged"):
            huggingface.load(whole)
    parts = tiny.write(tmp_path / "three", tiny.LLAMA, tiny.weights(tiny.LLAMA), files=3)
    index = parts / "model.safetensors.index.json"
    for text in (
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": ""}}',
    ):
        index.write_text(text)
        with pytest.raises(InputError, match="weight_map"):
            huggingface.load(parts)
    tiny.write_index(parts, dict.fromkeys(tiny.weights(tiny.LLAMA), "../one/model.safetensors"))
    with pytest.raises(InputError, match="weight_map"):
        huggingface.load(parts)


def test_more_layers_than_tensors_is_told_at_once(tmp_path):
    config = tiny.LLAMA | {"num_hidden_layers": 2**31 - 1}
    with pytest.raises(InputError, match="2147483647 blocks"):
        huggingface.load(tiny.write(tmp_path, config, tiny.weights(tiny.LLAMA)))


def test_what_a_folder_says_of_a_text_s_ends_is_handed_on(tmp_path):
    config = tiny.LLAMA | {"bos_token_id": 3, "eos_token_id": [5, 7]}
    first = tiny.write(tmp_path / "a", config, tiny.weights(config))
    said = huggingface.read_generation(first)
    assert said == huggingface.Generation({"bos_token_id": 3, "eos_token_id": [5, 7]})
    assert said.ends == (5, 7)
    about = {"eos_token_id": 9, "temperature": 0.6, "do_sample": True}
    (first / "generation_config.json").write_text(json.dumps(about))
    said = huggingface.read_generation(first)
    assert said.ends == (9,)
    huggingface.save(tmp_path / "b", *huggingface.load(first), generation=said)
    assert huggingface.read_generation(tmp_path / "b") == said
    assert json.loads((tmp_path / "b" / "generation_config.json").read_text()) == about
    (first / "generation_config.json").write_text(json.dumps({"eos_token_id": "x"}))
    with pytest.raises(InputError, match="eos_token_id='x' must be a token's id"):
        huggingface.read_generation(first)


def test_written_files_have_the_usual_mode(tmp_path):
    before = os.umask(0o027)
    try:
        huggingface.save(tmp_path / "new", DENSE, values(DENSE), shard_bytes=4096)
    finally:
        os.umask(before)
    files = list((tmp_path / "new").iterdir())
    assert len(files) > 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


@pytest.mark.parametrize("there", [False, True])
def test_what_fails_leaves_nothing(there, tmp_path):
    folder = tmp_path / "deep" / "new"
    if there:
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")
    params = values(DENSE)
    params["unembed"] = params["unembed"].at[3, 3].set(7e4)  # beyond float16
    with pytest.raises(InputError, match="float16's range"):
        huggingface.save(folder, DENSE, params, dtype="float16", shard_bytes=512)
    assert [path.name for path in folder.glob("*")] == (["notes.txt"] if there else [])
    assert (tmp_path / "deep").exists() == there


def test_nothing_else_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for base in tiny.CONFIGS:
            model(base)
