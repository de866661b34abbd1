"""The studies: each a question, some arms, and which arm is compared with which."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from experiments.compare.arms import Arm, Pair, Study
from polycom_jax.table import ACTIVATIONS, ActivationOptions
from polycom_jax.training import Multipliers

REFERENCE = "swiglu"
"""What the paper's claims are about: every study that has this arm compares with it."""


def _against(arms: Sequence[Arm], *references: str) -> tuple[Pair, ...]:
    """Every other arm with each reference, but for references that were compared already."""
    return tuple(
        (arm.name, name)
        for at, name in enumerate(references)
        for arm in arms
        if arm.name != name and arm.name not in references[:at]
    )


def _plain(*activations: str) -> tuple[Arm, ...]:
    return tuple(Arm(name, name) for name in activations)


_THIRD = 1 / 3

_AT_REST = Multipliers(coefficient=1e-37)
"""Coefficients that no update moves in float32, and whose gradients still count in the clip's norm:
0 would leave these out, and change the update of everything else."""

_ACTIVATIONS = _plain(
    "swiglu", "relu", "relu2", "gelu", "silu", "poly_relu", "poly_norm", "poly_norm_glu"
)
_CONTROLS = (
    *_plain("swiglu", "gelu", "relu2", "swiglu_norm", "gelu_norm", "relu2_norm", "poly_norm"),
    Arm("poly_norm_frozen", "poly_norm", optim={"multipliers": _AT_REST}),
)
_ORDER = (
    *_plain("swiglu"),
    *(
        Arm(f"{name}_{order}", name, ActivationOptions(order=order))
        for name in ("poly_relu", "poly_norm")
        for order in (2, 3, 4, 5)
    ),
)
_ROWS = (
    *_plain(*ACTIVATIONS),
    Arm("poly_norm_2", "poly_norm", ActivationOptions(order=2)),
)
_ABLATION = (
    *_plain("swiglu", "poly_norm", "swiglu_norm", "poly_tanh"),
    Arm("poly_norm_frozen", "poly_norm", optim={"multipliers": _AT_REST}),
    Arm("poly_norm_2", "poly_norm", ActivationOptions(order=2)),
    Arm("poly_norm_equal_flops", "poly_norm", flops_of="swiglu"),
)
_COMPOSITION = _plain("swiglu", "poly_relu", "poly_prelu", "poly_norm", "poly_relu_norm")
_COEFFICIENTS = (
    *_plain("swiglu", "poly_norm"),
    Arm("rate_x0", "poly_norm", optim={"multipliers": _AT_REST}),
    Arm("rate_x10", "poly_norm", optim={"multipliers": Multipliers(coefficient=10.0)}),
    Arm("decayed", "poly_norm", decays=("coefficient",)),
    Arm("from_linear", "poly_norm", ActivationOptions(initial=(0.0, 1.0, 0.0, 0.0))),
    Arm("from_cubic", "poly_norm", ActivationOptions(initial=(0.0, 0.0, 0.0, 1.0))),
    Arm("from_bias_1", "poly_norm", ActivationOptions(initial=(1.0, _THIRD, _THIRD, _THIRD))),
)
_FEW_BIT = (
    *_plain("gelu"),
    *(Arm(f"gelu_{bits}_bit", "gelu", ActivationOptions(bits=bits)) for bits in (1, 2, 3, 4)),
)
_PRECISION = tuple(
    Arm(f"{name}_{dtype}", name, dtype=dtype)
    for dtype in ("float32", "bfloat16")
    for name in ("swiglu", "poly_relu", "poly_norm")
)
_OPTIMIZERS = tuple(
    Arm(f"{name}_{optimizer}", name, optim={"optimizer": optimizer})
    for optimizer in ("adamw", "muon")
    for name in ("swiglu", "poly_norm")
)
_SIZES = {
    "half_width": (Fraction(1, 2), Fraction(1)),
    "base": (Fraction(1), Fraction(1)),
    "double_width": (Fraction(2), Fraction(1)),
    "half_depth": (Fraction(1), Fraction(1, 2)),
    "double_depth": (Fraction(1), Fraction(2)),
}
_WIDTH_DEPTH = tuple(
    Arm(f"{name}_{size}", name, width=width, depth=depth)
    for size, (width, depth) in _SIZES.items()
    for name in ("swiglu", "poly_norm")
)

STUDIES: Mapping[str, Study] = {
    "activations": Study(
        "Is PolyCom ahead of the usual activations at equal parameters?",
        _ACTIVATIONS,
        _against(_ACTIVATIONS, REFERENCE),
    ),
    "rows": Study(
        "Which row of the table of activations is best at equal parameters?",
        _ROWS,
        _against(_ROWS, REFERENCE),
        runs_of="activations",
    ),
    "controls": Study(
        "Is PolyNorm's gain the polynomial, the extra norm, or the learned coefficients?",
        _CONTROLS,
        _against(_CONTROLS, REFERENCE, "poly_norm"),
    ),
    "ablation": Study(
        "What is PolyNorm's gain over SwiGLU made of, and is it left at equal FLOPs?",
        _ABLATION,
        _against(_ABLATION, REFERENCE, "poly_norm"),
    ),
    "order": Study("What does the polynomial's order do?", _ORDER, _against(_ORDER, REFERENCE)),
    "composition": Study(
        "Which composition: powers of a rectifier, or norms of powers?",
        _COMPOSITION,
        _against(_COMPOSITION, REFERENCE),
    ),
    "coefficients": Study(
        "How should coefficients be initialised and updated?",
        _COEFFICIENTS,
        _against(_COEFFICIENTS, REFERENCE, "poly_norm"),
    ),
    "precision": Study(
        "Does bfloat16 cost PolyCom more than it costs SwiGLU?",
        _PRECISION,
        (
            *(
                (f"poly_{n}_{d}", f"swiglu_{d}")
                for d in ("float32", "bfloat16")
                for n in ("relu", "norm")
            ),
            *((f"{n}_bfloat16", f"{n}_float32") for n in ("swiglu", "poly_relu", "poly_norm")),
        ),
        tuple(
            ((f"poly_{n}_bfloat16", f"poly_{n}_float32"), ("swiglu_bfloat16", "swiglu_float32"))
            for n in ("relu", "norm")
        ),
    ),
    "few-bit": Study(
        "What does a derivative of few bits cost?", _FEW_BIT, _against(_FEW_BIT, "gelu")
    ),
    "optimizers": Study(
        "Does PolyNorm's gain hold under Muon?",
        _OPTIMIZERS,
        (
            *((f"poly_norm_{o}", f"swiglu_{o}") for o in ("adamw", "muon")),
            *((f"{name}_muon", f"{name}_adamw") for name in ("swiglu", "poly_norm")),
        ),
        ((("poly_norm_muon", "swiglu_muon"), ("poly_norm_adamw", "swiglu_adamw")),),
    ),
    "moe": Study(
        "Does it hold in a mixture of experts?",
        _plain("swiglu", "poly_norm"),
        (("poly_norm", "swiglu"),),
        mixture=True,
    ),
    "width-depth": Study(
        "Does the gain hold as the model grows?",
        _WIDTH_DEPTH,
        tuple((f"poly_norm_{size}", f"swiglu_{size}") for size in _SIZES),
        tuple(
            ((f"poly_norm_{size}", f"swiglu_{size}"), ("poly_norm_base", "swiglu_base"))
            for size in _SIZES
            if size != "base"
        ),
    ),
}
