"""What was predicted, measured: activations by achieved bandwidth, steps by time and MFU.

The prediction is `compile_ahead.predict`'s, of the very program that is timed: a floor.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from experiments.benchmark import shapes
from experiments.benchmark.arg_specs import ARG_SPECS, make_arguments
from experiments.benchmark.calls import JaxFunction
from experiments.benchmark.contest import plan
from experiments.benchmark.harness import Contestant, measure
from experiments.benchmark.options import Options
from experiments.benchmark.rates import peak_flops
from experiments.benchmark.results import Result, Tell, rows_from_seconds
from experiments.benchmark.steps import Ours
from polycom_jax import compile_ahead as aot
from polycom_jax import get_activation
from polycom_jax import params as pm
from polycom_jax._errors import InputError
from polycom_jax.models import mfu
from polycom_jax.table import ACTIVATIONS

STEP_ACTIVATIONS = ("poly_norm", "swiglu")
YARDSTICK = "relu2"
SAMPLE_SECONDS, ROUNDS = 0.05, 5
"""An activation runs at most so long, in so many rounds: there are many."""


@dataclass
class _Measured:
    """Readings and predictions of contestants that are measured one after the other."""

    options: Options
    tell: Tell
    readings: dict[str, list[float]] = field(default_factory=dict)
    predictions: dict[str, aot.Prediction] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], tuple[Any, Contestant]]) -> None:
        """Makes (program, contestant) and measures it; what fails is noted."""
        self.tell(f"{name}: compiling")
        gc.collect()  # the state of the contestant before it
        try:
            program, contestant = make()
            self._predict(name, program)
            self.readings |= measure([contestant], plan(self.options), self.tell)
        except Exception as error:
            self.failures.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")

    def _predict(self, name: str, program: jax.stages.Compiled) -> None:
        try:
            self.predictions[name] = aot.predict(program)
        except InputError as error:  # no card of the table, or without NVIDIA's assembler
            self.left_out["a prediction"] = str(error)

    def result(
        self,
        case: str,
        numbers: Callable[[str, float], Mapping[str, float]],
        references: Sequence[str],
        notes: tuple[str, ...] = (),
    ) -> Result:
        """All of it, the prediction beside what was measured."""

        def both(name: str, seconds: float) -> Mapping[str, float]:
            if name not in self.predictions:
                return numbers(name, seconds)
            predicted = self.predictions[name].seconds
            times = {"predicted ms": 1e3 * predicted, "of the prediction": seconds / predicted}
            return {**numbers(name, seconds), **times}

        rows = rows_from_seconds(self.readings, references, both)
        return Result("card", case, rows, self.left_out, notes, failures=tuple(self.failures))

    def bandwidth(self, name: str, seconds: float) -> Mapping[str, float]:
        """Of all that the program moves, by its text."""
        if name not in self.predictions:
            return {}
        prediction = self.predictions[name]
        rate = prediction.bytes_accessed / seconds
        share = rate / prediction.chip.hbm_bandwidth
        return {"GB/s": rate / 1e9, "of the card's bandwidth": share}


def passes(options: Options, shape: str, which: str, tell: Tell) -> Result:
    """The pass `which` of every activation at a shape."""
    (spec,) = (spec for spec in ARG_SPECS if spec.name == shape)
    x, _, dy = make_arguments(spec, jax.random.key(0))
    other = make_arguments(spec, jax.random.key(1))[0]

    def one(name: str) -> tuple[Any, Contestant]:
        act = get_activation(name)
        hidden = (x, other) if act.gated else (x,)
        arguments = (pm.init(act.specs_at(x.shape[-1]), jax.random.key(0)), *hidden)
        return JaxFunction(name, act.apply, arguments, dy, name).compiled(which)

    short = min(options.sample_seconds, SAMPLE_SECONDS)
    few = min(options.rounds, ROUNDS)
    found = _Measured(replace(options, sample_seconds=short, rounds=few), tell)
    for name in options.activations or ACTIVATIONS:
        try:
            get_activation(name).specs_at(x.shape[-1])
        except InputError as error:  # its groups do not divide the width
            found.left_out[name] = str(error)
        else:
            found.add(name, lambda name=name: one(name))
    references = (YARDSTICK,) if YARDSTICK in found.readings else ()
    return found.result(f"bandwidth of {shape}, {which}", found.bandwidth, references)


def steps(options: Options, model: str, tell: Tell) -> Result:
    """Training steps of a model with PolyNorm and with SwiGLU, one state after the other."""
    options = replace(options, model=model)
    cfg = shapes.model(options, STEP_ACTIVATIONS[0])
    peak, about_peak = peak_flops(cfg.dtype)

    def one(name: str) -> tuple[Any, Contestant]:
        ours = Ours(options, name)
        return ours.compile(), Contestant(name, ours, ours.wait)

    def numbers(name: str, seconds: float) -> Mapping[str, float]:
        rate = shapes.batch_size(options) * cfg.context_length / seconds
        share = mfu(shapes.model(options, name), rate, cfg.context_length, peak) if peak else None
        return {"tokens/s": rate, **({} if share is None else {"MFU": share})}

    found = _Measured(options, tell)
    for name in STEP_ACTIVATIONS:
        found.add(name, lambda name=name: one(name))
    return found.result(f"step of {shapes.describe(options, cfg)}", numbers, (), (about_peak,))
