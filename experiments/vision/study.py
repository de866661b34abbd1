"""A study: which networks it trains, at which rates, and what its folder holds of them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.run.files import from_record, write_json
from experiments.run.provenance import commit
from experiments.run.rate_search import (
    FIRST_SEED,
    Scores,
    Search,
    compared,
    search,
    shared_seeds,
    tried,
)
from experiments.terminal.tables import finite
from experiments.vision.images import ImageSet
from experiments.vision.resnet import ResNet, ResNetConfig
from experiments.vision.train import Network, RecipeConfig, Run, Trainer
from experiments.vision.vit import Vit, VitConfig
from polycom_jax._errors import InputError, require
from polycom_jax.table import Activation

Sizes = tuple[ResNetConfig, VitConfig]
Maker = Callable[[Activation, ImageSet, Sizes], Network]


def _resnet(act: Activation, images: ImageSet, sizes: Sizes) -> Network:
    return ResNet(act, images.classes, images.shape[2], sizes[0], pre=False)


def _preact(act: Activation, images: ImageSet, sizes: Sizes) -> Network:
    return ResNet(act, images.classes, images.shape[2], sizes[0], pre=True)


def _vit(act: Activation, images: ImageSet, sizes: Sizes) -> Network:
    return Vit(act, images.classes, images.shape, sizes[1])


MODELS: Mapping[str, Maker] = {"resnet": _resnet, "preact-resnet": _preact, "vit": _vit}
"""Name -> what makes the network."""
SIZE_FLAGS: Mapping[str, str] = {
    "resnet": "--resnet.width",
    "preact-resnet": "--resnet.width",
    "vit": "--vit.embed-dim",
}
"""What the number of units that an activation is applied to follows from."""
WITH_GATES = ("vit",)
"""Models that take gated activations."""


@dataclass
class Cell:
    """One activation in one model, and its runs.

    Attributes:
        model: a name of `MODELS`.
        activation: its name.
        parameters: of the network; its activations' are among them.
        runs: that are finished, in the order in which they were made.
    """

    model: str
    activation: str
    parameters: int
    runs: list[Run] = field(default_factory=list[Run])

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model}, {self.activation}"

    @property
    def tried(self) -> Scores:
        """Rate -> seed of the search -> score."""
        return tried(self.runs)

    @property
    def search_seeds(self) -> set[int]:
        """Those that rates are compared by."""
        return shared_seeds(self.tried)

    @property
    def searched(self) -> Search:
        """The rates that were tried, and the best, from the runs alone."""
        return compared(self.tried)

    def results(self) -> list[Run]:
        """The runs at the best rate whose seeds had no part in choosing it, seed by seed."""
        best = self.searched.best
        own = [run for run in self.runs if run.seed < FIRST_SEED and run.rate == best]
        return sorted(own, key=lambda run: run.seed)

    def find(self, seed: int, rate: float) -> Run | None:
        """The run of this seed and rate, if it is finished."""
        return next((run for run in self.runs if (run.seed, run.rate) == (seed, rate)), None)

    def write(self, path: Path) -> None:
        """Stores it, numbers in full, with the runs that another process has stored meanwhile."""
        others = Cell.read(path).runs if path.exists() else []
        self.runs += [run for run in others if self.find(run.seed, run.rate) is None]
        write_json(path, finite(asdict(self)), indent=None)

    @classmethod
    def read(cls, path: Path) -> "Cell":
        """Reads what `write` stored.

        Raises:
            InputError: the file is something else.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found = cls(**{**record, "runs": [from_record(Run, each) for each in record["runs"]]})
            _ = MODELS[found.model]
            return found
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path} is no file of a study's runs ({error}); move it away, and the same command"
                " trains them again."
            ) from error


@dataclass(frozen=True)
class Plan:
    """What is trained, in this order.

    Attributes:
        models: names of `MODELS`.
        activations: by name.
        images: data.
        sizes: of the networks.
        recipe: how they are trained.
        rates: that each search begins with.
        search_seeds: runs at each of them.
        seeds: runs at the best.
    """

    models: Sequence[str]
    activations: Mapping[str, Activation]
    images: ImageSet
    sizes: Sizes
    recipe: RecipeConfig
    rates: Sequence[float]
    search_seeds: int
    seeds: int

    def trainers(self) -> list[tuple[str, str, Trainer]]:
        """(model, activation, what trains it), for all that go together.

        Raises:
            InputError: an activation is gated, and no model takes it; or a size does not fit it.
        """
        pairs = [
            (model, name)
            for model in self.models
            for name, act in self.activations.items()
            if model in WITH_GATES or not act.gated
        ]
        left = [name for name in self.activations if name not in {name for _, name in pairs}]
        require(
            not left,
            f"--activations {' '.join(left)}: gated, which the convolutions of a residual block"
            " cannot be; add vit to --models, or leave them out.",
        )
        return [(model, name, self._trainer(model, name)) for model, name in pairs]

    def _trainer(self, model: str, name: str) -> Trainer:
        network = MODELS[model](self.activations[name], self.images, self.sizes)
        try:
            _ = network.specs
        except InputError as error:
            raise InputError(
                f"{model}: {error} Take another {SIZE_FLAGS[model]} (a multiple of 64 for the"
                " residual networks, of 48 for vit, has room for all rows of the table), or leave"
                f" {name} out of --activations."
            ) from error
        return Trainer(network, self.images, self.recipe)

    @property
    def runs_each(self) -> int:
        """Runs of a pair, at least: the grid of a search may grow."""
        return len(self.rates) * self.search_seeds + self.seeds

    def fill(
        self, cell: Cell, trainer: Trainer, path: Path, tell: Callable[[float, str], None]
    ) -> None:
        """Chooses the rate and trains all seeds; what the cell has is not trained again.

        `tell` takes the share that is done, and what goes on.
        """
        done = 0
        count = max(self.search_seeds, len(cell.search_seeds))
        seeds = range(FIRST_SEED, FIRST_SEED + count)

        def run(seed: int, rate: float) -> Run:
            nonlocal done
            doing = f"{cell.name}: rate {rate:g}, seed {seed % FIRST_SEED}"
            share = min(done, self.runs_each - 1) / self.runs_each
            tell(share, doing)
            known = cell.find(seed, rate)
            if known is None:
                known = trainer.run(
                    seed, rate, lambda part: tell(share + part / self.runs_each, doing)
                )
                known = replace(known, commit=commit())
                cell.runs.append(known)
                cell.write(path)
            done += 1
            return known

        def score(rate: float) -> float:
            scores = [run(seed, rate).score for seed in seeds]
            return float(np.mean(scores)) if all(map(math.isfinite, scores)) else math.inf

        search(self.rates, score)
        for rate, own in cell.tried.items():  # by an earlier search, too
            if not own.keys() >= {*seeds}:
                score(rate)
        best = cell.searched.best  # the one that is reported
        for seed in range(self.seeds):
            run(seed, best)


def settings_of(plan: Plan) -> dict[str, Any]:
    """What all runs of a folder have in common."""
    return {
        "data": plan.images.name,
        "resnet": asdict(plan.sizes[0]),
        "vit": asdict(plan.sizes[1]),
        "recipe": asdict(plan.recipe),
    }
