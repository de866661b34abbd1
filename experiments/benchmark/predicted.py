"""What the suites tpu and gpu share: operations and blocks, compiled for chips that are not here.

Nothing runs: each contestant is compiled for one chip, and `compile_ahead.predict` says what that
rests on.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark import shapes
from experiments.benchmark.arg_specs import ArgSpec
from experiments.benchmark.options import BEST, Options
from experiments.benchmark.readings import Readings
from experiments.benchmark.results import Result, Row, Spread, Tell, failure
from polycom_jax import compile_ahead as aot
from polycom_jax import get_activation
from polycom_jax import params as pm
from polycom_jax._errors import InputError
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.kernels.sharded import unsharded_features
from polycom_jax.models import ModelConfig
from polycom_jax.models.layers import ffn, ffn_specs

REFERENCES = ("relu2", "swiglu")
SHAPE = "dense_1b"
MODEL = "dense-1b"
TOKENS = 8192
READINGS = "readings.jsonl"
"""File of predictions in the folder of results."""

MIB = 2**20

Numbers = Callable[[aot.Prediction], Mapping[str, float]]
"""What a row says beside its time."""


@dataclass(frozen=True)
class Suite:
    """What tells one of the suites from the other.

    Attributes:
        name: of the suite.
        activations: that are measured unless others are asked for.
        implementations: of each, that are a way to run it there.
        numbers: of a prediction.
    """

    name: str
    activations: tuple[str, ...]
    implementations: tuple[str, ...]
    numbers: Numbers


@dataclass(frozen=True)
class Contestant:
    """f(*arguments), differentiated by all of them; the arguments are abstract.

    Attributes:
        f: of the arguments.
        arguments: trees of abstract arrays.
    """

    f: Callable[..., Any]
    arguments: tuple[Any, ...]

    def program(self, which: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The pass `which`, with its arguments."""

        def vjp(*arguments: Any) -> Any:
            return jax.vjp(self.f, *arguments)

        def both(dy: Any, *arguments: Any) -> Any:
            y, pull = vjp(*arguments)
            return y, pull(dy)

        y, pull = jax.eval_shape(vjp, *self.arguments)
        return {
            "forward": (self.f, self.arguments),
            "backward": (lambda pull, dy: pull(dy), (pull, y)),
            "both": (both, (y, *self.arguments)),
        }[which]


Maker = Callable[[], Contestant]
"""Makes one; `InputError` says why it cannot be at this shape, and the others go on."""


def compiled_for(
    suite: Suite,
    options: Options,
    find: Callable[[Suite, Options], tuple[str, Mapping[str, Maker]]],
    chip: str,
    which: str,
    xla: Mapping[str, Any],
    tell: Tell,
) -> Result:
    """The pass `which` of every contestant, predicted for one chip with these options of XLA."""
    case, contestants = find(suite, options)
    device, capability = aot.devices(chip)[0], aot.CHIPS[chip].compute_capability

    def lowered(make: Maker) -> jax.stages.Lowered:
        with compiling_for(suite.name, capability), unsharded_features(True):
            program, arguments = make().program(which)
            return jax.jit(program).lower(*aot.place(arguments, device))

    lower = {name: partial(lowered, make) for name, make in contestants.items()}
    found = predict_each(lower, options, chip, xla, tell)
    return Result(
        suite.name,
        f"{case}, {which}, one {chip}",
        rows(found.predictions, suite.numbers, (*options.activations[:1], *REFERENCES)),
        found.left_out,
        (*notes(found.predictions), *(f"compiled with {k}={v}" for k, v in xla.items())),
        kind="predicted",
        failures=found.failures,
        chip=chip,
        work=", ".join((case, *(f"{k}={v}" for k, v in xla.items()))),
        which=which,
    )


@dataclass(frozen=True)
class Predicted:
    """What became of the contestants of a case.

    Attributes:
        predictions: by contestant.
        left_out: contestant -> why there is none, where that is no failure.
        failures: a line each.
    """

    predictions: Mapping[str, aot.Prediction]
    left_out: Mapping[str, str]
    failures: tuple[str, ...]


def predict_each(
    lower: Mapping[str, Callable[[], jax.stages.Lowered]],
    options: Options,
    chip: str,
    xla: Mapping[str, Any],
    tell: Tell,
) -> Predicted:
    """Predicts each program that `lower` makes; one that fails does not end the others.

    What the folder of results holds of an earlier run is not compiled again.
    """
    readings = Readings(Path(options.out) / READINGS)
    predictions: dict[str, aot.Prediction] = {}
    left_out: dict[str, str] = {}
    failures: list[str] = []
    began = time.monotonic()
    for index, (name, lowered) in enumerate(lower.items()):
        left = (time.monotonic() - began) / max(index, 1) * (len(lower) - index)
        more = f", about {left:.0f} s left of this case" if index else ""
        tell(f"compiling {name} ({index + 1} of {len(lower)}{more})")
        try:
            predictions[name] = readings.predict(lowered(), chip, xla)
        except InputError as error:  # it does not fit, or this version cannot take the arguments
            left_out[name] = str(error)
        except Exception as error:
            failures.append(f"{name}: {failure(error)}")
    return Predicted(predictions, left_out, tuple(failures))


def rows(
    predictions: Mapping[str, aot.Prediction],
    numbers: Numbers,
    references: Sequence[str] = REFERENCES,
) -> tuple[Row, ...]:
    """One a contestant: predicted time, its ratio to the references', traffic and memory."""
    references = [name for name in dict.fromkeys(references) if name in predictions]
    return tuple(
        Row(
            name,
            Spread.exact(prediction.seconds),
            {
                other: Spread.exact(prediction.seconds / predictions[other].seconds)
                for other in references
            },
            numbers(prediction),
        )
        for name, prediction in predictions.items()
    )


def notes(predictions: Mapping[str, aot.Prediction]) -> tuple[str, ...]:
    """What the predictions rest on, and what they leave out."""
    bases = dict.fromkeys(_basis(prediction) for prediction in predictions.values())
    missing = [
        f"{name}: no estimate of {what}"
        for name, prediction in predictions.items()
        for what in prediction.not_estimated
    ]
    kernels = [
        name for name, p in predictions.items() if p.kernel_seconds and p.chip.platform == "tpu"
    ]
    rooflines = (
        f"of {', '.join(kernels)} the kernels are a roofline, a floor, not the compiler's estimate"
    )
    return (*bases, *([rooflines] if kernels else []), *missing)


def _basis(prediction: aot.Prediction) -> str:
    if prediction.chip.platform == "tpu":
        return f"predicted by {prediction.compiler}: estimated cycles x loop trips"
    return (
        f"compiled by {prediction.compiler}; of each kernel the bytes over bandwidth or FLOPs over"
        " peak, whichever is more: a floor"
    )


def operations(spec: ArgSpec, suite: Suite, options: Options) -> tuple[str, Mapping[str, Maker]]:
    """Shape and type in words, and the activations alone."""
    if options.dtype is not None:
        spec = replace(spec, dtype=jnp.dtype(options.dtype))
    x = jax.ShapeDtypeStruct(spec.shape, spec.dtype)

    def contestant(name: str, **changes: Any) -> Contestant:
        act = get_activation(name, **changes)
        params = pm.abstract(act.specs_at(spec.shape[-1]))
        arguments = (params, x, x) if act.gated else (params, x)
        return Contestant(act.apply, arguments)

    found = {}
    for name in options.activations or suite.activations:
        for label, changes in versions(name, suite, options).items():
            found[label] = partial(contestant, name, **changes)
    found.setdefault("relu2", partial(contestant, "relu2"))
    dtype = jnp.dtype(spec.dtype).name
    return f"{' x '.join(map(str, spec.shape))} {dtype}", found


def blocks(suite: Suite, options: Options) -> tuple[str, Mapping[str, Maker]]:
    """Model and shape in words, and its feed-forward block with each activation."""
    options = replace(options, model=options.model or MODEL)
    found: dict[str, Maker] = {}
    case = ""
    for name in dict.fromkeys((*(options.activations or suite.activations), *REFERENCES)):
        for label, changes in versions(name, suite, options).items():
            cfg = shapes.model(replace(options, **changes), name)
            batch = options.batch_size or max(TOKENS // cfg.context_length, 1)
            x = jax.ShapeDtypeStruct((batch, cfg.context_length, cfg.embed_dim), cfg.dtype)
            found[label] = partial(_block, cfg, x)
            case = f"ffn, {options.model}, {batch} x {cfg.context_length} tokens, {cfg.dtype}"
    return case, found


def _block(cfg: ModelConfig, x: Any) -> Contestant:
    specs = ffn_specs(cfg)
    params = jax.eval_shape(lambda tree: pm.cast(specs, tree, cfg.dtype), pm.abstract(specs))
    return Contestant(lambda x, params: ffn(cfg, params, x, None), (x, params))


def versions(name: str, suite: Suite, options: Options) -> dict[str, dict[str, Any]]:
    """Label -> options of an activation: every implementation that is a way to run it there."""
    if "implementation" not in get_activation(name).reads:
        return {name: {}}
    if options.implementation == BEST:
        return {name: {"implementation": None}}
    asked: Sequence[str] = (
        [options.implementation] if options.implementation is not None else suite.implementations
    )
    return {
        name if implementation == "xla" else f"{name} ({implementation})": {
            "implementation": implementation
        }
        for implementation in asked
    }
