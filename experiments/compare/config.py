"""What a study runs with: the flags of `python -m experiments.compare`, and three scales of it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, TypeVar

from tyro.conf import Positional, arg

from experiments.compare.arms import Study, pinned
from experiments.compare.recipe import Common, changed, check_arms, differing
from experiments.compare.studies import STUDIES
from experiments.run.rate_search import FIRST_SEED
from experiments.terminal.checks import at_least
from experiments.terminal.flags import CommandLine
from polycom_jax._errors import require, unknown
from polycom_jax._fields import PathText, PlaceText, check_fields
from polycom_jax.data import DataConfig
from polycom_jax.models import ModelConfig
from polycom_jax.table import ACTIVATIONS
from polycom_jax.training import OptimConfig
from polycom_jax.training.recipes import RECIPES, recipe

C = TypeVar("C")

HEAD = 32
"""Width of a head, the same in all sizes."""


def _bytes_model(layers: int, width: int) -> ModelConfig:
    """Heads and hidden layer follow from the width: 8/3 of it, in eighths, as Llama's."""
    return ModelConfig(
        vocab_size=257,  # bytes and an end of text
        num_layers=layers,
        embed_dim=width,
        num_heads=width // HEAD,
        num_kv_heads=width // HEAD,
        head_dim=HEAD,
        gated_width=8 * round(width / 3),
        context_length=128,
        tie_embeddings=True,
    )


SHAPES: Mapping[str, ModelConfig] = {
    "bytes-0.1m": _bytes_model(2, 64),
    "bytes-0.3m": _bytes_model(3, 96),
    "bytes-0.8m": _bytes_model(4, 128),
    "bytes-1m": _bytes_model(5, 128),
    "bytes-3m": _bytes_model(7, 192),
}
"""Models so small that many runs of them fit a day of a CPU core; presets are larger."""

MODELS: tuple[str, ...] = (*SHAPES, *RECIPES)

WIDER: Mapping[str, str] = {
    "scaling": "Does a difference depend on size and length? A grid of studies, in one queue.",
    "leaderboard": "Which row of the table is best at one size and length? Adds a row, too.",
    "transfer": "Does the best learning rate depend on the width, with and without muP?",
    "report": "What do finished runs of one or several folders say? Trains nothing.",
    "pretrained": "What do finished runs of `pretrain` say, paired by seed? Trains nothing.",
}
"""Programs over several studies, see `experiments.compare.across`: each has a --help of its own."""


def shape(model: str) -> ModelConfig:
    """The model of that name: a small one, or a preset's."""
    return SHAPES.get(model) or recipe(model).model


@dataclass(frozen=True)
class CompareConfig:
    """A study at some size.

    Attributes:
        study: question to study; --list prints what each study asks.
        arms: names of the arms to run, of those of the study. Default: all.
        activation: further arms, each compared with the study's references: names of --list, or
            FILE.py:NAME or MODULE:NAME for what polycom_jax.activation has made in a file.
        recipe: fields of the recipe to change for all arms, by their names in `pretrain`:
            optim.optimizer=muon optim.z_loss=1e-4 model.logit_softcap=30. With optim.ema_decay,
            held-out losses are those of the averaged weights. A folder has one recipe.
        scale: defaults for all other flags: quick (minutes on two CPU cores, to see the program
            work), cpu (hours on two cores), gpu (three seeds of dense-110m on one GPU).
        model: model that all arms start from: bytes-0.1m, bytes-0.3m, bytes-0.8m,
            bytes-1m, bytes-3m, or a preset.
        data: text, tokenizer and batch.
        seq_len: tokens of a window. Default: the model's context.
        steps: updates of the longest run; the two shorter ones have a half and a quarter of them.
        seeds: runs of each arm; a seed sets data order and initial values.
        first_seed: of these runs, the others follow it. A study that is to confirm another takes
            seeds that the other has not seen.
        learning_rates: peak learning rates that the search begins with: ascending, at least four.
        search_seeds: runs at each of these rates; their seeds are not used for the results.
        heldout_tokens: tokens of held-out text in an evaluation, in windows spread evenly over it.
            Default: all.
        out: folder for runs and results. Default: runs/compare-STUDY-SCALE.
        json: also write results.json to this file, or to stdout (-).
    """

    study: Annotated[str, Positional, arg(metavar="[STUDY]")]
    scale: Annotated[str, arg(metavar="quick|cpu|gpu")]
    model: Annotated[str, arg(metavar="|".join(MODELS))]
    data: DataConfig
    seq_len: int | None
    steps: int
    seeds: int
    learning_rates: tuple[float, ...]
    search_seeds: int
    heldout_tokens: int | None
    first_seed: int = 0
    arms: tuple[str, ...] = ()
    activation: tuple[str, ...] = ()
    recipe: Annotated[tuple[str, ...], arg(metavar="FIELD=VALUE ...")] = ()
    out: PlaceText | None = None
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "activation", pinned(self.activation))
        require(
            isinstance(self.data.source, str),
            f"data.source={self.data.source!r}: a study trains on one text; name one.",
        )
        _ = self.chosen
        if self.model not in MODELS:
            raise unknown("model", self.model, MODELS)
        require(
            self.steps >= 8, f"steps={self.steps} must be at least 8: lengths are its quarters."
        )
        require(self.seeds >= 2, f"seeds={self.seeds} must be at least 2: one run has no spread.")
        require(
            0 <= self.first_seed <= FIRST_SEED - self.seeds,
            f"first_seed={self.first_seed} must be 0 or more, and all seeds below {FIRST_SEED:,},"
            " where those of the search begin.",
        )
        at_least(self, 1, "search_seeds", "seq_len", "heldout_tokens")
        rates = self.learning_rates
        require(
            len(rates) >= 4
            and all(0 < rate < math.inf for rate in rates)
            and all(a < b for a, b in itertools.pairwise(rates)),
            f"learning_rates={rates} must be four or more, positive and ascending.",
        )
        if self.recipe:
            check_arms(self.common, self.changes, self.chosen.arms)

    @property
    def chosen(self) -> Study:
        """The study, with the arms that were asked for.

        Raises:
            InputError: there is none of that name, or it has no such arms.
        """
        if self.study not in STUDIES:
            raise unknown("study", self.study, (*STUDIES, *WIDER))
        return STUDIES[self.study].with_activations(self.activation).only(self.arms)

    @property
    def start(self) -> Common:
        """The recipe before `recipe` changes it."""
        found = shape(self.model)
        found = found if self.seq_len is None else replace(found, context_length=self.seq_len)
        optim = OptimConfig() if self.model in SHAPES else recipe(self.model).optim
        return Common(self.chosen.model(found), optim)

    @cached_property
    def common(self) -> Common:
        """What all arms start from, but for the tokenizer's vocabulary; rate and schedule are the
        study's own (`branching.py`).

        Raises:
            InputError: a field or value of `recipe` is refused.
        """
        return changed(self.start, self.recipe)

    @property
    def changes(self) -> dict[str, Any]:
        """Field -> value, where `recipe` departs from what is there without it."""
        return differing(self.start, self.common)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Updates of the runs that share one constant-rate trunk."""
        return (self.steps // 4, self.steps // 2, self.steps)

    @property
    def result_seeds(self) -> range:
        """Those of the results."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def folder(self) -> str:
        """Where runs and results go."""
        return self.out or f"runs/compare-{self.study}-{self.scale}"


_STUDY = next(iter(STUDIES))

SCALES: Mapping[str, CompareConfig] = {
    "quick": CompareConfig(
        study=_STUDY,
        scale="quick",
        model="bytes-0.1m",
        data=DataConfig(tokenizer="bytes", batch_size=8),
        seq_len=64,
        steps=160,
        seeds=3,
        learning_rates=(2e-3, 4e-3, 8e-3, 1.6e-2),
        search_seeds=1,
        heldout_tokens=16_384,
    ),
    # Ten seeds: with the thirteen comparisons of `controls`, fewer leave no p that survives Holm's
    # correction, whatever the differences (13 * 2^(1 - 9) > 0.05).
    "cpu": CompareConfig(
        study=_STUDY,
        scale="cpu",
        model="bytes-0.3m",
        data=DataConfig(tokenizer="bytes", batch_size=8),
        seq_len=None,
        steps=400,
        seeds=10,
        learning_rates=(1.5e-3, 3e-3, 6e-3, 1.2e-2),
        search_seeds=2,
        heldout_tokens=65_536,
    ),
    # 15.7M tokens a run.
    "gpu": CompareConfig(
        study=_STUDY,
        scale="gpu",
        model="dense-110m",
        data=DataConfig(batch_size=32),
        seq_len=None,
        steps=480,
        seeds=3,
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
        search_seeds=1,
        heldout_tokens=1 << 19,
    ),
}

LINE = CommandLine(
    "compare",
    "Compare activations at equal data order, initial values, parameters and compute; the same"
    " command again resumes, and beside it, with another device, takes its share. --quick is"
    " --scale quick. Over several studies there are the programs"
    f" {', '.join(WIDER)}, each with a --help of its own.",
    short={"data": "data.source", "batch_size": "data.batch_size"},
    old={"workdir": "out", "study": "study"},
    lists={
        "studies": [f"\n  {name:<14}{study.question}" for name, study in STUDIES.items()],
        "over several studies": [f"\n  {name:<14}{about}" for name, about in WIDER.items()],
        "models": MODELS,
        "activations": ACTIVATIONS,
    },
)


def from_command(argv: Sequence[str]) -> CompareConfig:
    """The study of a command line, see `read_scaled`."""
    return read_scaled(LINE, SCALES, argv)


def read_scaled(line: CommandLine, scales: Mapping[str, C], argv: Sequence[str]) -> C:
    """Reads a command line: the defaults of its --scale, then flags.

    Raises:
        InputError: an unknown scale, flag or name, or a value that is refused.
        SystemExit: after `--help` or `--list`.
    """
    words = ["--scale=quick" if word == "--quick" else word for word in argv]
    settings = line.read(scales["cpu"], words)
    chosen = [word for setting in settings if setting.name == "scale" for word in setting.words]
    scale = chosen[-1] if chosen else "cpu"
    if scale not in scales:
        raise unknown("scale", scale, scales)
    return line.parse(scales[scale], settings)
