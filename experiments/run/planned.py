"""Slices and machines by name, and the step that a config would run on one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from experiments.run.config import PretrainConfig
from experiments.run.tpu_configs import parts_of
from polycom_jax import compile_ahead as aot
from polycom_jax._errors import require
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.sharding import Rules, make_mesh
from polycom_jax.training import TrainState, abstract_state, make_model_step
from polycom_jax.training.batches import batch_sharding
from polycom_jax.training.state import split_count

ROLLED = {"xla_tpu_enable_emitter_rolling": "true"}
"""Machine code with loops rolled, which no one will run: it is emitted faster. The scheduled
program, its arrays and the estimates are the same; only its code, "program", is smaller."""

XlaOptions = Mapping[str, str | bool]

VARIANTS: Mapping[str, Mapping[str, XlaOptions]] = {
    "tpu": {"libtpu": ROLLED},
    "gpu": aot.PRODUCT_BACKENDS,
}
"""What a step is compiled with on each platform, by name; once with each."""


@dataclass(frozen=True)
class Slice:
    """TPUs or GPUs to compile for.

    Attributes:
        name: as given.
        chip: of which they are.
        devices: of JAX.
    """

    name: str
    chip: aot.Chip
    devices: tuple[Any, ...]


def find_slice(name: str | None) -> Slice:
    """What is of that name: "v5e:4x4", "2*v5e:16x16" joined by a network, "gpu:t4", "8*gpu:h100".

    Raises:
        InputError: no name, one of another form, a topology that libtpu does not know, more GPUs
            than a machine has, or a compiler that is not installed.
    """
    require(
        name is not None,
        "No TPUs or GPUs to plan for: give --hardware, as v5e:4x4 or gpu:h100, or run.hardware in"
        " the config.",
    )
    slices, chip, topology = parts_of(str(name))
    if chip in aot.GPUS:
        aot.without_gpu()
    else:
        aot.without_tpu()
    found = aot.devices(chip, topology, slices=slices)
    return Slice(str(name), aot.CHIPS[chip], tuple(found))


@dataclass(frozen=True)
class Step:
    """A training step, lowered for a slice or a machine.

    Attributes:
        where: which.
        mesh: over its devices.
        state: the abstract train state on it.
        lowered: the program, not yet compiled.
    """

    where: Slice
    mesh: Mesh
    state: TrainState
    lowered: jax.stages.Lowered

    def compile(self, options: tuple[str, ...], variant: XlaOptions) -> jax.stages.Compiled:
        """Compiles it with XLA options NAME=VALUE, which win over those of a variant."""
        named = dict(option.split("=", 1) for option in options)
        return aot.compile(self.lowered, compiler_options={**variant, **named})


def abstract_batch(rows: int, length: int, sharding: NamedSharding | None = None) -> dict[str, Any]:
    """The batch of a step without its numbers: `jax.ShapeDtypeStruct` by name."""
    dtypes = {"tokens": jnp.int32, "targets": jnp.int32, "mask": jnp.bool_}
    dtypes |= {"segment_ids": jnp.int32, "positions": jnp.int32}
    return {
        name: jax.ShapeDtypeStruct((rows, length), dtype, sharding=sharding)
        for name, dtype in dtypes.items()
    }


def training_step(config: PretrainConfig, where: Slice) -> Step:
    """The step that `experiments.pretrain` would run there, whole.

    Raises:
        InputError: a mesh that does not fit the devices, or sizes that do not divide over it.
    """
    mesh, rules = make_mesh(**asdict(config.mesh), devices=where.devices), Rules()
    model, optim, data = config.model, config.optim, config.data
    sharding = batch_sharding(mesh, rules)
    count = split_count(mesh, rules, "batch")
    whole = count * optim.accumulation_steps
    require(
        data.batch_size % whole == 0,
        f"batch_size={data.batch_size} does not divide into accumulation_steps="
        f"{optim.accumulation_steps} over {count} parts of {where.name}; nearest:"
        f" {max(round(data.batch_size / whole), 1) * whole}.",
    )
    batch = abstract_batch(data.batch_size, model.context_length, sharding)
    with compiling_for(where.chip.platform, where.chip.compute_capability):
        step = make_model_step(model, optim, config.run.steps, mesh)
        state = abstract_state(model, optim, mesh)
        return Step(where, mesh, state, step.lower(state, batch))
