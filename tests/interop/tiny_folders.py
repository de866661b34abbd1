"""Hugging Face folders of a few thousand numbers, written without `transformers` or our own code.

Weights follow from a formula, so the logits that `transformers` has for them can stand in a file
(`reference_logits.json`; `test_huggingface_torch.py` compares it with the installed release).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]]
LOGITS = Path(__file__).with_name("reference_logits.json")

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "dtype": "float32",
}
OLMOE = LLAMA | {
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": False,
    "pad_token_id": None,
    "eos_token_id": None,
}
APERTUS = LLAMA | {
    "architectures": ["ApertusForCausalLM"],
    "model_type": "apertus",
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "xielu",
    "max_position_embeddings": 256,
    # Of the four frequencies one stays, one lies between, and two are divided.
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "pad_token_id": None,
    "eos_token_id": None,
}
CONFIGS = {"llama": LLAMA, "olmoe": OLMOE, "apertus": APERTUS}
FIXED = {"act_fn.beta": 0.5, "act_fn.eps": -1e-6}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as `transformers` 5.23 writes them."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    k = config["num_key_value_heads"] * config["head_dim"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d)}
    apertus = config["model_type"] == "apertus"
    norms = ("input_layernorm", "post_attention_layernorm")
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        for norm in ("attention_layernorm", "feedforward_layernorm") if apertus else norms:
            found[f"{name}.{norm}.weight"] = (d,)
        for projection, rows in (("q", d), ("k", k), ("v", k), ("o", d)):
            found[f"{name}.self_attn.{projection}_proj.weight"] = (rows, d)
        blocks = [f"{name}.mlp"]
        if config["model_type"] == "olmoe":
            found[f"{name}.self_attn.q_norm.weight"] = (d,)
            found[f"{name}.self_attn.k_norm.weight"] = (k,)
            found[f"{name}.mlp.gate.weight"] = (config["num_experts"], d)
            blocks = [f"{name}.mlp.experts.{e}" for e in range(config["num_experts"])]
        if apertus:
            for norm in ("q_norm", "k_norm"):
                found[f"{name}.self_attn.{norm}.weight"] = (config["head_dim"],)
            for number in ("alpha_p", "alpha_n"):
                found[f"{name}.mlp.act_fn.{number}"] = (1,)
            found |= {f"{name}.mlp.{number}": () for number in FIXED}
        for block in blocks:
            found[f"{block}.up_proj.weight"] = (f, d)
            if not apertus:
                found[f"{block}.gate_proj.weight"] = (f, d)
            found[f"{block}.down_proj.weight"] = (d, f)
    found["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (v, d)
    return found


def weights(config: dict[str, Any], dtype: str = "float32") -> dict[str, np.ndarray]:
    """Values by the formula: waves of another length in each tensor; norms near one."""
    found = {}
    for number, (name, shape) in enumerate(sorted(shapes(config).items())):
        wave = np.sin(np.arange(np.prod(shape)) * (0.37 + 0.11 * number) + number)
        value = 1 + 0.3 * wave if len(shape) == 1 else 0.5 * wave
        fixed = [value for end, value in FIXED.items() if name.endswith(end)]
        found[name] = np.array(fixed[0] if fixed else value.reshape(shape)).astype(dtype)
    return found


def write(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], files: int = 1
) -> Path:
    """Writes the folder; with several files, an index too."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = {
        n: f"model-{i % files + 1:05d}-of-{files:05d}.safetensors" for i, n in enumerate(tensors)
    }
    for file in set(names.values()):
        save_file({n: t for n, t in tensors.items() if names[n] == file}, folder / file)
    write_index(folder, names)
    return folder


def write_index(folder: Path, names: dict[str, str]) -> None:
    """Writes model.safetensors.index.json."""
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))


def reference_logits(name: str) -> np.ndarray:
    """What `transformers` makes of `TOKENS` with the weights of `CONFIGS[name]`."""
    return np.array(json.loads(LOGITS.read_text())[name], np.float64)
