"""Hugging Face's Llama under torch.compile, trained as its Trainer does, from our parameters."""

import os
from typing import Any

import jax
import numpy as np

from experiments.benchmark import formulas_torch, peers, shapes
from experiments.benchmark.calls import waiter
from experiments.benchmark.options import Options
from experiments.benchmark.steps import HF_ACTIVATION, batch
from polycom_jax import models
from polycom_jax.models import ModelConfig

# Its progress bars and advice have no place in a table.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


class HuggingFace:
    """LlamaForCausalLM in the shapes of ours: loss, gradients, clip, fused AdamW.

    Under bfloat16 parameters stay float32 and the forward pass runs under autocast, as ours casts
    its own.
    """

    def __init__(self, options: Options) -> None:
        import torch  # pyright: ignore[reportMissingImports]

        cfg = shapes.model(options, HF_ACTIVATION)
        optim = shapes.optimizer(options)
        self._device = peers.torch_device()
        self._model = llama(cfg).to(self._device).train()
        if cfg.remat != "none":
            self._model.gradient_checkpointing_enable({"use_reentrant": False})
        parameters = list(self._model.parameters())
        decayed = [p for p in parameters if p.ndim >= 2]
        rest = [p for p in parameters if p.ndim < 2]
        self._clip_norm = optim.clip_norm
        self._optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": optim.weight_decay},
                {"params": rest, "weight_decay": 0.0},
            ],
            lr=optim.peak_learning_rate,
            betas=(optim.b1, optim.b2),
            eps=optim.eps,
            fused=True,
        )
        rows = batch(options, cfg)
        self._tokens, self._targets = (
            torch.from_numpy(rows[name]).to(self._device, torch.long)
            for name in ("tokens", "targets")
        )
        self._low_precision = cfg.dtype != "float32"
        formulas_torch.begin_case()
        self._loss = formulas_torch.compiled(self._loss_of)

    def _loss_of(self, tokens: Any, targets: Any) -> Any:
        from torch.nn.functional import cross_entropy  # pyright: ignore[reportMissingImports]

        logits = self._model(input_ids=tokens, use_cache=False).logits
        return cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def __call__(self) -> Any:
        """One update."""
        import torch  # pyright: ignore[reportMissingImports]

        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device, torch.bfloat16, enabled=self._low_precision):
            loss = self._loss(self._tokens, self._targets)
        loss.backward()
        limit = float("inf") if self._clip_norm is None else self._clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), limit)
        self._optimizer.step()
        return loss.detach(), norm

    def wait(self, outcome: Any) -> Any:
        """On a CPU it is done when it returns."""
        waiter(self._tokens)(outcome)
        return outcome

    def numbers(self, outcome: Any) -> tuple[float, float]:
        """Loss and gradient norm."""
        return float(outcome[0]), float(outcome[1])

    def peak_device_bytes(self) -> int | None:
        """What PyTorch's allocator has held at most."""
        import torch  # pyright: ignore[reportMissingImports]

        return torch.cuda.max_memory_allocated() if self._device == "cuda" else None


def llama(cfg: ModelConfig) -> Any:
    """LlamaForCausalLM with our initial parameters, in float32 on the CPU."""
    from transformers import (  # pyright: ignore[reportMissingImports]
        LlamaConfig,
        LlamaForCausalLM,
    )

    fields: dict[str, Any] = {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embed_dim,
        "intermediate_size": cfg.hidden_width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "attn_implementation": "sdpa",
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(state_dict(cfg), strict=True)
    return model


def state_dict(cfg: ModelConfig) -> dict[str, Any]:
    """Our initial parameters (key 0) under Hugging Face's names, as [out, in] matrices."""
    import torch  # pyright: ignore[reportMissingImports]

    params = jax.device_get(jax.jit(lambda key: models.init(cfg, key))(jax.random.key(0)))
    (group,) = params["layers"]
    attention, ffn = group["attention"], group["ffn"]
    d = cfg.embed_dim
    named = {"model.norm.weight": params["final_norm"]}
    named["model.embed_tokens.weight"] = params["embed"][: cfg.vocab_size]
    table = params["embed" if cfg.tie_embeddings else "unembed"]
    named["lm_head.weight"] = table[: cfg.vocab_size]
    for i in range(cfg.num_layers):
        layer = f"model.layers.{i}."
        named |= {
            f"{layer}input_layernorm.weight": attention["norm"][i],
            f"{layer}self_attn.q_proj.weight": attention["w_q"][i].reshape(d, -1).T,
            f"{layer}self_attn.k_proj.weight": attention["w_k"][i].reshape(d, -1).T,
            f"{layer}self_attn.v_proj.weight": attention["w_v"][i].reshape(d, -1).T,
            f"{layer}self_attn.o_proj.weight": attention["w_o"][i].reshape(-1, d).T,
            f"{layer}post_attention_layernorm.weight": ffn["norm"][i],
            f"{layer}mlp.gate_proj.weight": ffn["w_gate"][i].T,
            f"{layer}mlp.up_proj.weight": ffn["w_up"][i].T,
            f"{layer}mlp.down_proj.weight": ffn["w_down"][i].T,
        }
    return {name: torch.from_numpy(np.array(value)) for name, value in named.items()}
