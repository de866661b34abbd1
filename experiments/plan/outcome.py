"""What a compiled step says of itself: memory, time by part, collectives, and what is wrong."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax

from experiments.plan.host_side import HostSide, host_side
from experiments.run.config import PretrainConfig
from experiments.run.planned import Step
from polycom_jax import compile_ahead as aot
from polycom_jax import models
from polycom_jax.models import mfu
from polycom_jax.params import path_name

SPARE = 0.08
"""Share of a chip's memory that a step must leave: for the run time, and for what it fragments."""

GPU_SHARE = 0.75
"""Of a GPU's memory, that JAX takes unless it is told otherwise."""

LARGE = 2**20
"""Bytes of one layer from which on a parameter should not lie whole on every chip."""

# The first of these names in an operation's name stack says which part of the step it is.
PARTS = ("loss", "attention", "moe", "ffn", "embed")
REST = "optimiser and rest"


@dataclass(frozen=True)
class Outcome:
    """A plan's findings; bytes and seconds are a chip's.

    Attributes:
        config: name of the preset and its activation.
        hardware: where.
        mesh: sizes of the axes that split anything.
        compiler: its name and version.
        parameters, active_parameters: counts.
        memory: bytes by kind.
        hbm: bytes that a chip has.
        variants: step time, kernels and traffic with each of the ways in which it was compiled;
            time, parts and collectives elsewhere are the slowest's, memory is the most of all.
        seconds: of a step, predicted.
        parts: share of the step's seconds, largest first.
        collectives: by kind.
        tokens_per_second: over the slice.
        mfu: PaLM's count.
        mfu_causal: with half of the attention, see `models.mfu`.
        days: for all the run's steps.
        machines: what each process has to read, write and hold.
        not_estimated: what the prediction leaves out.
        settings: what the program must be started with.
        problems: why the plan is refused, none if it is good.
    """

    config: str
    hardware: str
    mesh: dict[str, int]
    compiler: str
    parameters: int
    active_parameters: int
    memory: dict[str, int]
    hbm: int
    variants: dict[str, dict[str, float]]
    seconds: float
    parts: dict[str, float]
    collectives: tuple[dict[str, Any], ...]
    tokens_per_second: float
    mfu: float
    mfu_causal: float
    days: float
    machines: HostSide
    not_estimated: tuple[str, ...]
    settings: tuple[str, ...]
    problems: tuple[str, ...]


def examine(
    config: PretrainConfig, step: Step, compiled: Mapping[str, jax.stages.Compiled], messages: str
) -> Outcome:
    """Reads a step that was compiled in one or more ways; `messages` is what the compiler wrote."""
    predictions, model = {name: aot.predict(each) for name, each in compiled.items()}, config.model
    prediction = max(predictions.values(), key=lambda p: p.seconds)
    tokens = config.data.batch_size * model.context_length
    chip, count = prediction.chip, len(step.where.devices)
    rate = tokens / prediction.seconds
    memory = {
        "parameters": held_bytes(step.state.params),
        "optimiser": held_bytes(step.state) - held_bytes(step.state.params),
        "temporaries": max(p.temporary_bytes for p in predictions.values()),
        "program": prediction.code_bytes,
        "peak of all": max(map(peak_bytes, predictions.values())),
    }
    problems = [
        *memory_problems(memory["peak of all"], chip.hbm_bytes),
        *full_copies(messages),
        *replicated(step),
    ]
    return Outcome(
        config=f"{config.preset} with {model.activation_name}",
        hardware=step.where.name,
        mesh={name: size for name, size in step.mesh.shape.items() if size > 1},
        compiler=prediction.compiler,
        parameters=models.count_params(model),
        active_parameters=models.count_active_params(model),
        memory=memory,
        hbm=chip.hbm_bytes,
        variants={name: variant(p) for name, p in predictions.items()},
        seconds=prediction.seconds,
        parts=parts(prediction),
        collectives=tuple(asdict(collective) for collective in prediction.collectives),
        tokens_per_second=rate,
        mfu=mfu(model, rate, model.context_length, chip.peak_flops * count),
        mfu_causal=mfu(
            model, rate, model.context_length, chip.peak_flops * count, attention="causal"
        ),
        days=prediction.seconds * config.run.steps / 86_400,
        machines=host_side(config, step, prediction.seconds),
        not_estimated=prediction.not_estimated,
        settings=settings(chip, memory["peak of all"]),
        problems=tuple(problems),
    )


def peak_bytes(prediction: aot.Prediction) -> int:
    """The most that is alive at once, or what is there throughout, if that is more."""
    whole = prediction.argument_bytes + prediction.temporary_bytes + prediction.code_bytes
    return max(prediction.peak_hbm_bytes, 0 if prediction.chip.platform == "gpu" else whole)


def variant(prediction: aot.Prediction) -> dict[str, float]:
    """What tells one way to compile a step from another."""
    return {
        "seconds": prediction.seconds,
        "kernels": prediction.kernels,
        "bytes_read": prediction.bytes_read,
        "bytes_written": prediction.bytes_written,
        "peak_bytes": peak_bytes(prediction),
    }


def settings(chip: aot.Chip, peak: int) -> tuple[str, ...]:
    """What the program must be started with, so that it may take what it needs."""
    if chip.platform != "gpu" or peak <= GPU_SHARE * chip.hbm_bytes:
        return ()
    return (
        f"XLA_PYTHON_CLIENT_MEM_FRACTION={1 - SPARE:.2f} in the environment: JAX takes"
        f" {GPU_SHARE:.0%} of a card's memory, and this needs {peak / chip.hbm_bytes:.0%}",
    )


def held_bytes(tree: Any) -> int:
    """Bytes that one chip holds of a tree of abstract arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def parts(prediction: aot.Prediction) -> dict[str, float]:
    """Share of the predicted time by part of the step, by `PARTS`; largest first."""
    spent: dict[str, float] = defaultdict(float)
    for row in prediction.rows:
        if row.kind != "asynchronous collective":
            spent[part_of(row.scope)] += row.seconds / prediction.seconds
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def part_of(scope: str) -> str:
    """The part of the step that an operation's name stack names."""
    words = re.split(r"[/()]+", scope)
    return next((word for word in words if word in PARTS), REST)


def memory_problems(needed: int, available: int) -> list[str]:
    """Whether a step leaves `SPARE` of a chip's memory."""
    if needed <= (1 - SPARE) * available:
        return []
    gib = 2**30
    return [
        f"it needs {needed / gib:.2f} GiB a chip of {available / gib:.0f}, and is to leave"
        f" {SPARE:.0%}: take fewer tokens a step, more chips, or --model.remat full"
    ]


def full_copies(messages: str) -> list[str]:
    """What XLA's partitioner says of arrays that it can only reshard by way of a whole copy."""
    found = re.findall(r"Involuntary full rematerialization.*?op_name=\"([^\"]*)\"", messages)
    if not found and "nvoluntary full rematerialization" in messages:
        found = ["an operation without a name"]
    return [f"XLA makes a full copy to reshard {name}" for name in dict.fromkeys(found)]


def replicated(step: Step) -> list[str]:
    """Large parameters that lie whole on every chip, though the mesh splits parameters.

    Numbers a channel are no fault of a mesh that splits no rows, however many layers have them.
    """
    if math.prod(step.mesh.shape[axis] for axis in ("fsdp", "tensor", "expert")) == 1:
        return []
    leaves = jax.tree_util.tree_leaves_with_path(step.state.params)
    return [
        f"parameter {jax.tree_util.keystr(path)} lies whole on every chip"
        for path, leaf in leaves
        if leaf.sharding.is_fully_replicated and layer_bytes(path, leaf) > LARGE
    ]


def layer_bytes(path: tuple[Any, ...], leaf: Any) -> int:
    """Bytes of a parameter, of a stacked one those of a layer."""
    stacked = path_name(path).startswith("layers/")
    return math.prod(leaf.shape[stacked:]) * leaf.dtype.itemsize
