"""Repeats one step's batch with a run's parameters: `python -m experiments.replay --help`.

A run that met losses or gradients that are no numbers names the command; it changes nothing.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.table import Table
from tyro.conf import Positional, arg

from experiments.run.compiled import batch_shape, cache_compiled
from experiments.run.files import STDOUT, try_json, write_json
from experiments.run.folder import Workdir, data_record
from experiments.run.model_loading import load_trained
from experiments.terminal.checks import at_least
from experiments.terminal.flags import CommandLine
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from experiments.terminal.tables import print_table, table_of
from polycom_jax import params as pm
from polycom_jax._fields import PathText, PlaceText, check_fields
from polycom_jax.data import prepare_mixture
from polycom_jax.params import Params
from polycom_jax.sharding import Rules, make_mesh
from polycom_jax.training import model_specs, put_batch
from polycom_jax.training.checksums import leaf_names
from polycom_jax.training.loss import Batch, batch_nats
from polycom_jax.training.loss_scale import at_largest_scale
from polycom_jax.training.optimizer import frozen_roles
from polycom_jax.training.step import OnMesh

LINE = CommandLine(
    "replay",
    "Repeat the batch of one step: the loss of each row, the gradient of each parameter.",
    old={"workdir": "run"},
)
SHOWN = 60
"""Characters of a row's text."""


@dataclass(frozen=True)
class ReplayConfig:
    """Which batch, with which parameters.

    Attributes:
        run: folder of the run, as given to `experiments.pretrain`.
        step: number of the step.
        checkpoint: checkpoint with the parameters to use: "latest", "best" (lowest held-out loss),
            or a step. A step that was skipped changed no parameters, so "latest" has those that the
            last skipped steps started from.
        json: also write losses and gradient norms to this file, or to stdout (-).
    """

    run: Annotated[PlaceText, Positional, arg(metavar="[RUN]")] = "runs/tiny-poly_norm"
    step: int = 1
    checkpoint: str = "latest"
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(self, 1, "step")


@program
def main(argv: Sequence[str]) -> int:
    """Prints the rows of the batch, then the parameters whose gradients are no numbers."""
    asked = LINE(ReplayConfig(), argv)
    try_json(asked.json)
    workdir = Workdir(asked.run)
    config = workdir.read_config()
    enabled, place = config.run.compile_cache, config.run.compile_cache_dir
    cache_compiled(config.data.cache_dir, enabled=enabled, place=place)
    mesh = make_mesh(**asdict(config.mesh))
    with Display(aside=asked.json == STDOUT) as display:
        trained = load_trained(workdir, asked.checkpoint, mesh=mesh)
        vocab_size = workdir.record().get("vocab_size_asked", config.model.vocab_size)
        data = prepare_mixture(
            config.data, vocab_size=vocab_size, progress=display.busy, warn=display.note
        )
        workdir.check_data(data_record(data), data.earlier)
        batches = data.train_batches(
            **batch_shape(config, mesh),
            seed=config.run.seed,
            start_step=asked.step - 1,
        )
        rows = next(iter(batches))
        display.note(f"batch of step {asked.step}, parameters of step {trained.step}")
        frozen = frozen_roles(config.optim)
        nats, slopes = repeat(trained.config.model, trained.params, rows, mesh, frozen)
        texts = [trained.tokenizer.decode(row[:SHOWN].tolist()) for row in rows["tokens"]]
        print_table(display.console, row_table(nats, rows, texts))
        display.note(gradient_text(slopes))
        write_json(asked.json, {"step": asked.step, "loss": nats.tolist(), "grad_norm": slopes})
    return 0


def repeat(
    cfg: Any,
    params: Params,
    rows: dict[str, np.ndarray],
    mesh: Mesh,
    frozen: frozenset[str] = frozenset(),
) -> tuple[np.ndarray, dict[str, float]]:
    """The loss of each row in nats a token, and the norm of each trained parameter's gradient.

    The gradient is that of the whole batch's mean loss, without router losses and z-loss. In
    float16 the loss is scaled while it is differentiated, as in a run.
    """
    rules, count = Rules(), max(int(rows["mask"].sum()), 1)

    def mean(params: Params, batch: Batch, scale: float | jax.Array = 1.0) -> jax.Array:
        return batch_nats(cfg, params, batch, rules)[0] / count * scale

    def norms(params: Params, batch: Batch, scale: jax.Array) -> Any:
        return jax.tree.map(
            lambda g: jnp.sqrt(jnp.sum(jnp.square(g.astype(jnp.float32)))) / scale,
            jax.grad(mean)(params, batch, scale),
        )

    put = partial(put_batch, mesh=mesh)
    loss, slopes = OnMesh(jax.jit(mean), mesh), OnMesh(jax.jit(norms), mesh)
    nats = []
    for index in range(len(rows["mask"])):
        alone = np.zeros_like(rows["mask"])
        alone[index] = rows["mask"][index]
        own = max(int(alone.sum()), 1)
        nats.append(float(loss(params, put({**rows, "mask": alone}))) * count / own)
    batch = put(rows)
    each = at_largest_scale(lambda scale: jax.device_get(slopes(params, batch, scale)), cfg.dtype)
    roles = leaf_names(pm.map_specs(lambda spec: spec.role, model_specs(cfg, mesh)))
    every = {name: float(value) for name, value in leaf_names(each).items()}
    return np.array(nats), {n: norm for n, norm in every.items() if roles[n] not in frozen}


def row_table(nats: np.ndarray, rows: dict[str, np.ndarray], texts: Sequence[str]) -> Table:
    """One line a row of the batch, the highest loss (or none) first."""
    worst_first = np.argsort(-np.nan_to_num(nats, nan=np.inf, posinf=np.inf), kind="stable")
    targets = rows["mask"].sum(axis=1)
    cells = [(str(i), f"{nats[i]:.4f}", str(int(targets[i])), repr(texts[i])) for i in worst_first]
    return table_of("rows", ("row", "loss", "targets", "begins"), cells, left=(3,))


def gradient_text(norms: dict[str, float]) -> str:
    """Which gradients are no numbers, or the largest if all are."""
    bad = [f"{name} ({norm})" for name, norm in norms.items() if not np.isfinite(norm)]
    if bad:
        return f"gradients that are no numbers, {len(bad)} of {len(norms)}: {', '.join(bad)}"
    largest = sorted(norms.items(), key=lambda item: -item[1])[:5]
    total = float(np.sqrt(sum(norm**2 for norm in norms.values())))
    listed = ", ".join(f"{name} {norm:.3g}" for name, norm in largest)
    return f"all gradients are finite, norm {total:.4g}; the largest: {listed}"


if __name__ == "__main__":
    sys.exit(main())
