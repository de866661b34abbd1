"""Maximal update parametrization, muP: the learning rate of a narrow model is that of a wide one.

After Yang et al. 2022 (Tensor Programs V, arXiv 2203.03466, table 8, the form that allows tied
embeddings). With m = D / base, the width in units of a base model's, and Adam:

    parameters                           initial variance   update     forward
    w_q w_k w_v w_o w_up w_gate w_down   base's / m         / m        as it is
    embed, unembed                       base's             as it is   logits / m
    router                               base's             as it is   logits / m
    norms, coefficients                  base's             as it is   as it is

At m = 1 model and update are those of the standard parametrization, number for number. Optimisers
whose updates are not of Adam's kind divide by another power of m, see
`training.update_rules.WIDTH_POWERS`.

Why, where it is not plain from the paper:

w_down. Its fan-in F grows with D, and its input has entries of order one at any width: PolyNorm
normalises each row of F to mean square one, and other activations act on pre-activations that are
of order one. No entry shrinks as the row grows; the row's norm, sqrt(F), does grow, as for every
hidden matrix. So the rule is theirs: a sum of F independent terms at the start asks for a variance
of 1 / F, and a sum of F terms that an update of Adam aligns asks for a rate of 1 / F.

Coefficients. Each is one number for a whole row, added up over all of it by the backward pass; Adam
divides by the size of that sum, and the output's entries change by rate times entries of order one.

Attention. Scores are divided by sqrt(C), not by C as in the paper: head_dim stays and heads are
added, so both are constants. A model whose head_dim grows with its width is not covered.

Logits. The final norm's output is divided, before its rounding to the compute dtype: the logits, as
they are linear in it, and with them what each further row of a tied table would add.

Decay. It is taken of the schedule's rate, not of the smaller one of a matrix: rate x decay is what
a parameter forgets in a step, and has to be the same at every width, since the number of steps that
it remembers is part of what is tuned (Wang and Aitchison 2024, arXiv 2405.13698). In a code base
that multiplies decay by each parameter's own rate this is a decay of m times as much.

Adam's epsilon stays. Gradients of matrices fall with 1 / m; where they would come near 1e-8, take a
smaller one. Depth is not covered: the initial scale of output projections is `init`'s.
"""

from dataclasses import replace
from typing import Any

import jax

from polycom_jax import params as pm
from polycom_jax.models.config import MUP_BASE_WIDTH, ModelConfig
from polycom_jax.params import Params


def as_standard(cfg: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The model of the standard parametrization that computes the same, and its parameters.

    The factors 1 / m of the logits stand in the final norm's scale and in the routers. Training
    goes on from it by other rules. A model that is standard already comes back as it is.
    """
    if cfg.parametrization == "standard":
        return cfg, params

    def one(path: tuple[Any, ...], value: Any) -> Any:
        name = pm.path_name(path)
        divided = name == "final_norm" or name.endswith("/router")
        return value / cfg.width_multiple if divided else value

    standard = replace(cfg, parametrization="standard", mup_base_width=MUP_BASE_WIDTH)
    return standard, jax.tree_util.tree_map_with_path(one, params)
