"""Reading one checkpoint: does it fit, is it whole, and onto which mesh does it go."""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax

from polycom_jax._errors import InputError
from polycom_jax.params import ParamSpec, Specs
from polycom_jax.training.checksums import differing, leaf_names
from polycom_jax.training.quiet import quietly
from polycom_jax.training.state import map_mirrored

STATE, CHECKSUMS, METRICS = "state", "checksums", "metrics"
"""Items of a checkpoint. Orbax calls the last one so itself."""


ENVIRONMENT = "environment"
"""A name among the metrics."""


class Unreadable(Exception):
    """A checkpoint is damaged; an older one may be whole."""


def read(folder: Path, target: Any, specs: Specs | None, *, partial: bool) -> Any:
    """Reads the checkpoint in `folder` into arrays laid out as `target` says.

    Args:
        folder: of one step.
        target: tree of `jax.ShapeDtypeStruct` with shardings.
        specs: the model's parameters. With them, arrays that follow a parameter with padded rows
            may have been saved with other padding: rows of zeros are added or cut.
        partial: the checkpoint may hold more than the target.

    Raises:
        InputError: it holds another model, or another optimiser.
        Unreadable: it is damaged.
    """
    import orbax.checkpoint as ocp

    handler = ocp.CompositeCheckpointHandler(
        **{
            STATE: ocp.PyTreeCheckpointHandler(),
            CHECKSUMS: ocp.JsonCheckpointHandler(),
            METRICS: ocp.JsonCheckpointHandler(),
        }
    )
    arguments = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=False
        ),
        target,
    )

    def load() -> Any:
        with contextlib.closing(ocp.Checkpointer(handler)) as reader:
            metadata: Any = reader.metadata(folder)
            stored = jax.tree.leaves(metadata.item_metadata[STATE].tree)
            _check_fits(folder, stored, target, specs, partial)
            wanted = {
                STATE: ocp.args.PyTreeRestore(
                    target, restore_args=arguments, partial_restore=partial
                ),
                CHECKSUMS: ocp.args.JsonRestore(),
            }
            return reader.restore(folder, args=ocp.args.Composite(**wanted))

    items, failure = quietly(load)
    if failure is None and (wrong := differing(items[CHECKSUMS], items[STATE])):
        failure = f"checksums differ: {', '.join(wrong)}"
    if failure is not None:
        raise Unreadable(failure)
    return items[STATE]


def _check_fits(
    folder: Path, stored: list[Any], target: Any, specs: Specs | None, partial: bool
) -> None:
    """Raises `InputError` where names, shapes or dtypes differ by more than padding."""
    found = {leaf.name: leaf for leaf in stored}
    wanted = leaf_names(target)
    declared = leaf_names(map_mirrored(lambda _, spec: spec or 0, target, specs or {}))
    problems = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    if not partial:
        problems += [f"{name} is not wanted" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        have, want = found[name], wanted[name]
        same = have.shape == want.shape or _is_repadded(have.shape, want.shape, declared[name])
        if not same or have.dtype != want.dtype:
            problems.append(
                f"{name} is {have.dtype}{list(have.shape)}, wanted {want.dtype}{list(want.shape)}"
            )
    if problems:
        problems.sort(key=lambda text: (not text.startswith("params"), text))
        shown = "; ".join(problems[:4])
        raise InputError(
            f"The checkpoint {folder} is of another model or optimiser: {shown}"
            f"{' ...' if len(problems) > 4 else ''}. Resume with the settings it was made with."
        )


def _is_repadded(have: tuple[int, ...], want: tuple[int, ...], spec: ParamSpec | int) -> bool:
    """Do the shapes differ only in how many rows of zeros stand behind the real ones?"""
    if not isinstance(spec, ParamSpec) or spec.rows is None or len(have) != len(want):
        return False
    row = spec.stacked
    others_agree = have[:row] + have[row + 1 :] == want[:row] + want[row + 1 :]
    return others_agree and min(have[row], want[row]) >= spec.rows


def score(folder: Path) -> float | None:
    """The held-out loss saved with a checkpoint, if one was.

    Raises:
        ValueError: damaged.
    """
    try:
        return json.loads((folder / METRICS / METRICS).read_text()).get("score")
    except FileNotFoundError:
        return None


def environment(folder: Path) -> dict[str, str]:
    """The environment saved with a checkpoint; empty if none was.

    Raises:
        ValueError: damaged.
    """
    try:
        return json.loads((folder / METRICS / METRICS).read_text()).get(ENVIRONMENT, {})
    except FileNotFoundError:
        return {}
