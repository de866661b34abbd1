"""Optimisers; what decays, how fast it learns, and whether at all, follow a parameter's role."""

import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from polycom_jax import params as pm
from polycom_jax._errors import require, unknown
from polycom_jax._fields import check_fields, check_range
from polycom_jax.params import Params, ParamSpec, Role, Specs
from polycom_jax.training.loss_scale import LossScaling
from polycom_jax.training.schedules import ScheduleName, warmed_up
from polycom_jax.training.update_rules import (
    FOR_MATRICES,
    RULES,
    WIDTH_POWERS,
    Moments,
    OptimizerName,
    by_spec,
)
from polycom_jax.training.weight_average import averaging


@dataclass(frozen=True)
class Multipliers:
    """Learning rate of the parameters of each role, in units of the schedule's.

    Parameters with 0 are frozen: they have no gradient, neither decay nor moments, and no part in
    `grad_norm` and the clip.

    Attributes:
        matrix: matrices of attention, feed-forward blocks and experts.
        embedding: embedding and unembedding.
        norm: scales of norms.
        coefficient: PolyCom coefficients, and what other activations learn.
        router: routers of a mixture of experts.
    """

    matrix: float = 1.0
    embedding: float = 1.0
    norm: float = 1.0
    coefficient: float = 1.0
    router: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "multipliers.")
        check_range(self, "at least 0 and finite", *asdict(self), prefix="multipliers.")
        require(any(asdict(self).values()), "multipliers: all are 0, so nothing is trained.")


@dataclass(frozen=True)
class OptimConfig:
    """How parameters are updated.

    Attributes:
        peak_learning_rate: learning rate at the end of the warm-up.
        schedule: how the rate falls after the warm-up, see `schedules.SHAPES`.
        final_learning_rate_fraction: the schedule ends at this share of the peak ("constant" stays
            there).
        warmup_steps: updates over which the rate rises linearly.
        decay_steps: the update at which the rate reaches its end, warm-up included. Default: the
            run's last one.
        decay_fraction: share of `decay_steps` over which "wsd" falls.
        b1: beta_1 of AdamW and Lion.
        b2: beta_2 of AdamW and Lion.
        eps: AdamW's epsilon, outside the root.
        weight_decay: decoupled weight decay: each update subtracts learning rate x weight
            decay x parameter.
        decay_roles: roles of the parameters that decay. By default not PolyCom coefficients, as in
            both official code bases, nor norms, as in the dense one.
        clip_norm: largest global norm of the gradient; a larger gradient is scaled down to it.
            None: no clipping.
        accumulation_steps: micro-batches that a batch is processed in; the result is the same.
        loss_scaling: "dynamic": the loss is multiplied by a power of two while it is
            differentiated, as float16 needs; one that gradients overflow with is halved, and its
            update left out. "none": it is not.
        optimizer: "adamw"; "muon" or "adafactor" for matrices, with AdamW for the rest; "lion",
            whose rate is a third to a tenth of AdamW's and weight decay as much larger.
        z_loss: coefficient of a further loss, the mean over targets of log(sum(exp(logits)))^2,
            which keeps logits from drifting (PaLM, arXiv 2204.02311, section 5: 1e-4). 0: none.
        ema_decay: decay of an exponential moving average of the parameters, which the state then
            holds too and training does not depend on. None: no average.
        coefficient_multiplier: old name of `multipliers.coefficient`, a further factor on it; it
            goes with the next release.
        multipliers: factor on the learning rate by role of the parameter; 0 freezes.
    """

    peak_learning_rate: float = 3e-4
    schedule: ScheduleName = "cosine"
    final_learning_rate_fraction: float = 0.1
    warmup_steps: int = 0
    decay_steps: int | None = None
    decay_fraction: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_roles: tuple[Role, ...] = ("matrix", "embedding", "router")
    clip_norm: float | None = 1.0
    accumulation_steps: int = 1
    loss_scaling: LossScaling = "none"
    optimizer: OptimizerName = "adamw"
    z_loss: float = 0.0
    ema_decay: float | None = None
    coefficient_multiplier: float = 1.0
    multipliers: Multipliers = Multipliers()

    def __post_init__(self) -> None:
        check_fields(self)
        check_range(self, "positive and finite", "peak_learning_rate", "eps")
        check_range(
            self, "at least 0 and finite", "weight_decay", "z_loss", "coefficient_multiplier"
        )
        check_range(self, "at least 0 and below 1", "b1", "b2")
        check_range(self, "at least 0", "warmup_steps")
        check_range(self, "at least 1", "accumulation_steps")
        self._take_former_spelling()
        fraction = self.final_learning_rate_fraction
        require(
            0 <= fraction <= 1,
            f"final_learning_rate_fraction={fraction} must lie between 0 and 1: "
            "it is a share of peak_learning_rate.",
        )
        require(
            0 < self.decay_fraction <= 1,
            f"decay_fraction={self.decay_fraction} must be above 0 and at most 1: it is a share of"
            " decay_steps.",
        )
        require(
            self.decay_steps is None or self.decay_steps > self.warmup_steps,
            f"decay_steps={self.decay_steps} must be greater than warmup_steps="
            f"{self.warmup_steps}, which it includes; or none, for the run's length.",
        )
        require(
            self.clip_norm is None or 0 < self.clip_norm < float("inf"),
            f"clip_norm={self.clip_norm} must be positive and finite; or none, for no clipping.",
        )
        require(
            self.optimizer not in FOR_MATRICES or self.multipliers.matrix > 0,
            f"optimizer={self.optimizer} is for matrices, which multipliers.matrix=0 freezes; take"
            " adamw.",
        )
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"ema_decay={self.ema_decay} must be above 0 and below 1, as 0.999; or none, for no"
            " average.",
        )
        for role in self.decay_roles:
            if role not in get_args(Role):
                raise unknown("parameter role in decay_roles", role, get_args(Role))

    def _take_former_spelling(self) -> None:
        factor = self.coefficient_multiplier
        if factor == 1:
            return
        text = "optim.coefficient_multiplier is now optim.multipliers.coefficient, where 0 freezes."
        warnings.warn(text, DeprecationWarning, stacklevel=4)
        joint = replace(self.multipliers, coefficient=self.multipliers.coefficient * factor)
        object.__setattr__(self, "multipliers", joint)
        object.__setattr__(self, "coefficient_multiplier", 1.0)


def make_schedule(optim: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate of each update of a run of `steps` updates, see `schedules.warmed_up`.

    Args:
        optim: gives shape, peak, end, warm-up and horizon (`decay_steps`, or `steps`).
        steps: length of the run.

    Returns:
        A function from the number of updates done (int32) to the rate (float32).

    Raises:
        InputError: `steps` is below 1.
    """
    require(steps >= 1, f"steps={steps} must be at least 1.")
    return warmed_up(
        optim.schedule,
        peak=optim.peak_learning_rate,
        final=optim.final_learning_rate_fraction,
        warmup=optim.warmup_steps,
        horizon=steps if optim.decay_steps is None else optim.decay_steps,
        decay_fraction=optim.decay_fraction,
    )


def make_optimizer(
    optim: OptimConfig, specs: Specs, steps: int | None
) -> optax.GradientTransformationExtraArgs:
    """A clip of the global norm, the optimiser's rule, weight decay, factors by role and the rate.

    AdamW is that of Loshchilov and Hutter (arXiv 1711.05101), Muon Jordan's with the update's size
    of Liu et al. (arXiv 2502.16982), Lion Chen et al.'s (arXiv 2302.06675), Adafactor Shazeer and
    Stern's (arXiv 1804.04235) without momentum and with the schedule's rate.

    Args:
        optim: the numbers.
        specs: the model's parameters; their roles say what decays, what learns at another rate and
            what is frozen; their `width_multiple`, by how much a matrix of a model in muP learns
            less. Decay is of the schedule's rate alone, so that it does not weaken with the width.
        steps: length of the run, which the schedule may need. None: there is no schedule, and each
            update takes its rate as the argument `learning_rate`; the state is the same.

    Returns:
        The transformation. Moments have the parameters' shapes, but for Adafactor's sums over rows
        and columns, and float32; frozen ones have none.
        With `optim.ema_decay`, its state is an `AveragedState`.
    """
    rate = (
        scale_by_given_rate()
        if steps is None
        else optax.scale_by_learning_rate(make_schedule(optim, steps))
    )
    parts = [
        RULES[optim.optimizer](Moments(optim.b1, optim.b2, optim.eps), specs),
        optax.add_decayed_weights(optim.weight_decay, pm.mask(specs, set(optim.decay_roles))),
        _scale_by_role(optim, specs),
        rate,
    ]
    if any(spec.width_multiple != 1 for spec in jax.tree.leaves(specs, is_leaf=pm.is_spec)):
        parts.insert(1, _scale_by_width(optim, specs))
    if optim.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(optim.clip_norm))
    optimizer = _without_frozen(optax.chain(*parts), optim, specs)
    return optimizer if optim.ema_decay is None else averaging(optimizer, optim.ema_decay)


def frozen_roles(optim: OptimConfig) -> frozenset[str]:
    """The roles whose parameters are not trained."""
    return frozenset(role for role, factor in asdict(optim.multipliers).items() if factor == 0)


def scale_by_given_rate() -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_learning_rate` of a rate that each update is given as `learning_rate`."""

    def update(
        updates: Params, state: Any, params: Params | None = None, **given: Any
    ) -> tuple[Params, Any]:
        step_size: Float[Array, ""] = -given["learning_rate"]
        scaled = jax.tree.map(lambda u: jnp.asarray(step_size, u.dtype) * u, updates)
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    start = optax.scale_by_schedule(lambda count: 1.0).init
    return optax.GradientTransformationExtraArgs(start, update)


def _scale_by_width(optim: OptimConfig, specs: Specs) -> optax.GradientTransformation:
    power = WIDTH_POWERS[optim.optimizer]

    def scaled(update: Any, spec: ParamSpec) -> Any:
        return update if spec.width_multiple == 1 else update * spec.width_multiple**-power

    return optax.stateless(lambda updates, params: by_spec(scaled, updates, specs))


def _scale_by_role(optim: OptimConfig, specs: Specs) -> optax.GradientTransformation:
    factors = asdict(optim.multipliers)

    def scaled(update: Any, spec: ParamSpec) -> Any:
        return update if factors[spec.role] == 1 else update * factors[spec.role]

    by_role = optax.stateless(lambda updates, params: by_spec(scaled, updates, specs))
    # Masked by nothing: so the state is the tree that earlier versions have saved.
    return optax.masked(by_role, pm.map_specs(lambda _: True, specs))


def _without_frozen(
    trained: optax.GradientTransformationExtraArgs, optim: OptimConfig, specs: Specs
) -> optax.GradientTransformationExtraArgs:
    frozen = frozen_roles(optim)
    if not frozen:
        return trained
    there = {spec.role for spec in jax.tree.leaves(specs, is_leaf=pm.is_spec)}
    require(
        not there <= frozen,
        f"multipliers of {', '.join(sorted(there))} are 0, and the model has no other parameters:"
        " nothing is trained. Give one of them a factor, or take an activation that learns.",
    )
    labels = pm.map_specs(lambda spec: "frozen" if spec.role in frozen else "trained", specs)
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)
