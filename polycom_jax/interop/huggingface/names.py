"""Which tensor of a folder holds which parameter: one table, read in both directions."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import jax
import numpy as np

from polycom_jax import models
from polycom_jax import params as pm
from polycom_jax.activations.trainable import XIELU_BETA
from polycom_jax.models import ModelConfig
from polycom_jax.params import ParamSpec

_LAYER, _EXPERT = "model.layers.{layer}.", "model.layers.{layer}.mlp.experts.{expert}."

# Our parameter, its tensors, and how many of our leading axes are the input of a linear map, which
# PyTorch keeps transposed, [outputs, inputs]; 0: the tensor stands as it is here.
_TABLE: tuple[tuple[str, str, int], ...] = (
    ("embed", "model.embed_tokens.weight", 0),
    ("unembed", "lm_head.weight", 0),
    ("final_norm", "model.norm.weight", 0),
    ("layers/attention/norm", _LAYER + "input_layernorm.weight", 0),
    ("layers/attention/w_q", _LAYER + "self_attn.q_proj.weight", 1),
    ("layers/attention/w_k", _LAYER + "self_attn.k_proj.weight", 1),
    ("layers/attention/w_v", _LAYER + "self_attn.v_proj.weight", 1),
    ("layers/attention/w_o", _LAYER + "self_attn.o_proj.weight", 2),
    ("layers/attention/q_norm", _LAYER + "self_attn.q_norm.weight", 0),
    ("layers/attention/k_norm", _LAYER + "self_attn.k_norm.weight", 0),
    ("layers/ffn/norm", _LAYER + "post_attention_layernorm.weight", 0),
    ("layers/ffn/w_gate", _LAYER + "mlp.gate_proj.weight", 1),
    ("layers/ffn/w_up", _LAYER + "mlp.up_proj.weight", 1),
    ("layers/ffn/w_down", _LAYER + "mlp.down_proj.weight", 1),
    ("layers/ffn/activation/coeffs", _LAYER + "mlp.activation.coeffs", 0),
    ("layers/ffn/activation/slope", _LAYER + "mlp.activation.slope", 0),
    ("layers/ffn/activation/alpha_p", _LAYER + "mlp.act_fn.alpha_p", 0),
    ("layers/ffn/activation/alpha_n", _LAYER + "mlp.act_fn.alpha_n", 0),
    ("layers/moe/norm", _LAYER + "post_attention_layernorm.weight", 0),
    ("layers/moe/router", _LAYER + "mlp.gate.weight", 1),
    ("layers/moe/w_gate", _EXPERT + "gate_proj.weight", 1),
    ("layers/moe/w_up", _EXPERT + "up_proj.weight", 1),
    ("layers/moe/w_down", _EXPERT + "down_proj.weight", 1),
    ("layers/moe/activation/coeffs", _LAYER + "mlp.activation.coeffs", 0),
    ("layers/moe/activation/slope", _LAYER + "mlp.activation.slope", 0),
    ("layers/moe/activation/coeffs", _EXPERT + "activation.coeffs", 0),
    ("layers/moe/activation/slope", _EXPERT + "activation.slope", 0),
)

# What a family calls otherwise.
_RENAMED: Mapping[str, Mapping[str, str]] = {
    "apertus": {
        "input_layernorm": "attention_layernorm",
        "post_attention_layernorm": "feedforward_layernorm",
    },
}
_VECTORS = ("mlp.act_fn.alpha_p", "mlp.act_fn.alpha_n")
"""Ends of names: one number here, a vector of one there."""


@dataclass(frozen=True)
class Constant:
    """A number that a folder keeps as a tensor of no axes, and that is fixed here.

    Attributes:
        value: what is written.
        fits: is a stored one the same function.
        words: what it must be, for a message.
    """

    value: float
    fits: Callable[[float], bool]
    words: str


# transformers' xIELU takes expm1 of min(x, eps) for negative x: of x itself, but within |eps| of 0.
_CONSTANTS: Mapping[str, Constant] = {
    "mlp.act_fn.beta": Constant(XIELU_BETA, lambda v: v == XIELU_BETA, f"{XIELU_BETA}"),
    "mlp.act_fn.eps": Constant(-1e-6, lambda v: v >= -1e-5, "-1e-5 or more"),
}

DERIVED = "rotary_emb.inv_freq"
"""End of the names of old folders' tables of rotary frequencies, which follow from the config."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a folder, and what it is here.

    Attributes:
        name: in the folder.
        shape: in the folder.
        index: of it within our parameter: layer, expert, both or none.
        inputs: our leading axes that are transposed there, see the table.
        part: shape of what it is in our parameter, without padding.
    """

    name: str
    shape: tuple[int, ...]
    index: tuple[int, ...]
    inputs: int
    part: tuple[int, ...]

    def to_ours(self, there: np.ndarray) -> np.ndarray:
        """Our values from the folder's; a view."""
        return (there.T if self.inputs else there).reshape(self.part)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """The folder's values from ours; a view."""
        if not self.inputs:
            return ours.reshape(self.shape)
        return ours.reshape(self.shape[::-1]).T


def tensors(path: str, spec: ParamSpec, model_type: str) -> list[Tensor]:
    """The tensors of one parameter: of a stacked one, one a layer, or one a layer and expert.

    Args:
        path: the parameter's name, as `params.path_name` gives it.
        spec: its declaration.
        model_type: family of the folder.
    """
    each = tuple(axis for axis in ("layers", "expert") if axis in spec.axes)
    stacked = "expert" in each
    (template, inputs), *others = (
        (name, inputs)
        for ours, name, inputs in _TABLE
        if ours == path and ("{expert}" in name) == stacked
    )
    assert not others, f"{path} stands twice in the table"
    for usual, own in _RENAMED.get(model_type, {}).items():
        template = template.replace(usual, own)
    part = spec.shape[len(each) :]
    if spec.rows is not None:
        part = (spec.rows, *part[1:])
    shape = (1,) if template.endswith(_VECTORS) else part
    if inputs:
        shape = (math.prod(part[inputs:]), math.prod(part[:inputs]))
    counts = [range(n) for n in spec.shape[: len(each)]]
    return [
        Tensor(template.format(**_numbers(spec, index)), shape, index, inputs, part)
        for index in product(*counts)
    ]


def _numbers(spec: ParamSpec, index: tuple[int, ...]) -> dict[str, int]:
    """What stands in the name: layers are counted through all groups."""
    numbers = dict(zip(("layer", "expert"), index, strict=False))
    return {**numbers, "layer": numbers["layer"] + spec.first_layer} if numbers else {}


def all_tensors(cfg: ModelConfig, model_type: str) -> Iterator[Tensor]:
    """Every tensor of a parameter that the folder of this model holds."""
    leaves: list[Any] = jax.tree_util.tree_leaves_with_path(models.specs(cfg), is_leaf=pm.is_spec)
    for path, spec in leaves:
        yield from tensors(pm.path_name(path), spec, model_type)


def constants(cfg: ModelConfig) -> dict[str, Constant]:
    """The tensors that the folder holds besides."""
    if cfg.activation != "xielu":
        return {}
    return {
        _LAYER.format(layer=layer) + name: constant
        for layer, (name, constant) in product(range(cfg.num_layers), _CONSTANTS.items())
    }
