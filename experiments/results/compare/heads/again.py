"""Trains finished runs of `compare` once more, to look at them on the way."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from experiments.compare.arms import Arm
from experiments.compare.config import SCALES, CompareConfig
from experiments.compare.runs import Run, RunFolder
from experiments.compare.studies import STUDIES
from experiments.compare.train import Curves, Programs, compile_programs, heldout_batches
from experiments.run.rate_search import FIRST_SEED
from polycom_jax.data import TokenStore, prepare, train_batches
from polycom_jax.models import ModelConfig
from polycom_jax.training.loss import Batch

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
WINDOWS = 64
DRAWS = 100_000


@dataclass(frozen=True, eq=False)
class Setting:
    """What the runs of a study have in common.

    Attributes:
        config: the study's.
        base: the model that its arms start from.
        arms: by name.
        store: text to train on.
        shape: of its batches, as `train_batches` takes it.
        heldout: all that runs are scored with.
        windows: some of it, in one batch, to look at attention with.
    """

    config: CompareConfig
    base: ModelConfig
    arms: Mapping[str, Arm]
    store: TokenStore
    shape: Any
    heldout: Sequence[Batch]
    windows: Batch

    @cache  # noqa: B019
    def programs(self, name: str) -> Programs:
        """An arm's, compiled on first use."""
        some = jax.device_put(next(train_batches(self.store, **self.shape, seed=0)))
        optim = self.arms[name].optimizer(self.config.common.optim)
        return compile_programs(self.arms[name].model(self.base), optim, some)


@cache
def setting_of(study: str) -> Setting:
    """A study's, from its settings; its texts lie in the folder that this runs in."""
    kept = json.loads((HERE.parent / study / "settings.json").read_text())
    start = SCALES["cpu"]
    data = {name: kept[f"data.{name}"] for name in ("source", "heldout", "tokenizer", "batch_size")}
    names = ("study", "model", "steps", "seq_len", "heldout_tokens")
    own = {name: kept[name] for name in names}
    config = replace(start, data=replace(start.data, **data), **own)
    base = config.common.model
    corpus = prepare(config.data, vocab_size=base.vocab_size)
    shape: Any = {"batch_size": config.data.batch_size, "seq_len": base.context_length}
    text = {**shape, "batch_size": WINDOWS}
    return Setting(
        config,
        replace(base, vocab_size=corpus.tokenizer.vocab_size),
        {arm.name: arm for arm in STUDIES[config.study].arms},
        corpus.train,
        shape,
        heldout_batches(corpus.heldout, **shape, tokens=config.heldout_tokens),
        heldout_batches(corpus.heldout, **text, tokens=WINDOWS * base.context_length)[0],
    )


def results(study: str, arms: Sequence[str]) -> list[Run]:
    """The finished runs of a study's results, not of its search."""
    folders = [RunFolder(HERE.parent / study / "runs" / arm) for arm in arms]
    runs = [run for folder in folders for run in folder.all() if run.key.seed < FIRST_SEED]
    return sorted(runs, key=lambda run: (run.key.arm, run.key.seed))


def repeats(run: Run, curves: Curves) -> bool:
    """Whether the training loss so far is that of the first time, digit by digit."""
    assert curves.points, "the updates reach a point of the curves"
    first = dict(zip(run.steps, run.loss, strict=True))
    return all(first[step] == loss for step, loss, *_ in curves.points)


def kept(path: Path, kind: Callable[..., T]) -> list[T]:
    """What `keep` wrote; nothing where no file is."""
    return [kind(**one) for one in json.loads(path.read_text())] if path.exists() else []


def keep(path: Path, found: Sequence[Any]) -> None:
    """Writes dataclasses, a line each."""
    lines = ",\n".join(json.dumps(asdict(one)) for one in found)
    path.write_text(f"[\n{lines}\n]\n")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints it in Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        print("|", " | ".join(map(str, row)), "|")
    print()


def within(groups: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float, float]:
    """Slope of y over x within groups of (x, y), share of y's variance, p by permutation."""
    centred = [np.array(own) - np.mean(own, axis=0) for own in groups]
    x, y = np.concatenate(centred).T
    rng = np.random.default_rng(0)
    drawn = sum(
        own[:, 0] @ rng.permuted(np.tile(own[:, 1], (DRAWS, 1)), axis=1).T for own in centred
    )
    p = (1 + np.sum(np.abs(drawn) >= abs(x @ y) * (1 - 1e-12))) / (DRAWS + 1)
    return float(x @ y / (x @ x)), float((x @ y) ** 2 / ((x @ x) * (y @ y))), float(p)
