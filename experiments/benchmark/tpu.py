"""Suite tpu: what libtpu's compiler makes of our operations and blocks for TPUs that are not here.

Nothing runs: each contestant is compiled for one chip, and `compile_ahead.predict` says what that
rests on. It needs the libtpu wheel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark import shapes
from experiments.benchmark.arg_specs import ARG_SPECS, ArgSpec
from experiments.benchmark.options import Options
from experiments.benchmark.results import Case, Result, Row, Spread, Tell
from polycom_jax import compile_ahead as aot
from polycom_jax import get_activation
from polycom_jax import params as pm
from polycom_jax._errors import InputError
from polycom_jax.kernels.implementations import IMPLEMENTATIONS, compiling_for
from polycom_jax.kernels.sharded import unsharded_features
from polycom_jax.models import ModelConfig
from polycom_jax.models.layers import ffn, ffn_specs

ACTIVATIONS = ("poly_norm", "poly_relu")
REFERENCES = ("relu2", "swiglu")
SHAPE = "dense_1b"
MODEL = "dense-1b"
TOKENS = 8192
MIB = 2**20


@dataclass(frozen=True)
class _Contestant:
    """f(*arguments), differentiated by all of them; the arguments are abstract."""

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


def cases(options: Options) -> list[Case]:
    """One for each chip and pass, of the operations at each shape and of the whole block."""
    aot.without_tpu()
    chosen = options.shapes or (SHAPE,)
    specs = [spec for spec in ARG_SPECS if spec.name in chosen]
    return [
        Case("tpu", f"{what} {which} on {chip}", partial(_run, options, find, chip, which))
        for chip in options.chips
        for which in options.passes
        for what, find in (
            *((f"ops {spec.name}", partial(_operations, spec)) for spec in specs),
            ("ffn", _blocks),
        )
    ]


def _run(
    options: Options,
    find: Callable[[Options], tuple[str, Mapping[str, _Contestant]]],
    chip: str,
    which: str,
    tell: Tell,
) -> Result:
    case, contestants = find(options)
    device, options_used = aot.devices(chip)[0], aot.CHIPS[chip].compiler_options
    predictions: dict[str, aot.Prediction] = {}
    left_out: dict[str, str] = {}
    for name, contestant in contestants.items():
        tell(f"compiling {name}")
        try:
            with compiling_for("tpu"), unsharded_features(True):
                program, arguments = contestant.program(which)
                placed = aot.place(arguments, device)
                compiled = aot.compile(program, *placed, compiler_options=options_used)
        except InputError as error:  # it does not fit, or this version cannot take the arguments
            left_out[name] = str(error)
        else:
            predictions[name] = aot.predict(compiled)
    return Result(
        "tpu",
        f"{case}, {which}, one {chip}",
        rows(predictions),
        left_out,
        (*notes(predictions), *(f"compiled with {k}={v}" for k, v in options_used.items())),
        kind="predicted",
    )


def rows(predictions: Mapping[str, aot.Prediction]) -> tuple[Row, ...]:
    """One a contestant: predicted time, its ratio to the references', traffic and memory."""
    references = [name for name in REFERENCES if name in predictions]
    return tuple(
        Row(
            name,
            Spread.exact(prediction.seconds),
            {
                other: Spread.exact(prediction.seconds / predictions[other].seconds)
                for other in references
            },
            {
                "Mcycles": prediction.cycles / 1e6,
                "kernels ms": prediction.kernel_seconds * 1e3,
                "MiB moved": prediction.bytes_accessed / MIB,
                "MiB temporaries": prediction.temporary_bytes / MIB,
            },
        )
        for name, prediction in predictions.items()
    )


def notes(predictions: Mapping[str, aot.Prediction]) -> tuple[str, ...]:
    """What the predictions rest on, and what they leave out."""
    versions = dict.fromkeys(prediction.libtpu for prediction in predictions.values())
    missing = [
        f"{name}: no estimate of {what}"
        for name, prediction in predictions.items()
        for what in prediction.not_estimated
    ]
    kernels = [name for name, p in predictions.items() if p.kernel_seconds]
    rooflines = (
        f"of {', '.join(kernels)} the kernels are a roofline, a floor, not the compiler's estimate"
    )
    return (
        *(f"predicted by libtpu {version}: estimated cycles x loop trips" for version in versions),
        *([rooflines] if kernels else []),
        *missing,
    )


def _operations(spec: ArgSpec, options: Options) -> tuple[str, Mapping[str, _Contestant]]:
    if options.dtype is not None:
        spec = replace(spec, dtype=jnp.dtype(options.dtype))
    x = jax.ShapeDtypeStruct(spec.shape, spec.dtype)

    def contestant(name: str, **changes: Any) -> _Contestant:
        act = get_activation(name, **changes)
        params = pm.abstract(act.specs)
        arguments = (params, x, x) if act.gated else (params, x)
        return _Contestant(act.apply, arguments)

    found = {}
    for name in options.activations or ACTIVATIONS:
        for label, changes in _versions(name, options).items():
            found[label] = contestant(name, **changes)
    found.setdefault("relu2", contestant("relu2"))
    dtype = jnp.dtype(spec.dtype).name
    return f"{' x '.join(map(str, spec.shape))} {dtype}", found


def _blocks(options: Options) -> tuple[str, Mapping[str, _Contestant]]:
    options = replace(options, model=options.model or MODEL)
    found: dict[str, _Contestant] = {}
    case = ""
    for name in dict.fromkeys((*(options.activations or ACTIVATIONS), *REFERENCES)):
        for label, changes in _versions(name, options).items():
            cfg = shapes.model(replace(options, **changes), name)
            batch = options.batch_size or max(TOKENS // cfg.context_length, 1)
            x = jax.ShapeDtypeStruct((batch, cfg.context_length, cfg.embed_dim), cfg.dtype)
            found[label] = _block(cfg, x)
            case = f"ffn, {options.model}, {batch} x {cfg.context_length} tokens, {cfg.dtype}"
    return case, found


def _block(cfg: ModelConfig, x: Any) -> _Contestant:
    specs = ffn_specs(cfg)
    params = jax.eval_shape(lambda tree: pm.cast(specs, tree, cfg.dtype), pm.abstract(specs))
    return _Contestant(lambda x, params: ffn(cfg, params, x, None), (x, params))


def _versions(name: str, options: Options) -> dict[str, dict[str, Any]]:
    """Label -> options of an activation: every implementation that is a way to run it on a TPU.

    `cpu` compiles too: it takes the block minutes, and tells nothing.
    """
    if "implementation" not in get_activation(name).reads:
        return {name: {}}
    asked: Sequence[str] = (
        [options.implementation]
        if options.implementation is not None
        else [i for i in IMPLEMENTATIONS if i not in ("reference", "cpu")]
    )
    return {
        name if implementation == "xla" else f"{name} ({implementation})": {
            "implementation": implementation
        }
        for implementation in asked
    }
