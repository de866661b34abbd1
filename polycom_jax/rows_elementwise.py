"""Rows of the literature that are element-wise; all share one derivative rule.

FLOPs are those of the traced programs; bounds of derivatives hold at the start.
"""

from collections.abc import Mapping

from polycom_jax.activations import fixed, trainable
from polycom_jax.activations.trainable import XIELU_BETA, inverse_softplus
from polycom_jax.custom import elementwise_row
from polycom_jax.row import Parameter, Row

_INF = float("inf")
_GLU = "Shazeer, arXiv 2002.05202"
_XIELU = "Huang and Schlag, arXiv 2411.13010"
_XGATE = "Huang, arXiv 2405.20768"

CONTROLS: Mapping[str, Row] = {
    "leaky_relu2": elementwise_row(
        fixed.leaky_relu2,
        formula="x^2, or x^2 / 4 of negative x",
        source="used in small language-model contests; no paper",
        slopes=(-_INF, _INF),
    ),
    "mish": elementwise_row(
        fixed.mish,
        formula="x tanh(log(1 + e^x))",
        source="Misra, arXiv 1908.08681",
        slopes=(-0.11253, 1.08850),
    ),
    "softplus": elementwise_row(
        fixed.softplus,
        formula="log(1 + e^x)",
        source="Dugas et al., NIPS 2000",
        slopes=(0, 1),
    ),
    "elu": elementwise_row(
        fixed.elu,
        formula="x, or e^x - 1 of negative x",
        source="Clevert et al., arXiv 1511.07289",
        slopes=(0, 1),
    ),
    "selu": elementwise_row(
        fixed.selu,
        formula="1.0507 (x, or 1.67326 (e^x - 1) of negative x)",
        source="Klambauer et al., arXiv 1706.02515",
        slopes=(0, fixed.SELU_SCALE * fixed.SELU_ALPHA),
    ),
    "bilinear": elementwise_row(
        fixed.bilinear, gated=True, formula="gate up", source=_GLU, slopes=(1, 1)
    ),
    "relu2_glu": elementwise_row(
        fixed.relu2_glu,
        gated=True,
        formula="max(gate, 0)^2 up",
        source="a control",
        slopes=(0, _INF),
    ),
    "silu2_glu": elementwise_row(
        fixed.silu2_glu,
        gated=True,
        formula="silu(gate)^2 up",
        source="a control",
        slopes=(-0.09895, _INF),
    ),
    "swiglu_oai": elementwise_row(
        fixed.swiglu_oai,
        gated=True,
        formula="g sigma(1.702 g) (u + 1), g = min(gate, 7), u = clip(up, -7, 7)",
        source="gpt-oss, gpt_oss/torch/model.py",
        slopes=(-0.19968, 2.19968),
    ),
    "powlu": elementwise_row(
        fixed.powlu,
        gated=True,
        formula="up g^(3 / (sqrt(g) + 1)) sigma(g), or up silu(g) of negative gates g",
        source="Ling team, arXiv 2605.25704, by code that repeats it; the paper was not read",
        slopes=(-0.09984, 1.38834),
    ),
}

_P = Parameter(inverse_softplus(0.8))
_N = Parameter(inverse_softplus(0.8 - XIELU_BETA))

TRAINABLE: Mapping[str, Row] = {
    "xielu": elementwise_row(
        trainable.xielu,
        {"alpha_p": _P, "alpha_n": _N},
        formula="p x^2 + x / 2, or n (e^x - 1 - x) + x / 2 of negative x; p = softplus(alpha_p),"
        " n = 1/2 + softplus(alpha_n)",
        source=_XIELU,
        slopes=(-0.3, _INF),
    ),
    "xiprelu": elementwise_row(
        trainable.xiprelu,
        {"alpha_p": _P, "alpha_n": _P},
        formula="p x^2 + x / 2, or n x^2 + x / 2 of negative x; p, n = softplus(alpha_p, alpha_n)",
        source=_XIELU,
        slopes=(-_INF, _INF),
    ),
    "xiep": elementwise_row(
        trainable.xiep,
        {"alpha_p": _P, "alpha_n": _N, "alpha_3": Parameter(inverse_softplus(0.4))},
        formula="xielu, and softplus(alpha_3) x^3 of positive x",
        source=f"{_XIELU}, its code",
        slopes=(-0.3, _INF),
    ),
    "prelu": elementwise_row(
        trainable.prelu,
        {"slope": Parameter(0.25)},
        formula="x, or slope x of negative x",
        source="He et al., arXiv 1502.01852",
        slopes=(0.25, 1),
    ),
    "swish": elementwise_row(
        trainable.swish,
        {"beta": Parameter(1.0)},
        formula="x sigma(beta x)",
        source="Ramachandran et al., arXiv 1710.05941",
        slopes=(-0.09984, 1.09984),
    ),
    "parametric_mish": elementwise_row(
        trainable.parametric_mish,
        {"beta": Parameter(1.0)},
        formula="x tanh(log(1 + e^(beta x)))",
        source="Mish with a slope; code bases that have one differ in where it stands",
        slopes=(-0.11253, 1.08850),
    ),
    "xsilu": elementwise_row(
        trainable.xsilu,
        {"alpha": Parameter(0.0)},
        formula="x (sigma(x) (1 + 2 alpha) - alpha)",
        source=_XGATE,
        slopes=(-0.09984, 1.09984),
    ),
    "xgelu": elementwise_row(
        trainable.xgelu,
        {"alpha": Parameter(0.0)},
        formula="x (Phi(x) (1 + 2 alpha) - alpha)",
        source=_XGATE,
        slopes=(-0.12890, 1.12890),
    ),
    "xatlu": elementwise_row(
        trainable.xatlu,
        {"alpha": Parameter(0.0)},
        formula="x ((1/2 + atan(x) / pi) (1 + 2 alpha) - alpha)",
        source=_XGATE,
        slopes=(0, 1),
    ),
    "asqu": elementwise_row(
        trainable.asqu,
        {"beta": Parameter(0.25, per="channel")},
        formula="x^2, or beta x^2 of negative x; beta a channel",
        source="used in small language-model contests; no paper. It starts as leaky_relu2",
        slopes=(-_INF, _INF),
    ),
    "crrelu": elementwise_row(
        trainable.crrelu,
        {"epsilon": Parameter(0.01)},
        formula="max(x, 0) + epsilon x e^(-x^2 / 2)",
        source="EAFO, ICLR 2025",
        slopes=(-0.00446, 1.01),
    ),
}
