"""What studies are made of: arms, and questions about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from polycom_jax._errors import InputError, require, unknown
from polycom_jax.models import ModelConfig, MoEConfig, flops_per_token
from polycom_jax.models.config import Dtype
from polycom_jax.params import Role
from polycom_jax.reference import Reference, is_reference
from polycom_jax.table import ActivationOptions, get_activation
from polycom_jax.training import OptimConfig

Pair = tuple[str, str]
"""(arm, reference)."""


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
        flops_of: an activation whose model's training FLOPs a token this arm's must not exceed: its
            hidden layer is as wide as they allow. None: its parameters are what is matched.
    """

    name: str
    activation: str
    options: ActivationOptions = ActivationOptions()
    optim: Mapping[str, Any] = field(default_factory=dict)
    decays: tuple[Role, ...] = ()
    dtype: Dtype | None = None
    width: Fraction = Fraction(1)
    depth: Fraction = Fraction(1)
    flops_of: str | None = None

    @classmethod
    def of(cls, activation: str) -> "Arm":
        """An activation and nothing else: a row of the table, or one in a file, as it is now.

        Raises:
            InputError: there is none of that name.
        """
        pinned = Reference.parse(activation).pinned() if is_reference(activation) else activation
        return cls(get_activation(activation).name, str(pinned))

    def model(self, base: ModelConfig) -> ModelConfig:
        """The base with this activation and size."""
        found = self._sized(base)
        return within_flops(found, self.flops_of) if self.flops_of else found

    def _sized(self, base: ModelConfig) -> ModelConfig:
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
        return f"{self.name}-{Reference.parse(self.activation).digest}"

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
            new = Arm.of(name)
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


def check_widths(arms: Sequence[Arm], base: ModelConfig) -> None:
    """Refuses arms that read groups of hidden units which do not divide their hidden layer.

    Raises:
        InputError: naming them, before anything is trained.
    """
    wrong: dict[str, InputError] = {}
    for arm in arms:
        cfg = arm.model(base)
        try:
            cfg.activation_fn.specs_at(cfg.hidden_width)
        except InputError as error:
            wrong[arm.name] = error
    require(
        not wrong,
        f"{next(iter(wrong.values()), '')} This model has no arm {', '.join(wrong)}: take another"
        " --model, or name the other arms in --arms.",
    )


def pinned(names: Sequence[str]) -> tuple[str, ...]:
    """Names of activations, those in files with the hash of what stands there now.

    Raises:
        InputError: there is none of such a name.
    """
    return tuple(Arm.of(name).activation for name in names)


def mixture_of(base: ModelConfig) -> ModelConfig:
    """Eight experts of half the width, two for each token: the same active weights."""
    return replace(
        base,
        gated_width=max(2, base.gated_width // 4 * 2),
        moe=MoEConfig(num_experts=8, top_k=2),
        qk_norm="full",
    )


def training_flops(model: ModelConfig) -> int:
    """Of training on a token, forward and backward, the activation's own included; attention is
    counted as causal."""
    return flops_per_token(model, model.context_length, attention="causal").train


def within_flops(cfg: ModelConfig, activation: str) -> ModelConfig:
    """The model with the widest hidden layer, of at most its own width, at which training on a
    token takes no more FLOPs than with `activation`.

    Raises:
        InputError: not even a hidden layer of one element is within that.
    """
    other = replace(cfg, activation=activation, activation_options=ActivationOptions())
    most = training_flops(other)
    wide = cfg.hidden_width
    narrower = (replace(cfg, ffn_width=width) for width in range(wide, 0, -1))
    found = next((model for model in narrower if training_flops(model) <= most), None)
    if found is None:
        raise InputError(
            f"{cfg.activation} has more FLOPs than {activation} at every hidden width up to {wide}."
        )
    return found
