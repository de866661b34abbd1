"""A grid of sizes, lengths and arms: its flags, and the order in which its studies are run."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from tyro.conf import arg

from experiments.compare.arms import Arm, pinned
from experiments.compare.config import MODELS, SCALES, CompareConfig, read_scaled, shape
from experiments.compare.studies import REFERENCE, STUDIES
from experiments.terminal import flags
from experiments.terminal.checks import at_least
from experiments.terminal.flags import CommandLine
from polycom_jax import models
from polycom_jax._errors import require, unknown
from polycom_jax._fields import PathText, PlaceText, check_fields
from polycom_jax.data import DataConfig

STUDY = "rows"
"""Whose arms there are."""
SEARCHED = 2
"""So many of the smallest sizes search the rate of each arm; larger ones carry it up."""
UNIT = 160
"""Steps come in multiples of this: quarters and fifths of them are whole."""


@dataclass(frozen=True)
class ScalingConfig:
    """A grid: how a difference depends on size and length.

    Attributes:
        scale: set of defaults for all other flags: quick (minutes on two CPU cores, to see the
            program work), cpu (two to three days of a core), gpu (110M to 1.3B parameters).
        sizes: models, ascending.
        tokens: a parameter, at every size.
        longer: tokens a parameter of one more study at each of the smallest sizes, in their order.
        first: arms that every size begins with; swiglu is among them.
        arms: of the two smallest sizes.
        large_arms: of all larger sizes.
        controls: further arms, at the second size alone.
        activation: further arms, at every size from its first entry on: FILE.py:NAME or MODULE:NAME
            for what polycom_jax.activation has made in a file.
        seeds: runs an arm at the two smallest sizes.
        large_seeds: the same at larger ones.
        learning_rates: peaks that the search at the two smallest sizes begins with, ascending, at
            least four; half of these where runs are longer.
        search_seeds: runs for each of these peaks, with seeds that the results do not use.
        data: text, tokenizer and batch.
        seq_len: tokens of a window. Default: each model's context.
        heldout_tokens: tokens of held-out text in an evaluation. Default: all.
        recipe: fields of the recipe to change for all arms and sizes, as in the studies:
            optim.optimizer=muon. They come behind those of the scale.
        dry_run: print the queue and what it would cost, and end.
        out: where the folders of all studies go; those that are there are gone on with.
        json: also write the numbers to this file, or to stdout (-).
    """

    scale: Annotated[str, arg(metavar="quick|cpu|gpu")]
    sizes: tuple[str, ...]
    tokens: int
    longer: tuple[int, ...]
    first: tuple[str, ...]
    arms: tuple[str, ...]
    large_arms: tuple[str, ...]
    controls: tuple[str, ...]
    seeds: int
    large_seeds: int
    learning_rates: tuple[float, ...]
    search_seeds: int
    data: DataConfig
    seq_len: int | None
    heldout_tokens: int | None
    activation: tuple[str, ...] = ()
    recipe: Annotated[tuple[str, ...], arg(metavar="FIELD=VALUE ...")] = ()
    dry_run: bool = False
    out: PlaceText = "runs/scaling"
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "activation", pinned(self.activation))
        at_least(self, 1, "tokens", "longer", "search_seeds", "seq_len", "heldout_tokens")
        at_least(self, 2, "seeds", "large_seeds")
        for size in self.sizes:
            if size not in MODELS:
                raise unknown("model", size, MODELS)
        counts = [parameters(size) for size in self.sizes]
        require(
            bool(counts) and counts == sorted(set(counts)),
            f"sizes={' '.join(self.sizes)} must be one or more, ascending in parameters, which are"
            f" {', '.join(f'{n:,}' for n in counts)}.",
        )
        require(
            len(self.longer) <= min(SEARCHED, len(self.sizes)),
            f"longer={self.longer} must be at most {min(SEARCHED, len(self.sizes))}: one for each"
            " of the smallest sizes.",
        )
        require(
            REFERENCE in self.first,
            f"first={' '.join(self.first)} must have {REFERENCE}, which all are compared with.",
        )
        for names in (self.first, self.large_arms):
            extra = [name for name in names if name not in self.arms]
            require(not extra, f"{' '.join(extra)} must be among arms={' '.join(self.arms)}, too.")
        STUDIES[STUDY].with_activations(self.activation).only((*self.arms, *self.controls))

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the arms that `activation` adds."""
        return tuple(Arm.of(name).name for name in self.activation)


@dataclass(frozen=True)
class Item:
    """One entry of the queue: a study's arms at one size and length.

    Attributes:
        folder: its name within the grid's.
        config: of the study.
        carried: the rates of this size come from the two smallest ones.
    """

    folder: str
    config: CompareConfig
    carried: bool

    @property
    def command(self) -> str:
        """The command that runs it alone, but for rates that are carried up."""
        default = flags.flatten(SCALES["cpu"])
        own = {
            name: value
            for name, value in flags.flatten(self.config).items()
            if value != default[name] and name not in ("study", "scale")
        }
        words = ["python", "-m", "experiments.compare", STUDY, *flags.as_words(own)]
        return shlex.join(words)


def parameters(size: str) -> int:
    """Of the reference's model of that size."""
    return models.count_params(STUDIES[STUDY].arm(REFERENCE).model(shape(size)))


def queue(config: ScalingConfig) -> list[Item]:
    """The studies in an order whose every beginning is a result.

    The first arms come before all others: at the two smallest sizes, there longer, and larger.
    Arms that a folder has from earlier entries stay in it: their runs are finished, and reports and
    times are of all.
    """
    small, large = config.sizes[:SEARCHED], config.sizes[SEARCHED:]
    longer = list(zip(config.sizes, config.longer, strict=False))
    entries: list[tuple[str, int, Sequence[str]]] = [
        *((size, config.tokens, config.first) for size in small),
        *((size, tokens, config.first) for size, tokens in longer),
        *((size, config.tokens, config.first) for size in large[:1]),
        *((size, config.tokens, config.arms) for size in small),
        *((size, config.tokens, config.large_arms) for size in large[:1]),
        *((size, config.tokens, (*config.arms, *config.controls)) for size in small[1:]),
        *((size, tokens, config.arms) for size, tokens in longer),
        *((size, config.tokens, config.first) for size in large[1:]),
        *((size, config.tokens, config.large_arms) for size in large[1:]),
    ]
    items = [_item(config, size, tokens, (*arms, *config.own)) for size, tokens, arms in entries]
    return list({(item.folder, item.config.arms): item for item in items}.values())


def _item(config: ScalingConfig, size: str, tokens: int, arms: Sequence[str]) -> Item:
    carried = size not in config.sizes[:SEARCHED]
    folder = f"{size}-{tokens}"
    share = 0.5 if tokens > config.tokens else 1.0
    study = CompareConfig(
        study=STUDY,
        scale="cpu",
        model=size,
        data=config.data,
        seq_len=config.seq_len,
        steps=steps(config, size, tokens),
        seeds=config.large_seeds if carried else config.seeds,
        learning_rates=tuple(share * rate for rate in config.learning_rates),
        search_seeds=config.search_seeds,
        heldout_tokens=config.heldout_tokens,
        arms=tuple(dict.fromkeys(arms)),
        activation=config.activation,
        recipe=config.recipe,
        out=f"{config.out}/{folder}",
    )
    return Item(folder, study, carried)


def steps(config: ScalingConfig, size: str, tokens: int) -> int:
    """Updates for so many tokens a parameter: a multiple of those for the common number, which are
    rounded up to whole `UNIT`."""
    context = config.seq_len or shape(size).context_length
    wanted = config.tokens * parameters(size) / (config.data.batch_size * context)
    common = UNIT * math.ceil(wanted / UNIT)
    return 4 * round(common * tokens / config.tokens / 4)


def carried_rate(sizes: Sequence[int], rates: Sequence[float], size: int) -> float:
    """The rate that the two smallest sizes carry up to a larger one.

    r_2 (N / N_2)^s, where s = log(r_2 / r_1) / log(N_2 / N_1) is no less than -1/2 and no more than
    0: at equal depth N is the square of the width, and 1 / width is how a rate of Adam's falls
    where it falls most (Yang et al. 2022, arXiv 2203.03466); in no known rule it rises.
    """
    (n1, n2), (r1, r2) = sizes, rates
    slope = min(0.0, max(-0.5, math.log(r2 / r1) / math.log(n2 / n1)))
    return float(f"{r2 * (size / n2) ** slope:.3g}")


_FIRST = (REFERENCE, "poly_norm")
_ARMS = (*_FIRST, "relu2", "gelu", "poly_relu", "poly_norm_glu", "poly_norm_2", "xielu")
_BYTES = DataConfig(tokenizer="bytes", batch_size=8)

SCALINGS: Mapping[str, ScalingConfig] = {
    "quick": ScalingConfig(
        scale="quick",
        sizes=("bytes-0.1m", "bytes-0.3m"),
        tokens=1,
        longer=(2,),
        first=_FIRST,
        arms=_FIRST,
        large_arms=_FIRST,
        controls=(),
        seeds=2,
        large_seeds=2,
        learning_rates=(2e-3, 4e-3, 8e-3, 1.6e-2),
        search_seeds=1,
        data=_BYTES,
        seq_len=64,
        heldout_tokens=16_384,
        out="runs/scaling-quick",
    ),
    "cpu": ScalingConfig(
        scale="cpu",
        sizes=("bytes-0.1m", "bytes-0.3m", "bytes-1m", "bytes-3m"),
        tokens=20,
        longer=(200, 100),
        first=_FIRST,
        arms=_ARMS,
        large_arms=(*_FIRST, "relu2", "poly_norm_glu"),
        controls=("relu2_norm", "swiglu_norm"),
        seeds=5,
        large_seeds=3,
        learning_rates=(1.5e-3, 3e-3, 6e-3, 1.2e-2),
        search_seeds=1,
        data=_BYTES,
        seq_len=None,
        heldout_tokens=262_144,
    ),
    # The paper's range; context and batch are the same at all sizes, so that one law may hold.
    "gpu": ScalingConfig(
        scale="gpu",
        sizes=("dense-110m", "dense-350m", "dense-1b"),
        tokens=20,
        longer=(200, 100),
        first=_FIRST,
        arms=_ARMS,
        large_arms=_FIRST,
        controls=("relu2_norm", "swiglu_norm"),
        seeds=5,
        large_seeds=3,
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
        search_seeds=1,
        data=DataConfig(source="c4/en", batch_size=64),
        seq_len=1024,
        heldout_tokens=1 << 21,
        # So that a state, and a second one while a branch is trained, fit 80 GB at every size; and
        # attention crosses documents at every size as it does in the paper's.
        recipe=("model.remat=full", "model.loss_chunk=4096", "model.document_mask=False"),
        out="runs/scaling-gpu",
    ),
}

LINE = CommandLine(
    "compare scaling",
    "Run a grid of sizes, lengths and arms, one study a folder, in an order whose every beginning"
    " is a result; report after each. The same command again resumes. --quick is --scale quick.",
    short={"data": "data.source", "batch_size": "data.batch_size"},
    old={"workdir": "out"},
    lists={"models": MODELS, "arms": [arm.name for arm in STUDIES[STUDY].arms]},
)


def from_command(argv: Sequence[str]) -> ScalingConfig:
    """The grid of a command line, see `read_scaled`; its recipe comes behind the scale's."""
    found = read_scaled(LINE, SCALINGS, argv)
    usual = SCALINGS[found.scale].recipe
    return found if found.recipe == usual else replace(found, recipe=(*usual, *found.recipe))
