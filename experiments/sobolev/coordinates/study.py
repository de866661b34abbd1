"""A study: which networks it trains on what, at which rates, and what its folder holds of them."""

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.run.provenance import commit
from experiments.run.rate_search import (
    FIRST_SEED,
    Scores,
    Search,
    compared,
    found,
    search,
    shared_seeds,
    tried,
)
from experiments.sobolev.coordinates.options import CoordinatesOptions
from experiments.sobolev.coordinates.targets import Target, load
from experiments.sobolev.coordinates.train import Run, Trainer
from experiments.sobolev.store import Store
from experiments.terminal.tables import finite
from polycom_jax import storage
from polycom_jax._errors import InputError

SHOWN_SEED = 0
"""The picture of this one's result is kept."""


@dataclass
class Cell:
    """One arm on one target, and its runs.

    Attributes:
        target: its name.
        arm: its name.
        parameters: trained ones.
        runs: that are finished, in the order in which they were made; those of the search are on
            another target, with other seeds.
    """

    target: str
    arm: str
    parameters: int
    runs: list[Run] = field(default_factory=list[Run])

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.target}-{self.arm}"

    @property
    def tried(self) -> Scores:
        """Rate -> seed of the search -> error."""
        return tried(self.runs)

    @property
    def search_seeds(self) -> set[int]:
        """Those that rates are compared by."""
        return shared_seeds(self.tried)

    @property
    def searched(self) -> Search:
        """The rates that were tried, and the best, from the runs alone."""
        return compared(self.tried)

    @property
    def rate(self) -> float:
        """The best of those that there are results at; where there are none yet, of all."""
        search = self.searched
        scores = dict(zip(search.rates, search.losses, strict=True))
        there = {run.rate for run in self.runs if run.target == self.target} & scores.keys()
        return found({rate: scores[rate] for rate in there or scores}).best

    def results(self) -> list[Run]:
        """The runs at that rate on the target itself, seed by seed."""
        best = self.rate
        own = [run for run in self.runs if run.target == self.target and run.rate == best]
        return sorted(own, key=lambda run: run.seed)

    @property
    def failed(self) -> int:
        """Of the results."""
        return sum(run.failed for run in self.results())

    def find(self, target: str, seed: int, rate: float) -> Run | None:
        """That run, if it is finished."""
        wanted = (target, seed, rate)
        return next((run for run in self.runs if (run.target, run.seed, run.rate) == wanted), None)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return finite(asdict(self))

    @classmethod
    def of(cls, record: dict[str, Any], name: str) -> "Cell":
        """From what `record` gave.

        Raises:
            InputError: it is something else.
        """
        try:
            return cls(**{**record, "runs": [Run.read(each) for each in record["runs"]]})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"cells/{name}.json is no file of this study's runs ({error}); move it away, and"
                " the same command trains them again."
            ) from error


@dataclass(frozen=True, eq=False)
class Study:
    """All cells.

    Attributes:
        options: what is trained, and how.
        store: the folder.
        tell: takes (share done, what is being done).
    """

    options: CoordinatesOptions
    store: Store
    tell: Callable[[float, str], None]

    def run(self) -> list[Cell]:
        """Trains what the folder does not have."""
        options = self.options
        pairs = [(arm, target) for arm in options.arms for target in options.targets]
        cells = []
        for index, (arm, target) in enumerate(pairs):

            def tell(share: float, doing: str, index: int = index) -> None:
                self.tell((index + share) / len(pairs), doing)

            cells.append(self._fill(target, arm, tell))
        return cells

    @cached_property
    def targets(self) -> dict[str, Target]:
        """By name, those for the search among them."""
        options = self.options
        chosen = map(options.selection, options.targets)
        return {name: load(name, options.side) for name in (*options.targets, *chosen)}

    @cached_property
    def trainers(self) -> dict[str, Trainer]:
        """By arm."""
        options = self.options
        return {
            arm: Trainer(options.network(arm), options.steps, options.loss) for arm in options.arms
        }

    def _fill(self, target: str, arm: str, tell: Callable[[float, str], None]) -> Cell:
        """Chooses the rate and trains all seeds; what the cell has is not trained again."""
        options, cell = self.options, self._cell(target, arm)
        seeds = range(max(options.search_seeds, len(cell.search_seeds)))
        total = len(options.learning_rates) * len(seeds) + options.seeds
        done = 0

        def run(name: str, seed: int, rate: float) -> Run:
            nonlocal done
            share = min(done, total - 1) / total
            doing = f"{arm} on {name}: rate {rate:g}, seed {seed % FIRST_SEED}"
            known = cell.find(name, seed, rate)
            if known is None:
                known = self._train(
                    cell, name, seed, rate, lambda part: tell(share + part / total, doing)
                )
            done += 1
            return known

        def score(rate: float) -> float:
            chosen_on = options.selection(target)
            runs = [run(chosen_on, FIRST_SEED + i, rate) for i in seeds]
            return float(np.mean([each.score for each in runs]))

        search(options.learning_rates, score)
        for rate in cell.tried:  # by an earlier search, too
            score(rate)
        best = cell.searched.best
        for seed in range(options.seeds):
            run(target, seed, best)
        return cell

    def _train(
        self, cell: Cell, name: str, seed: int, rate: float, tell: Callable[[float], None]
    ) -> Run:
        trainer = self.trainers[cell.arm]
        run, params = trainer.run(self.targets[name], seed, rate, tell)
        run = replace(run, commit=commit())
        if seed == SHOWN_SEED:
            keep_picture(self.store, cell.name, trainer.picture(params, self.options.side))
        cell.runs.append(run)
        # Of another process that goes on with the same folder.
        others = self._cell(cell.target, cell.arm).runs
        cell.runs += [one for one in others if cell.find(one.target, one.seed, one.rate) is None]
        self.store.keep_cell(cell.name, cell.record())
        return run

    def _cell(self, target: str, arm: str) -> Cell:
        record = self.store.cell(f"{target}-{arm}")
        if record is not None:
            return Cell.of(record, f"{target}-{arm}")
        return Cell(target, arm, self.options.network(arm).size)


def keep_picture(store: Store, name: str, pixels: Float[np.ndarray, "S S"]) -> None:
    """Keeps what a network made of its target."""
    file = io.BytesIO()
    np.save(file, pixels.astype(np.float16))
    storage.write(store.root / "pictures" / f"{name}.npy", file.getvalue())


def picture(store: Store, name: str) -> Float[np.ndarray, "S S"] | None:
    """What was kept; None: nothing."""
    path = store.root / "pictures" / f"{name}.npy"
    return np.load(path).astype(np.float64) if path.exists() else None
