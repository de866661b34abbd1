"""A finished or running run's model, for the programs that use one."""

from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from experiments.config import PretrainConfig
from experiments.workdir import Workdir
from polycom_jax import params as pm
from polycom_jax._errors import InputError
from polycom_jax.data import Tokenizer
from polycom_jax.params import Params
from polycom_jax.sharding import make_mesh
from polycom_jax.training import Checkpoints, model_specs


@dataclass(frozen=True)
class Trained:
    """What a run has made.

    Attributes:
        config: what it ran with.
        step: of the checkpoint that was read.
        params: its parameters.
        tokenizer: what turned its text into tokens.
    """

    config: PretrainConfig
    step: int
    params: Params
    tokenizer: Tokenizer


def load_trained(
    workdir: Workdir, checkpoint: str = "latest", *, mesh: Mesh | None = None
) -> Trained:
    """Reads a run's parameters; the optimiser's state stays on the disk, and data are not needed.

    Args:
        workdir: of the run.
        checkpoint: "latest", "best" (lowest held-out loss) or a step.
        mesh: devices to read them onto; None: one.

    Raises:
        InputError: no run there, no such checkpoint, or not the run's own tokenizer.
    """
    config = workdir.read_config()
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    specs = model_specs(config.model, mesh)
    with Checkpoints(workdir.checkpoints) as checkpoints:
        step = _step(checkpoints, checkpoint)
        found, params = checkpoints.restore_params(pm.abstract(specs, mesh), step=step, specs=specs)
    return Trained(config, found, params, workdir.read_tokenizer())


def _step(checkpoints: Checkpoints, name: str) -> int | None:
    if name == "latest":
        return None
    if name == "best":
        best = checkpoints.best_step()
        return checkpoints.latest_step() if best is None else best
    if not (name.isdecimal() and len(name) < 20):
        raise InputError(f"checkpoint={name!r} must be 'latest', 'best' or a step.")
    return int(name)
