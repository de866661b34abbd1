"""The devices of a run, and whether its settings fit them: asked before anything is read."""

from dataclasses import asdict

import jax
from jax.sharding import Mesh

from experiments.run.config import PretrainConfig
from experiments.run.tpu_configs import device_count, made_for
from polycom_jax._errors import InputError, require
from polycom_jax.sharding import Rules, make_mesh
from polycom_jax.training import abstract_state, batch_rows
from polycom_jax.training.state import split_count
from polycom_jax.training.step import check_parts


def mesh_of(config: PretrainConfig) -> Mesh:
    """The mesh over all devices.

    Raises:
        InputError: its sizes do not fit them, or they are not those that the settings are made
            for; files of `tpu_configs/` that would fit are named.
    """
    check_hardware(config.run.hardware)
    try:
        return make_mesh(**asdict(config.mesh))
    except InputError as error:
        files = made_for(jax.device_count())
        fitting = f" Made for {jax.device_count()} devices: {', '.join(files)}." if files else ""
        raise InputError(f"{error}{fitting}") from error


def check_hardware(hardware: str | None) -> None:
    """Raises `InputError` where settings for some hardware meet another number of devices."""
    needed, there = device_count(hardware) if hardware else 0, jax.device_count()
    require(
        needed in (0, there),
        f"run.hardware={hardware} needs {needed} device{'s' * (needed > 1)}, and there are {there}"
        f" ({jax.default_backend()}). Start it there; to run it here all the same, give"
        " --run.hardware None, with a mesh and a batch for what is there.",
    )


def check_fits(config: PretrainConfig, mesh: Mesh) -> None:
    """Raises `InputError`, before anything is written, where sizes do not divide over the mesh."""
    rows, parts = config.data.batch_size, config.optim.accumulation_steps
    batch_rows(rows, mesh)
    check_parts(rows, parts, split_count(mesh, Rules(), "batch"))
    abstract_state(config.model, config.optim, mesh)
