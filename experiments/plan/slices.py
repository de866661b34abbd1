"""TPU slices by name, and the step that a config would run on one."""

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.run.config import PretrainConfig
from experiments.run.tpu_configs import parts_of
from polycom_jax import compile_ahead as aot
from polycom_jax._errors import require
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.sharding import Rules, make_mesh
from polycom_jax.training import TrainState, abstract_state, make_model_step
from polycom_jax.training.batches import batch_sharding

ROLLED = {"xla_tpu_enable_emitter_rolling": "true"}
"""Machine code with loops rolled, which no one will run: it is emitted faster. The scheduled
program, its arrays and the estimates are the same; only its code, "program", is smaller."""


@dataclass(frozen=True)
class Slice:
    """TPUs to compile for.

    Attributes:
        name: as given.
        chip: a name in `aot.CHIPS`.
        devices: of JAX.
    """

    name: str
    chip: str
    devices: tuple[Any, ...]


def find_slice(name: str | None) -> Slice:
    """The slice of that name: "v5e:4x4", or "2*v5e:16x16" for two joined by a network.

    Raises:
        InputError: no name, one of another form, or a topology that libtpu does not know.
    """
    require(
        name is not None,
        "No TPU slice to plan for: give --topology, as v5e:4x4, or run.tpu_slice in the config.",
    )
    slices, chip, topology = parts_of(str(name))
    return Slice(str(name), chip, tuple(aot.devices(chip, topology, slices=slices)))


@dataclass(frozen=True)
class Step:
    """A training step, lowered for a slice.

    Attributes:
        where: the slice.
        mesh: over its devices.
        state: the abstract train state on it.
        lowered: the program, not yet compiled.
    """

    where: Slice
    mesh: Mesh
    state: TrainState
    lowered: jax.stages.Lowered

    def compile(self, options: tuple[str, ...]) -> jax.stages.Compiled:
        """Compiles it with XLA options of the form NAME=VALUE, and `ROLLED`."""
        named = ROLLED | dict(option.split("=", 1) for option in options)
        return aot.compile(self.lowered, compiler_options=named)


def training_step(config: PretrainConfig, where: Slice) -> Step:
    """The step that `experiments.pretrain` would run there, whole.

    Raises:
        InputError: a mesh that does not fit the slice, or sizes that do not divide over it.
    """
    mesh, rules = make_mesh(**asdict(config.mesh), devices=where.devices), Rules()
    model, optim, data = config.model, config.optim, config.data
    sharding = batch_sharding(mesh, rules)
    parts = sharding.shard_shape((10**6 * len(where.devices), 1))[0]
    count = 10**6 * len(where.devices) // parts
    whole = count * optim.accumulation_steps
    require(
        data.batch_size % whole == 0,
        f"batch_size={data.batch_size} does not divide into accumulation_steps="
        f"{optim.accumulation_steps} over {count} parts of {where.name}; nearest:"
        f" {max(round(data.batch_size / whole), 1) * whole}.",
    )
    shape = (data.batch_size, model.context_length)
    dtypes = {"tokens": jnp.int32, "targets": jnp.int32, "mask": jnp.bool_}
    dtypes |= {"segment_ids": jnp.int32, "positions": jnp.int32}
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, dtype in dtypes.items()
    }
    with compiling_for("tpu"):
        step = make_model_step(model, optim, config.run.steps, mesh)
        state = abstract_state(model, optim, mesh)
        return Step(where, mesh, state, step.lower(state, batch))
