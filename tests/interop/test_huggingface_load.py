"""Reading Hugging Face folders, without PyTorch: against stored logits of `transformers`."""

import json
import shutil
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_folders as tiny
from tiny_models import same

from polycom_jax import InputError, models
from polycom_jax.interop import huggingface
from polycom_jax.interop.huggingface import files
from polycom_jax.interop.huggingface import folder as folder_module
from polycom_jax.sharding import make_mesh


def folder(path: Path, name: str = "llama", **changes) -> Path:
    config = tiny.CONFIGS[name] | changes
    return tiny.write(path, config, tiny.weights(config))


forward = jax.jit(models.forward, static_argnums=0)


def logits(loaded) -> np.ndarray:
    cfg, params = loaded
    return np.asarray(forward(cfg, params, jnp.array(tiny.TOKENS)), np.float64)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_logits_are_those_of_transformers(name, tmp_path):
    loaded = huggingface.load(folder(tmp_path, name))
    # Both sum a few dozen float32 products in different orders; logits are of order 1.
    np.testing.assert_allclose(logits(loaded), tiny.reference_logits(name), atol=1e-4)


def test_every_number_lands_in_its_place(tmp_path):
    cfg, params = huggingface.load(folder(tmp_path, "olmoe"))
    stored, layer = tiny.weights(tiny.OLMOE), params["layers"][0]
    own = {"embed_dim": 16, "num_kv_heads": 2, "ffn_width": None, "gated_width": 20}
    assert {name: getattr(cfg, name) for name in own} == own
    assert cfg.moe == models.MoEConfig(4, top_k=2)
    assert (cfg.activation, cfg.qk_norm, cfg.rope_theta) == ("swiglu", "full", 5000.0)
    assert not cfg.document_mask
    q = stored["model.layers.1.self_attn.q_proj.weight"]
    assert layer["attention"]["w_q"][1, 3, 2, 1] == q[2 * 4 + 1, 3]
    o = stored["model.layers.1.self_attn.o_proj.weight"]
    assert layer["attention"]["w_o"][1, 2, 1, 3] == o[3, 2 * 4 + 1]
    down = stored["model.layers.1.mlp.experts.3.down_proj.weight"]
    np.testing.assert_array_equal(layer["moe"]["w_down"][1, 3], down.T)
    np.testing.assert_array_equal(params["embed"][:24], stored["model.embed_tokens.weight"])
    assert params["embed"].shape == (128, 16)
    assert not params["embed"][24:].any()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_as_float32(dtype, tmp_path):
    name = np.dtype(dtype).name
    config = tiny.LLAMA | {"dtype": name}
    cfg, params = huggingface.load(tiny.write(tmp_path / "a", config, tiny.weights(config, name)))
    exact = {key: value.astype(np.float32) for key, value in tiny.weights(config, name).items()}
    _, expected = huggingface.load(tiny.write(tmp_path / "b", config, exact))
    assert cfg.dtype == ("bfloat16" if name == "bfloat16" else "float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    same(params, expected)


def test_several_files_are_one_model(tmp_path):
    one = huggingface.load(folder(tmp_path / "one"))
    several = tiny.write(tmp_path / "three", tiny.LLAMA, tiny.weights(tiny.LLAMA), files=3)
    assert len(list(several.glob("*.safetensors"))) == 3
    same(huggingface.load(several)[1], one[1])


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5000.0, "rope_scaling": None},
        {"rope_theta": 5000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
        {"rope_parameters": {"rope_theta": 5000.0}},
    ],
)
def test_both_schemas_of_rope_are_read(rope, tmp_path):
    config = {name: value for name, value in tiny.LLAMA.items() if name != "rope_parameters"}
    cfg, _ = huggingface.load(tiny.write(tmp_path, config | rope, tiny.weights(config)))
    assert cfg.rope_theta == 5000.0


def test_absent_fields_mean_what_they_mean_in_transformers(tmp_path):
    left = ("num_key_value_heads", "head_dim", "rope_parameters", "rms_norm_eps")
    config = {name: value for name, value in tiny.LLAMA.items() if name not in left}
    multi_head = tiny.LLAMA | {"num_key_value_heads": 4}
    cfg, _ = huggingface.load(tiny.write(tmp_path, config, tiny.weights(multi_head)))
    assert (cfg.num_kv_heads, cfg.head_dim, cfg.rope_theta) == (4, 4, 10_000.0)
    assert (cfg.norm_eps, cfg.context_length) == (1e-6, 64)


def test_a_tied_model_may_hold_its_matrix_twice_if_it_is_the_same(tmp_path):
    config = tiny.LLAMA | {"tie_word_embeddings": True}
    tensors = tiny.weights(config)
    cfg, params = huggingface.load(tiny.write(tmp_path / "once", config, tensors))
    assert cfg.tie_embeddings
    assert "unembed" not in params
    embed = tensors["model.embed_tokens.weight"]
    twice = tiny.write(tmp_path / "twice", config, tensors | {"lm_head.weight": embed.copy()})
    same(huggingface.load(twice)[1], params)
    other = tiny.write(tmp_path / "other", config, tensors | {"lm_head.weight": embed + 1})
    with pytest.raises(InputError, match=r"lm_head.weight is not model.embed_tokens.weight"):
        huggingface.load(other)


def test_old_tables_of_frequencies_are_passed_over(tmp_path):
    tensors = tiny.weights(tiny.LLAMA)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    huggingface.load(tiny.write(tmp_path, tiny.LLAMA, tensors))


def test_one_error_lists_all_that_is_wrong_with_the_tensors(tmp_path):
    tensors = tiny.weights(tiny.LLAMA)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(16, np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].T.copy()
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((20, 16), np.int8)
    with pytest.raises(InputError) as caught:
        huggingface.load(tiny.write(tmp_path, tiny.LLAMA, tensors))
    message = str(caught.value)
    for part in (
        "4 of its tensors",
        "model.norm.weight is missing",
        "model.layers.0.self_attn.q_proj.bias is unknown",
        "lm_head.weight is [16, 24], not [24, 16]",
        "model.layers.1.mlp.up_proj.weight is of dtype I8",
    ):
        assert part in message
    assert "\n" not in message


def test_many_tensors_of_one_kind_do_not_hide_the_others(tmp_path):
    # A deeper config than the weights, and names of another release.
    tensors = tiny.weights(tiny.LLAMA)
    tensors["transformer.extra.weight"] = np.zeros(3, np.float32)
    tensors["model.norm.weight"] = np.zeros(5, np.float32)
    path = tiny.write(tmp_path, {**tiny.LLAMA, "num_hidden_layers": 9}, tensors)
    with pytest.raises(InputError) as caught:
        huggingface.load(path)
    message = str(caught.value)
    assert message.count("is missing") < 20
    assert "more such" in message
    assert "transformer.extra.weight is unknown" in message
    assert "model.norm.weight is [5], not [16]" in message
    assert "\n" not in message


def test_a_tensor_in_two_files_is_an_error(tmp_path):
    path = tiny.write(tmp_path, tiny.LLAMA, tiny.weights(tiny.LLAMA), files=2)
    index = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    first = min(index.values())
    shutil.copy(path / first, path / "model-again.safetensors")
    moved = next(name for name, file in index.items() if file == first)
    tiny.write_index(path, index | {moved: "model-again.safetensors"})
    with pytest.raises(InputError, match=f"{moved} is there twice"):
        huggingface.load(path)
    tiny.write_index(path, index | {moved: "model-lost.safetensors"})
    with pytest.raises(InputError, match=r"file model-lost.safetensors is missing"):
        huggingface.load(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ({"sliding_window": 128}, "sliding_window=128"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling="),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters.rope_type='llama3'"),
        ({"rope_theta": 1e4}, "contradict"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"model_type": "qwen2"}, "model_type"),
    ],
)
def test_what_our_models_cannot_compute_is_refused_by_name(change, named, tmp_path):
    with pytest.raises(InputError) as caught:
        huggingface.load(folder(tmp_path, **change))
    assert named in str(caught.value)


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        huggingface.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config.json"):
        huggingface.load(tmp_path)
    path = folder(tmp_path / "a")
    (path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="damaged"):
        huggingface.load(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"neither model.safetensors nor"):
        huggingface.load(path)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="lacks vocab_size, hidden_size"):
        huggingface.load(path)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_mesh_gets_the_same_values(name, tmp_path):
    path = folder(tmp_path, name)
    _, plain = huggingface.load(path)
    mesh = make_mesh(data=1, fsdp=2, tensor=2, expert=2)
    _, spread = huggingface.load(path, mesh=mesh)
    rows = len(plain["embed"])
    assert len(spread["embed"]) == 2 * rows
    assert len(spread["layers"][0]["attention"]["w_q"].sharding.device_set) == 8
    spread |= {name: spread[name][:rows] for name in ("embed", "unembed")}
    same(jax.device_get(spread), jax.device_get(plain))


class Tracked(np.ndarray):
    """An array that can be seen to live."""

    __hash__ = object.__hash__  # pyright: ignore


def test_the_host_never_holds_a_second_model(tmp_path, monkeypatch):
    path = folder(tmp_path, "olmoe")
    alive, most = weakref.WeakSet(), 0
    read, values = files.Tensors.read, folder_module._values

    def tracked(value):
        # Off the multiples of 64 bytes: an array that begins there a CPU device takes as it is, and
        # the host's array would live on as the parameter itself.
        nonlocal most
        buffer = np.zeros(value.nbytes + 128, np.uint8).view(Tracked)
        start = 4 + (-buffer.ctypes.data) % 64
        place = buffer[start : start + value.nbytes].view(np.ndarray).view(value.dtype)
        place[...] = value.reshape(-1)
        alive.add(buffer)
        most = max(most, sum(one.nbytes for one in alive))
        return place.reshape(value.shape)

    monkeypatch.setattr(files.Tensors, "read", lambda self, name: tracked(read(self, name)))
    monkeypatch.setattr(folder_module, "_values", lambda *args: tracked(values(*args)))
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(huggingface.load(path)[1])]
    tensor = max(value.nbytes for value in tiny.weights(tiny.OLMOE).values())
    # The runtime lets go of an array a little after it has copied it.
    assert max(sizes) <= most <= 2 * max(sizes) + tensor + 4 * 128 < sum(sizes) / 2


def test_a_cpu_takes_the_hosts_values_as_they_are(tmp_path, monkeypatch):
    path = folder(tmp_path, "olmoe")
    values, made = folder_module._values, []

    def kept(*args):
        made.append(values(*args))
        return made[-1]

    monkeypatch.setattr(folder_module, "_values", kept)
    _, params = huggingface.load(path)
    # One copy of the model in memory: the arrays are the ones that were filled.
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)]
    assert places == [value.ctypes.data for value in made]


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path):
    path = tiny.write(tmp_path / "m", tiny.LLAMA, tiny.weights(tiny.LLAMA))
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="changes the weights by this adapter"):
        huggingface.load(path)
