"""Writing Hugging Face folders, without PyTorch: what is in them, and that they read back."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_folders as tiny
from tiny_models import DENSE, MOE, OWN, same, values

import polycom_jax as pc
from polycom_jax import ActivationOptions, InputError
from polycom_jax.interop import huggingface
from polycom_jax.interop.huggingface import files
from polycom_jax.interop.huggingface.config import GATES, IN_TORCH
from polycom_jax.rows import BASELINES, POLYCOM
from polycom_jax.sharding import make_mesh

TORCH_FILES = Path(huggingface.__file__).parent / "torch_models"


def config_of(folder: Path):
    return json.loads((folder / "config.json").read_text())


BASES = {
    "dense": replace(DENSE, tie_embeddings=True, document_mask=False, rope_theta=123.0),
    "moe": replace(MOE, dtype="bfloat16", init="olmo"),
    "expert": replace(
        OWN,
        moe=replace(OWN.moe, capacity_factor=1.5, load_balance_weight=0.5, router_z_weight=0.25),
    ),
}
CASES = [
    (name, activation) for name in ("dense", "moe") for activation in (*IN_TORCH, *GATES.values())
]
CASES += [("expert", activation) for activation in ("poly_norm", "poly_prelu", "relu2")]


@pytest.mark.parametrize(("base", "activation"), CASES)
def test_what_was_saved_is_loaded_bit_for_bit(base, activation, tmp_path):
    cfg = replace(BASES[base], activation=activation)
    params = values(cfg)
    huggingface.save(tmp_path, cfg, params)
    loaded, back = huggingface.load(tmp_path)
    assert loaded == cfg
    same(back, params)


def test_options_and_literal_widths_come_back(tmp_path):
    options = ActivationOptions(order=4, eps=1e-5, sigmoid=True, bound=0.5, output_scale=2.0)
    cfg = replace(DENSE, activation_options=options, ffn_width=10)
    huggingface.save(tmp_path, cfg, values(cfg))
    loaded, _ = huggingface.load(tmp_path)
    assert loaded.activation_options == options
    assert loaded.hidden_width == 10


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_names_and_shapes_are_those_of_transformers(name, tmp_path):
    from safetensors.numpy import load_file

    huggingface.save(tmp_path, *huggingface.load(original(tmp_path / "original", name)))
    written = load_file(tmp_path / "model.safetensors")
    expected = tiny.weights(tiny.CONFIGS[name])
    assert written.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(written[key], value)
    stored = config_of(tmp_path)
    for key in tiny.CONFIGS[name]:
        assert stored[key] == tiny.CONFIGS[name][key], key
    assert stored["rope_theta"] == stored["rope_parameters"]["rope_theta"] == 5000.0
    assert "auto_map" not in stored
    assert not list(tmp_path.glob("*.py"))


def original(path: Path, name: str) -> Path:
    return tiny.write(path, tiny.CONFIGS[name], tiny.weights(tiny.CONFIGS[name]))


@pytest.mark.parametrize(("cfg", "module"), [(DENSE, "llama"), (MOE, "olmoe")])
def test_a_polycom_folder_brings_its_pytorch_files(cfg, module, tmp_path):
    huggingface.save(tmp_path, cfg, values(cfg), end_of_text=7)
    stored = config_of(tmp_path)
    file, _, architecture = stored["auto_map"]["AutoModelForCausalLM"].partition(".")
    assert file == f"modeling_polycom_{module}"
    assert stored["architectures"] == [architecture]
    assert [stored[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [7, 7, None]
    classes = {
        node.name
        for node in ast.parse((tmp_path / f"{file}.py").read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    assert {target.partition(".")[2] for target in stored["auto_map"].values()} <= classes
    assert (tmp_path / "polycom_ffn.py").is_file()


def test_the_pytorch_file_has_every_row_of_the_table():
    tree = ast.parse((TORCH_FILES / "polycom_ffn.py").read_text())
    tables = {
        node.targets[0].id: [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Dict)
        and isinstance(node.targets[0], ast.Name)
    }
    assert {*tables["POLYCOM"], *tables["FIXED"]} == set(IN_TORCH)
    assert {*IN_TORCH, *GATES.values()} == {*POLYCOM, *BASELINES}


@pytest.mark.parametrize("activation", ["xiep", pc.activation(jnp.tanh, name="own")])
def test_what_pytorch_does_not_have_is_refused_by_name(activation, tmp_path):
    cfg = replace(DENSE, activation=activation)
    with pytest.raises(InputError, match=r"Unknown activation in PyTorch '(xiep|own)'"):
        huggingface.save(tmp_path, cfg, values(cfg))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_matrices_are_rounded_and_nothing_else(dtype, tmp_path):
    params = values(MOE)
    huggingface.save(tmp_path, MOE, params, dtype=dtype)
    _, back = huggingface.load(tmp_path)
    layer, was = back["layers"][0], params["layers"][0]
    for exact in (["moe", "router"], ["moe", "activation", "coeffs"], ["attention", "q_norm"]):
        one, other = layer, was
        for key in exact:
            one, other = one[key], other[key]
        np.testing.assert_array_equal(one, other)
    rounded = np.asarray(was["moe"]["w_up"].astype(dtype).astype(jnp.float32))
    np.testing.assert_array_equal(layer["moe"]["w_up"], rounded)
    assert config_of(tmp_path)["dtype"] == config_of(tmp_path)["torch_dtype"] == dtype


def test_what_float16_cannot_hold_is_an_error(tmp_path):
    params = values(DENSE)
    params["embed"] = params["embed"].at[3, 3].set(7e4)
    with pytest.raises(InputError, match=r"model.embed_tokens.weight .*float16's range"):
        huggingface.save(tmp_path, DENSE, params, dtype="float16")
    assert not (tmp_path / "config.json").exists()


def test_large_models_are_written_in_several_files(tmp_path):
    params, seen = values(MOE), []
    huggingface.save(
        tmp_path, MOE, params, shard_bytes=8192, progress=lambda *done: seen.append(done)
    )
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert len(sizes) == len(seen) >= 3
    assert seen[-1] == (len(sizes), len(sizes))
    assert max(sizes) < 8192 + 4096  # a header names some dozens of tensors
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == sum(1 for _ in tiny_names(tmp_path))
    same(huggingface.load(tmp_path)[1], params)


def tiny_names(folder: Path):
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            yield from file.keys()


def test_padding_for_a_mesh_is_not_written(tmp_path):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    cfg = replace(DENSE, activation="swiglu")
    huggingface.save(tmp_path / "a", cfg, values(cfg))
    spread = huggingface.load(tmp_path / "a", mesh=mesh)
    huggingface.save(tmp_path / "b", *spread)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize(
    ("cfg", "named"),
    [
        (replace(DENSE, qk_norm="head"), "qk_norm='head'"),
        (replace(DENSE, logit_softcap=30.0), "logit_softcap=30.0"),
        (replace(DENSE, attention_window=8), "attention_window=8 with context_length="),
        (replace(MOE, qk_norm="none"), "qk_norm='none'"),
        (replace(MOE, head_dim=8), "head_dim=8"),
        (replace(DENSE, num_heads=3, num_kv_heads=3), "num_heads=3"),
    ],
)
def test_models_that_transformers_does_not_have_are_refused_by_field(cfg, named, tmp_path):
    with pytest.raises(InputError) as caught:
        huggingface.save(tmp_path / "new", cfg, values(cfg))
    assert named in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_bad_arguments_are_refused(tmp_path):
    params = values(DENSE)
    with pytest.raises(InputError, match=r"layers/moe/router is missing"):
        huggingface.save(tmp_path / "new", MOE, params)
    with pytest.raises(InputError, match=r"layers/ffn/w_up is \[2, 16, 12\], not \[2, 16, 10\]"):
        huggingface.save(tmp_path / "new", replace(DENSE, ffn_width=10), params)
    with pytest.raises(InputError, match="Unknown dtype 'int8'"):
        huggingface.save(tmp_path / "new", DENSE, params, dtype="int8")  # pyright: ignore
    huggingface.save(tmp_path, DENSE, params)
    with pytest.raises(InputError, match=r"config.json, model.safetensors already"):
        huggingface.save(tmp_path, DENSE, params)


def test_what_another_process_puts_beside_does_not_hide_why_a_folder_was_not_written(tmp_path):
    def write() -> None:
        with files.all_or_nothing(tmp_path / "new" / "model"):
            (tmp_path / "new" / "other").mkdir()  # `new` was made for the first of them
            raise InputError("why")

    with pytest.raises(InputError, match="why"):
        write()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["other"]
