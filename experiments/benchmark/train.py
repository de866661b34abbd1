"""Suite train: training steps, from a batch on the device to updated parameters."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from experiments.benchmark import peers, shapes
from experiments.benchmark.contest import CLOCKS, hold
from experiments.benchmark.fresh import measure_fresh
from experiments.benchmark.harness import Contestant
from experiments.benchmark.options import Options
from experiments.benchmark.rates import peak_flops
from experiments.benchmark.results import Case, Result, Tell
from experiments.benchmark.steps import HF, HF_ACTIVATION, Step, make_step
from polycom_jax.models import mfu

ACTIVATIONS = ("swiglu", "poly_norm", "relu2")
PEERS = ("yardsticks", "hf-llama")


def cases(options: Options) -> list[Case]:
    """One: all contestants take steps of the same model at equal numbers of parameters."""
    return [Case("train", shapes.name(options), partial(_run, options))]


def _run(options: Options, tell: Tell) -> Result:
    chosen, left_out = peers.split(options.peers, PEERS)
    activations = list(options.activations or ACTIVATIONS)
    if "yardsticks" not in chosen and not options.activations:
        activations.remove("relu2")
    activations, unfit = shapes.fitting(options, activations)
    left_out |= unfit
    names = list(activations)
    if "hf-llama" in chosen and HF_ACTIVATION in names:
        names.insert(1, HF)
    elif "hf-llama" in chosen:
        left_out[HF] = f"its activation is {HF_ACTIVATION}, which is not among --activations"
    # Before anything is held in this process: a GPU's memory is one.
    fresh: dict[str, Mapping[str, float]] = {}
    for name in names if options.fresh else ():
        tell(f"{name} in a process of its own")
        fresh[name] = measure_fresh(options, name)
    cfg = shapes.model(options, activations[0])
    peak, about_peak = peak_flops(cfg.dtype, CLOCKS[options.clock])
    tell("making states")
    return hold(
        "train",
        shapes.describe(options, cfg),
        [_contestant(name, make_step(options, name)) for name in names],
        options,
        tell,
        dtype=cfg.dtype,
        references=tuple(dict.fromkeys((activations[0], "relu2"))),
        left_out=left_out,
        numbers=lambda readings: partial(_numbers, options, peak, fresh),
        notes=(about_peak, *_notes(options, activations)),
    )


def _notes(options: Options, activations: Sequence[str]) -> tuple[str, ...]:
    clip, ours = shapes.optimizer(options).clip_norm, ", ".join(activations)
    return (
        f"a step: loss, gradients, clip at {clip}, AdamW; ours: {ours};"
        " MFU counts all pairs of positions (as PaLM), and half of them (causal)",
    )


def _contestant(name: str, step: Step) -> Contestant:
    """Its first call gives the loss and the gradient norm of the initial parameters: both sides
    start from the same."""
    seen: list[tuple[float, float]] = []

    def values() -> list[np.ndarray]:
        if not seen:
            outcome = step()
            step.wait(outcome)
            seen.append(step.numbers(outcome))
        return [np.array(number) for number in seen[0]]

    work = HF_ACTIVATION if name == HF else name
    return Contestant(name, step, step.wait, work=work, values=values)


def _numbers(
    options: Options,
    peak: float | None,
    fresh: Mapping[str, Mapping[str, float]],
    name: str,
    seconds: float,
) -> Mapping[str, float]:
    cfg = shapes.model(options, HF_ACTIVATION if name == HF else name)
    rate = shapes.batch_size(options) * cfg.context_length / seconds
    found = {"tokens/s": rate}
    if peak is not None:
        found["MFU, PaLM"] = mfu(cfg, rate, cfg.context_length, peak)
        found["MFU, causal"] = mfu(cfg, rate, cfg.context_length, peak, attention="causal")
    return {**found, **fresh.get(name, {})}
