"""Reads folders of runs: what each arm of a study came to, from its run files alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from experiments.compare import own_files
from experiments.compare.arms import Arm, training_flops
from experiments.compare.config import SCALES, CompareConfig
from experiments.compare.own_files import OwnArms
from experiments.compare.recipe import worded
from experiments.compare.runs import Run, RunFolder
from experiments.compare.sensitivity import Sensitivity, sensitivities
from experiments.compare.studies import REFERENCE, STUDIES
from experiments.run.rate_search import FIRST_SEED, Search, shared_seeds
from experiments.terminal import flags
from polycom_jax import models, storage
from polycom_jax._errors import InputError, require, unknown
from polycom_jax.data import DataConfig
from polycom_jax.models import ModelConfig
from polycom_jax.storage import Place

SETTINGS = "settings.json"
BYTES = 257
"""Tokens of the tokenizer "bytes"."""

Unit = Literal["byte", "token"]
"""What tokens of several folders are: bytes in all of them, or not."""


@dataclass(frozen=True)
class ArmRuns:
    """What one arm of a folder came to.

    Attributes:
        name: of the arm; of one in a file, of the folder of its runs.
        model: that it trained.
        search: the rates that were tried on seeds apart, and the one that the results have.
        search_seeds: seeds that all of these rates have.
        searched: the runs of the search, at the full length.
        runs: the results: seed -> run, of the longest lengths that there are.
    """

    name: str
    model: ModelConfig
    search: Search
    search_seeds: int
    searched: tuple[Run, ...]
    runs: Mapping[int, Run]

    @property
    def good(self) -> dict[int, Run]:
        """Runs that ended in a number."""
        return {seed: run for seed, run in self.runs.items() if not run.diverged}

    @property
    def diverged(self) -> int:
        """Runs that ended in no number."""
        return len(self.runs) - len(self.good)

    @property
    def parameters(self) -> int:
        """All of them."""
        return models.count_params(self.model)

    @property
    def flops(self) -> float:
        """Of training on a token, forward and backward, the activation's own included."""
        return training_flops(self.model)


@dataclass(frozen=True)
class Cell:
    """One size, trained for one longest length and the shorter ones that branch off.

    Attributes:
        name: of the folder.
        root: the folder.
        model: name of the common model.
        base: the common model.
        data: text, tokenizer and batch.
        lengths: in updates, ascending; the longest is not a branch.
        changes: field -> value, what `--recipe` has changed.
        arms: those with results, the reference first.
        waiting: names of arms with a search and no results yet.
        left_out: why arms of users' files that have runs are not among these.
        train_tokens: of the text that is trained on; None: the folder is of an earlier version.
    """

    name: str
    root: Place
    model: str
    base: ModelConfig
    data: DataConfig
    lengths: tuple[int, ...]
    changes: Mapping[str, Any]
    arms: Mapping[str, ArmRuns]
    waiting: tuple[str, ...]
    left_out: tuple[str, ...]
    train_tokens: int | None

    @property
    def recipe(self) -> str:
        """What `--recipe` has changed, in a line; empty: nothing."""
        return " ".join(worded(self.changes))

    @property
    def parameters(self) -> int:
        """Of the reference's model at this size, whether or not it was trained."""
        return models.count_params(replace(self.base, activation=REFERENCE))

    @property
    def step_tokens(self) -> int:
        """Tokens of an update."""
        return self.data.batch_size * self.base.context_length

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of the decayed lengths."""
        return tuple(length * self.step_tokens for length in self.lengths)

    @property
    def commits(self) -> list[str]:
        """Of the code that trained the results."""
        runs = [run for arm in self.arms.values() for run in arm.runs.values()]
        return sorted({run.commit or "not known" for run in runs})

    @property
    def numbered(self) -> dict[str, ArmRuns]:
        """Arms with a run that ended in a number."""
        return {name: arm for name, arm in self.arms.items() if arm.good}

    @property
    def sensitivities(self) -> list[Sensitivity]:
        """To the learning rate, of every arm with results that has a search."""
        searched = {name: arm.searched for name, arm in self.arms.items()}
        return sensitivities(searched, self.base.vocab_size)

    def seeds(self, *arms: str) -> list[int]:
        """Those that all of these arms have a number for."""
        return sorted(set.intersection(*(set(self.arms[name].good) for name in arms)))

    def losses(self, arm: str, seeds: Sequence[int]) -> np.ndarray:
        """Held-out losses [seeds, lengths]."""
        return np.array([self.arms[arm].runs[seed].heldout for seed in seeds], np.float64)


def unit_of(cells: Sequence[Cell]) -> Unit:
    """What a token is, by the tokenizers of the folders."""
    return "byte" if all(cell.data.tokenizer == "bytes" for cell in cells) else "token"


def read_cells(folder: Place, activations: Sequence[str] = ()) -> list[Cell]:
    """The studies of a folder: itself, where it holds one, else those right below it, by size.

    Args:
        folder: of runs, or of such folders.
        activations: where files of users' activations lie now, see `own_files.read`.

    Raises:
        InputError: it holds none, or a file that is not as a study has written it, or studies of
            different recipes; or none has runs of an activation that is given.
    """
    inside = [folder / name for name in storage.folders(folder)]
    roots = [root for root in (folder, *inside) if storage.is_file(root / SETTINGS)]
    require(
        bool(roots),
        f"{folder} holds no study: neither it nor a folder in it has a {SETTINGS};"
        " `python -m experiments.compare STUDY --out FOLDER` makes one.",
    )
    own_files.check_given(activations, roots)
    cells = [read_cell(root, activations) for root in roots]
    # By what they come to: a preset may have by itself what another one's recipe changes.
    fields = sorted({name for cell in cells for name in cell.changes})
    values = [flags.flatten(stored_config(root).common) for root in roots]
    recipes = {
        worded({name: own[name] for name in fields}): cell
        for own, cell in zip(values, cells, strict=True)
    }
    of_each = "; ".join(f"{c.name}: {c.recipe or 'as it is'}" for c in recipes.values())
    require(
        len(recipes) == 1,
        f"{folder} holds studies of different recipes ({of_each}), whose losses follow no law"
        " together; report on each folder alone.",
    )
    return sorted(cells, key=lambda cell: (cell.parameters, cell.tokens[-1]))


def read_cell(root: Place, activations: Sequence[str] = ()) -> Cell:
    """The study of one folder; `activations` as `own_files.read` takes them.

    Raises:
        InputError: a file in it is not as a study has written it.
    """
    config = stored_config(root)
    require(
        REFERENCE in arms_of(config.study),
        f"{root} holds the study {config.study}, which has no arm {REFERENCE} to compare with; its"
        " own report.md has its comparisons.",
    )
    own = own_files.read(root, activations)
    found = read_arms(root, config, own)
    order = sorted(found, key=lambda name: name != REFERENCE)
    arms = {name: arm for name in order if (arm := found[name]) and arm.runs}
    waiting = tuple(name for name in order if name not in arms)
    left_out = tuple(own.unread.values())
    tokens = stored_settings(root).get("train_tokens")
    return Cell(
        root.name, root, config.model, base_of(config, stored_vocabulary(root)), config.data,
        config.lengths, config.changes, arms, waiting, left_out, tokens,
    )  # fmt: skip


def read_arms(root: Place, config: CompareConfig, own: OwnArms) -> dict[str, ArmRuns]:
    """What the arms that a study's folder has runs of came to, in the order of the studies; arms of
    users' files come last, but for those that are left out.

    Raises:
        InputError: a file is not as a study has written it, or is of an arm that it has not.
    """
    known, base = {**arms_of(config.study), **own.arms}, base_of(config, stored_vocabulary(root))
    by_arm: dict[str, list[Run]] = {}
    for run in RunFolder(root / "runs").all():
        if run.key.arm not in own.unread:
            by_arm.setdefault(run.key.arm, []).append(run)
    for name in by_arm:
        if name not in known:
            raise unknown(f"arm in {root}", name, known)
    return {
        name: arm_runs(known[name], base, by_arm[name], config.lengths)
        for name in known
        if name in by_arm
    }


def stored_config(root: Place) -> CompareConfig:
    """The study that a folder's settings are of, with as many seeds as a study must have.

    Raises:
        InputError: they are not as a study has written them.
    """
    stored = stored_settings(root)
    try:
        data = {f.name: stored[f"data.{f.name}"] for f in fields(DataConfig)
                if f"data.{f.name}" in stored}  # fmt: skip
        names = ("study", "model", "seq_len", "steps", "heldout_tokens")
        own: dict[str, Any] = {name: stored[name] for name in names}
    except KeyError as error:
        raise InputError(
            f"{root / SETTINGS} is not as a study has written it: no {error}."
        ) from error
    some = SCALES["cpu"]
    start = CompareConfig(
        **own, data=DataConfig(**data), scale="cpu", seeds=some.seeds, out=str(root),
        first_seed=stored.get("first_seed") or 0,
        learning_rates=some.learning_rates, search_seeds=some.search_seeds,
    )  # fmt: skip
    changes: Any = stored.get("recipe") or {}
    try:
        require(isinstance(changes, dict), f"its recipe is {changes!r}.")
        return replace(start, recipe=worded(changes))
    except InputError as error:
        raise InputError(f"{root / SETTINGS} is not as a study has written it: {error}") from error


def stored_settings(root: Place) -> dict[str, Any]:
    """What a study's folder says that its runs have in common, by name.

    Raises:
        InputError: it is not as a study has written it.
    """
    path = root / SETTINGS
    try:
        return dict(json.loads(storage.read(path)))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not as a study has written it: {error}.") from error


def stored_vocabulary(root: Place) -> int | None:
    """Ids of the tokenizer that a study's folder has runs with; None: an earlier version, which did
    not write them down."""
    settings = stored_settings(root)
    return BYTES if settings.get("data.tokenizer") == "bytes" else settings.get("vocab_size")


def continued(config: CompareConfig, root: Place) -> CompareConfig:
    """The study on at least as many seeds, for results and for rates, as its folder has for the
    reference, from the first of them on: fewer would choose rates anew, others leave finished runs
    out."""
    if not storage.is_made(root / SETTINGS):
        return config
    reference = read_cell(root).arms.get(REFERENCE)
    if reference is None or not reference.runs:
        return config
    first = stored_config(root).first_seed
    return replace(
        config,
        first_seed=first,
        seeds=max(config.seeds, max(reference.runs) + 1 - first),
        search_seeds=max(config.search_seeds, reference.search_seeds),
    )


def base_of(config: CompareConfig, vocab_size: int | None = None) -> ModelConfig:
    """The common model with the vocabulary that its tokenizer has, as far as that is known."""
    found = config.common.model
    size = BYTES if config.data.tokenizer == "bytes" else vocab_size
    return replace(found, vocab_size=size) if size else found


def arms_of(study: str) -> dict[str, Arm]:
    """Arms by name: the study's own, and those of studies that go on with its folders."""
    every = [other for name, other in STUDIES.items() if study in (name, other.runs_of)]
    return {arm.name: arm for other in every for arm in other.arms}


def arm_runs(arm: Arm, base: ModelConfig, runs: Sequence[Run], lengths: tuple[int, ...]) -> ArmRuns:
    """The arm's results at the rate that its search found best, of those with results."""
    searched = tuple(
        run for run in runs if run.key.seed >= FIRST_SEED and run.key.lengths == lengths[-1:]
    )
    tried: dict[float, dict[int, float]] = {}
    for run in searched:
        tried.setdefault(run.key.rate, {})[run.key.seed] = run.score
    results: dict[float, dict[int, Run]] = {}
    for run in runs:
        if run.key.seed < FIRST_SEED and run.key.lengths == lengths:
            results.setdefault(run.key.rate, {})[run.key.seed] = run
    common = shared_seeds(tried)
    scores = {
        rate: float(np.mean([tried[rate][seed] for seed in common])) if common else np.nan
        for rate in sorted(tried)
    }
    candidates = [rate for rate in results if rate in scores] or list(results) or list(scores)
    best = min(candidates, key=lambda rate: scores.get(rate, np.inf)) if candidates else np.nan
    rates = tuple(scores)
    at_edge = bool(rates) and best in (rates[0], rates[-1])
    search = Search(rates, tuple(scores.values()), best, at_edge)
    runs_of_best = dict(sorted(results.get(best, {}).items()))
    return ArmRuns(arm.folder, arm.model(base), search, len(common), searched, runs_of_best)
