"""A finished or running run's model, for the programs that use one."""

from dataclasses import dataclass

import jax

from experiments.config import PretrainConfig
from experiments.workdir import Workdir
from polycom_jax import params as pm
from polycom_jax._errors import InputError, require
from polycom_jax.data import Tokenizer, prepare
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


def load_trained(workdir: Workdir, checkpoint: str = "latest") -> Trained:
    """Reads a run's parameters (the optimiser's state stays on the disk) onto one device.

    Args:
        workdir: of the run.
        checkpoint: "latest", "best" (lowest held-out loss) or a step.

    Raises:
        InputError: no run there, no such checkpoint, or the data that its tokenizer came from are
            not the same any more.
    """
    config = workdir.read_config()
    mesh = make_mesh(devices=jax.devices()[:1])
    specs = model_specs(config.model, mesh)
    with Checkpoints(workdir.checkpoints) as checkpoints:
        step = _step(checkpoints, checkpoint)
        found, params = checkpoints.restore_params(pm.abstract(specs, mesh), step=step, specs=specs)
    return Trained(config, found, params, load_tokenizer(workdir, config))


def load_tokenizer(workdir: Workdir, config: PretrainConfig) -> Tokenizer:
    """The run's tokenizer, from the cache of prepared data, prepared again if need be."""
    record = workdir.record()
    asked = record.get("vocab_size_asked", config.model.vocab_size)
    tokenizer = prepare(config.data, vocab_size=asked).tokenizer
    require(
        tokenizer.fingerprint == record.get("tokenizer_fingerprint"),
        f"{workdir.root} was trained with another tokenizer than data.source="
        f"{config.data.source!r} and data.tokenizer={config.data.tokenizer!r} give now; bring the"
        " old data (or, for stdlib, the old Python) back.",
    )
    return tokenizer


def _step(checkpoints: Checkpoints, name: str) -> int | None:
    if name == "latest":
        return None
    if name == "best":
        best = checkpoints.best_step()
        return checkpoints.latest_step() if best is None else best
    if not name.isdecimal():
        raise InputError(f"checkpoint={name!r} must be 'latest', 'best' or a step.")
    return int(name)
