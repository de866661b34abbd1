"""Writes what `replicate.py` takes from our side: initial values, rows of tokens, and our numbers.

    python -m experiments.results.compare.pytorch.hand_over FOLDER [ARM ...]

trains the first run of these arms of `ablation` once more, in a folder where the texts lie: some
updates as it was, and all of it with the last digit of one parameter changed, which says how far
two runs that differ by rounding alone move apart. What a folder has is kept.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.compare.branching import decay_start
from experiments.compare.runs import Run
from experiments.compare.train import Curves, advance, heldout_loss
from experiments.results.compare.heads.again import Setting, results, setting_of
from polycom_jax.data import train_batches
from polycom_jax.training import model_loss

STUDY = "ablation"
ARMS = ("swiglu", "poly_norm")
UPDATES = 300


def handed(setting: Setting, run: Run) -> dict[str, Any]:
    """Name -> array: what a run begins with, and its first losses."""
    key, programs = run.key, setting.programs(run.key.arm)
    batches = train_batches(setting.store, **setting.shape, seed=key.seed)
    rows = [next(batches) for _ in range(max(key.lengths))]
    state = programs.init(jax.random.key(key.seed))
    loss, first = model_loss(programs.cfg), jax.device_put(rows[0])
    gradient = jax.grad(lambda p: loss.part(p, first, loss.normalizer(first))[0])
    found = {
        "arm": key.arm,
        "rate": key.rate,
        "seed": key.seed,
        "lengths": key.lengths,
        "rows": np.stack([windows(batch) for batch in rows]),
        "heldout": np.concatenate([windows(batch) for batch in setting.heldout]),
        **flat("params", state.params, setting.base.vocab_size),
        **flat("grads", jax.jit(gradient)(state.params), setting.base.vocab_size),
    }
    curves = Curves(1)
    advance(programs, state, iter(rows), key, 0, UPDATES, None, curves)
    return {**found, "losses": losses(curves)}


def windows(batch: Mapping[str, Any]) -> np.ndarray:
    """Tokens and the last target, which the other targets repeat."""
    assert np.all(batch["mask"]), "every token has a target"
    tokens, targets = np.asarray(batch["tokens"]), np.asarray(batch["targets"])
    return np.concatenate([tokens, targets[:, -1:]], 1).astype(np.uint16)


def flat(kind: str, tree: Any, vocab_size: int) -> dict[str, np.ndarray]:
    """Arrays by their place in the tree; the embedding without the rows that pad it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {"/".join(str(getattr(k, "key", "")) for k in path): leaf for path, leaf in leaves}
    named["embed"] = named["embed"][:vocab_size]
    return {f"{kind}/{name.replace('//', '/')}": np.asarray(x) for name, x in named.items()}


def nudged(setting: Setting, run: Run) -> dict[str, Any]:
    """Loss of every update and held-out losses of a run: of its trunk, and of each branch."""
    key, programs, at = run.key, setting.programs(run.key.arm), 0
    state = programs.init(jax.random.key(key.seed))
    scale = state.params["final_norm"]
    other = scale.at[0].set(jnp.nextafter(scale[0], jnp.float32(2)))
    state = replace(state, params={**state.params, "final_norm": other})
    found, trunk = {}, Curves(1)
    for length in key.lengths:
        start, curves = decay_start(length), Curves(1)
        batches = train_batches(setting.store, **setting.shape, seed=key.seed, start_step=at)
        state = advance(programs, state, batches, key, at, start, None, trunk)
        at, branch = start, jax.tree.map(jnp.copy, state)
        branch = advance(programs, branch, batches, key, start, length, length, curves)
        found[f"losses/{length}"] = losses(curves)
        found[f"heldout/{length}"] = heldout_loss(programs, branch.params, setting.heldout)
    return {**found, "losses/trunk": losses(trunk)}


def losses(curves: Curves) -> np.ndarray:
    """Of each update."""
    return np.array([loss for _, loss, *_ in curves.points])


if __name__ == "__main__":
    folder, *arms = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for kind, write in (("handed", handed), ("nudged", nudged)):
        for arm in arms or ARMS:
            place = Path(folder) / f"{kind}-{arm}.npz"
            if not place.exists():
                run, *_ = results(STUDY, [arm])
                np.savez_compressed(place, **write(setting_of(STUDY), run))
                print(place)
