"""Llama with PolyCom feed-forward blocks, for `from_pretrained(..., trust_remote_code=True)`.

Written by polycom_jax beside the weights.
"""
# pyright: reportMissingImports=false

from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from .polycom_ffn import PolyComActivation, PolyComFeedForward


class PolyComLlamaConfig(LlamaConfig):
    """Llama's fields, and `polycom`: the activation's name and options."""

    model_type = "polycom_llama"
    # PolyNorm's mean runs over whole rows, which column-wise tensor parallelism would cut.
    base_model_tp_plan = None


class PolyComLlamaModel(LlamaModel):
    """Llama without its head."""

    config_class = PolyComLlamaConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = PolyComFeedForward(config)
        self.post_init()


class PolyComLlamaForCausalLM(LlamaForCausalLM):
    """Llama that writes text."""

    config_class = PolyComLlamaConfig
    _keep_in_fp32_modules_strict = ["activation"]  # noqa: RUF012 - a list is what it must be

    def __init__(self, config):
        super().__init__(config)
        self.model = PolyComLlamaModel(config)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PolyComActivation):
            module.reset_parameters()
