"""The studies: each a question, some arms, and which arm is compared with which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from polycom_jax._errors import require, unknown
from polycom_jax.models import ModelConfig, MoEConfig
from polycom_jax.models.config import Dtype
from polycom_jax.params import Role
from polycom_jax.reference import SHOWN, Reference, is_reference
from polycom_jax.table import ACTIVATIONS, ActivationOptions, get_activation
from polycom_jax.training import Multipliers, OptimConfig

Pair = tuple[str, str]
"""(arm, reference)."""

REFERENCE = "swiglu"
"""What the paper's claims are about: every study that has this arm compares with it."""


@dataclass(frozen=True)
class Arm:
    """One of the things that a study compares: how it departs from the common model and optimiser.

    Attributes:
        name: within the study; a name of folders, too.
        activation: as `polycom_jax.models.ModelConfig` takes it.
        options: of it.
        optim: fields of `OptimConfig` that differ.
        decays: roles of parameters that decay, too.
        dtype: of activations and matrix products; None: the model's.
        width: factor of embedding, heads and hidden width.
        depth: factor of the number of layers.
    """

    name: str
    activation: str
    options: ActivationOptions = ActivationOptions()
    optim: Mapping[str, Any] = field(default_factory=dict)
    decays: tuple[Role, ...] = ()
    dtype: Dtype | None = None
    width: Fraction = Fraction(1)
    depth: Fraction = Fraction(1)

    def model(self, base: ModelConfig) -> ModelConfig:
        """The base with this activation and size."""

        def wider(size: int) -> int:
            return max(1, int(size * self.width))

        return replace(
            base,
            activation=self.activation,
            activation_options=self.options,
            dtype=self.dtype or base.dtype,
            num_layers=max(1, int(base.num_layers * self.depth)),
            embed_dim=wider(base.embed_dim),
            num_heads=wider(base.num_heads),
            num_kv_heads=wider(base.num_kv_heads),
            gated_width=wider(base.gated_width),
        )

    @property
    def folder(self) -> str:
        """Of its runs: of an activation in a file, those of another content are others."""
        if not is_reference(self.activation):
            return self.name
        return f"{self.name}-{(Reference.parse(self.activation).sha256 or '')[:SHOWN]}"

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the activation departs from the common model."""
        return self == Arm(self.name, self.activation)

    def optimizer(self, base: OptimConfig) -> OptimConfig:
        """The base with this arm's changes."""
        return replace(base, **{"decay_roles": (*base.decay_roles, *self.decays), **self.optim})


@dataclass(frozen=True)
class Study:
    """What is asked, of which arms.

    Attributes:
        question: one line.
        arms: in the order of the tables.
        pairs: (arm, reference) of every comparison; together they are one family for Holm's
            correction.
        interactions: (pair, pair) whose differences are compared: does the first pair differ more
            than the second; together one family, too.
        mixture: the common model has a mixture of experts in place of its feed-forward blocks.
        runs_of: the study whose folders it goes on with; arms of one name are the same in both.
    """

    question: str
    arms: tuple[Arm, ...]
    pairs: tuple[Pair, ...]
    interactions: tuple[tuple[Pair, Pair], ...] = ()
    mixture: bool = False
    runs_of: str | None = None

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def only(self, names: Sequence[str]) -> "Study":
        """The study of these arms, in its own order; of all where none is named.

        Raises:
            InputError: no such arm, or no comparison among them.
        """
        known = [arm.name for arm in self.arms]
        for name in names:
            if name not in known:
                raise unknown("arm", name, known)
        if not names:
            return self
        pairs = tuple(pair for pair in self.pairs if set(pair) <= set(names))
        references = ", ".join(dict.fromkeys(reference for _, reference in self.pairs))
        require(
            bool(pairs),
            f"arms={' '.join(names)} leaves nothing to compare; this study compares with"
            f" {references}.",
        )
        return replace(
            self,
            arms=tuple(a for a in self.arms if a.name in names),
            pairs=pairs,
            interactions=tuple(both for both in self.interactions if set(both) <= set(pairs)),
        )

    def with_activations(self, names: Sequence[str]) -> "Study":
        """The study with these activations as further arms, compared with its plain references.

        Raises:
            InputError: an activation that there is not, or is an arm already; or a study that
                compares something else than activations.
        """
        if not names:
            return self
        plain = {arm.name for arm in self.arms if arm.is_plain}
        references = [name for name in dict.fromkeys(b for _, b in self.pairs) if name in plain]
        require(
            bool(references),
            "--activation goes with a study whose arms differ in the activation alone, as"
            " `activations`; this one has no such reference.",
        )
        arms = list(self.arms)
        for name in names:
            new = Arm(get_activation(name).name, pinned(name))
            require(
                new.name not in [arm.name for arm in arms],
                f"--activation {name}: the study has an arm {new.name!r} already.",
            )
            arms.append(new)
        added = arms[len(self.arms) :]
        pairs = (*self.pairs, *((arm.name, other) for arm in added for other in references))
        return replace(self, arms=tuple(arms), pairs=pairs)

    def groups(self) -> list[list[str]]:
        """Names of arms that are compared with each other, at once or through others."""
        found = [{arm.name} for arm in self.arms]
        for pair in self.pairs:
            joined = [group for group in found if group & set(pair)]
            found = [group for group in found if group not in joined] + [set().union(*joined)]
        return [[arm.name for arm in self.arms if arm.name in group] for group in found]

    def model(self, base: ModelConfig) -> ModelConfig:
        """What all arms have in common."""
        return mixture_of(base) if self.mixture and not base.is_moe else base


def pinned(name: str) -> str:
    """The name of an activation; of one in a file with the hash of that."""
    return str(Reference.parse(name).pinned()) if is_reference(name) else name


def mixture_of(base: ModelConfig) -> ModelConfig:
    """Eight experts of half the width, two for each token: the same active weights."""
    return replace(
        base,
        gated_width=max(2, base.gated_width // 4 * 2),
        moe=MoEConfig(num_experts=8, top_k=2),
        qk_norm="full",
    )


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
