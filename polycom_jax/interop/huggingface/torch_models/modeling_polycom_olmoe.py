"""OLMoE with PolyCom experts, for `from_pretrained(..., trust_remote_code=True)`; transformers 5.

Written by polycom_jax beside the weights.
"""
# pyright: reportMissingImports=false

import torch
from torch import nn
from transformers import OlmoeConfig, OlmoeForCausalLM, OlmoeModel
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

from .polycom_ffn import PolyComActivation, PolyComFeedForward


class PolyComOlmoeConfig(OlmoeConfig):
    """OLMoE's fields, and `polycom`: the activation's name and options."""

    model_type = "polycom_olmoe"
    base_model_tp_plan = None
    base_model_ep_plan = None


class PolyComExperts(nn.Module):
    """A router and its experts; the activation is one expert's, or all experts' of the layer."""

    def __init__(self, config):
        super().__init__()
        shared = config.polycom["coefficients"] == "layer"
        self.gate = OlmoeTopKRouter(config)
        self.experts = nn.ModuleList(
            PolyComFeedForward(config, own=not shared) for _ in range(config.num_experts)
        )
        self.activation = PolyComActivation(config) if shared else None

    def forward(self, hidden_states):
        """Each token through its experts, weighted by the router's probabilities."""
        x = hidden_states.flatten(0, -2)
        _, weights, chosen = self.gate(x)
        out = torch.zeros_like(x)
        for index in chosen.unique().tolist():
            tokens, place = torch.where(chosen == index)
            y = self.experts[index](x[tokens], self.activation)
            out.index_add_(0, tokens, (y * weights[tokens, place, None]).to(out.dtype))
        return out.view_as(hidden_states)


class PolyComOlmoeModel(OlmoeModel):
    """OLMoE without its head."""

    config_class = PolyComOlmoeConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = PolyComExperts(config)
        self.post_init()


class PolyComOlmoeForCausalLM(OlmoeForCausalLM):
    """OLMoE that writes text."""

    config_class = PolyComOlmoeConfig
    _keep_in_fp32_modules_strict = ["activation"]  # noqa: RUF012 - a list is what it must be

    def __init__(self, config):
        super().__init__(config)
        self.model = PolyComOlmoeModel(config)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PolyComActivation):
            module.reset_parameters()
