"""Does the best learning rate stay where it is as the model gets wider?

python -m experiments.compare transfer
python -m experiments.compare transfer --widths 64 128 256 --seeds 4 --out runs/transfer
"""

import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import jax
import numpy as np

from experiments.compare import own_files
from experiments.compare.arms import Arm, pinned
from experiments.compare.config import HEAD, shape
from experiments.compare.runs import Run, RunFolder, RunKey
from experiments.compare.train import Programs, compile_programs, heldout_batches, train
from experiments.run.compiled import cache_compiled
from experiments.run.files import STDOUT, hand_over, try_json, write_json, write_text
from experiments.run.folder import Workdir
from experiments.run.named_activations import chosen_by
from experiments.run.provenance import circumstances, versions
from experiments.run.rate_search import FIRST_SEED, Search, search
from experiments.run.settings import check_settings
from experiments.run.signals import GRACE_S, StopRequest, stop_request
from experiments.terminal import flags
from experiments.terminal.checks import at_least
from experiments.terminal.flags import CommandLine
from experiments.terminal.progress import Display
from experiments.terminal.tables import Section, page, print_section
from polycom_jax._errors import InputError, require
from polycom_jax._fields import PathText, PlaceText, check_fields
from polycom_jax.data import DataConfig, prepare, train_batches
from polycom_jax.models import ModelConfig
from polycom_jax.models.config import Parametrization
from polycom_jax.table import ACTIVATIONS
from polycom_jax.training import OptimConfig

TEXT, NUMBERS = "transfer.md", "transfer.json"
TITLE = "Transfer: does the best learning rate depend on the width?"

DATA = DataConfig(tokenizer="bytes", batch_size=8)


@dataclass(frozen=True)
class TransferConfig:
    """Models of two layers at several widths, each trained at every rate.

    Attributes:
        activations: rows of the table, or FILE.py:NAME or MODULE:NAME for what
            polycom_jax.activation has made in a file.
        widths: of the residual stream, ascending multiples of 32, the width of a head; the first is
            muP's base, where the two parametrizations are one.
        learning_rates: peak learning rates that each grid begins with; one goes on where its best
            is at an edge.
        steps: updates of a run.
        seeds: runs at each rate.
        seq_len: tokens of a window.
        data: text, tokenizer and batch.
        heldout_tokens: tokens of held-out text in an evaluation.
        out: folder for runs and results.
        json: also write transfer.json to this file, or to stdout (-).
    """

    activations: tuple[str, ...] = ("swiglu", "poly_norm")
    widths: tuple[int, ...] = (64, 256)
    learning_rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 1.6e-2)
    steps: int = 160
    seeds: int = 2
    seq_len: int = 64
    data: DataConfig = DATA
    heldout_tokens: int = 16_384
    out: PlaceText = "runs/compare-transfer"
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            isinstance(self.data.source, str),
            f"data.source={self.data.source!r}: a study trains on one text; name one.",
        )
        at_least(self, 1, "seeds", "seq_len", "heldout_tokens")
        at_least(self, 8, "steps")
        chosen_by(self.activations)
        object.__setattr__(self, "activations", pinned(self.activations))
        require(
            len(self.widths) >= 2
            and all(width >= HEAD and width % HEAD == 0 for width in self.widths)
            and all(a < b for a, b in itertools.pairwise(self.widths)),
            f"widths={self.widths} must be two or more ascending multiples of {HEAD}.",
        )
        rates = self.learning_rates
        require(
            len(rates) >= 2
            and all(0 < rate < math.inf for rate in rates)
            and all(a < b for a, b in itertools.pairwise(rates)),
            f"learning_rates={rates} must be two or more, positive and ascending.",
        )
        for name, width in itertools.product(self.activations, self.widths):
            self._check_hidden(name, width)

    def _check_hidden(self, activation: str, width: int) -> None:
        cfg = self.model(activation, width, "standard")
        try:
            cfg.activation_fn.specs_at(cfg.hidden_width)
        except InputError as error:
            raise InputError(
                f"{error} It is that of the width {width}; take multiples of {3 * HEAD} as"
                f" --widths, or leave {activation} out of --activations."
            ) from error

    def model(self, activation: str, width: int, parametrization: Parametrization) -> ModelConfig:
        """The smallest model of `compare` at another width."""
        base = {"mup_base_width": self.widths[0]} if parametrization == "mup" else {}
        return replace(
            shape("bytes-0.1m"),
            activation=activation,
            embed_dim=width,
            num_heads=width // HEAD,
            num_kv_heads=width // HEAD,
            gated_width=8 * round(width / 3),
            context_length=self.seq_len,
            parametrization=parametrization,
            **base,
        )


FREE = frozenset(
    {"activations", "widths", "learning_rates", "seeds", "out", "json"}
    | {"data.source", "data.heldout", "data.cache_dir", "data.lock_timeout_s"}
)

LINE = CommandLine(
    "compare transfer",
    "Search the learning rate of narrow and wide models, in the standard parametrization and in"
    " muP (--model.parametrization mup of the other programs).",
    short={"data": "data.source", "batch_size": "data.batch_size"},
    lists={"activations": ACTIVATIONS},
)


@dataclass(frozen=True)
class Found:
    """A grid of rates.

    Attributes:
        activation: of the model.
        width: of it.
        parametrization: of it.
        search: rates, held-out losses, and the best.
        octaves: log2 of the best rate in units of that of the narrowest model.
        cost_of_carrying: held-out loss at the narrowest model's best rate less that at its own.
    """

    activation: str
    width: int
    parametrization: str
    search: Search
    octaves: float
    cost_of_carrying: float


class Transferring:
    """The study under way; finished runs are read."""

    def __init__(
        self, config: TransferConfig, folder: Workdir, display: Display, stop: StopRequest
    ) -> None:
        self.config, self.display, self.stop = config, display, stop
        vocab = shape("bytes-0.1m").vocab_size
        self.corpus = prepare(config.data, vocab_size=vocab, progress=display.busy)
        kept = {k: v for k, v in flags.flatten(config).items() if k not in FREE}
        check_settings(
            folder.root / "settings.json",
            {**kept, "data_fingerprint": self.corpus.fingerprint, "jax": jax.__version__},
            holds="runs with other settings",
            advice="Repeat the command that made them, or give another --out. Only activations,"
            " widths, learning rates and seeds may change.",
        )
        own_files.keep(folder.root, map(Arm.of, config.activations))
        self.runs = RunFolder(folder.root / "runs")
        rows, length = config.data.batch_size, config.seq_len
        self.heldout = heldout_batches(
            self.corpus.heldout, batch_size=rows, seq_len=length, tokens=config.heldout_tokens
        )
        some = next(train_batches(self.corpus.train, batch_size=rows, seq_len=length, seed=0))
        self.batch = jax.device_put(some)

    def all(self) -> list[Found]:
        """Every grid, the narrowest model's first."""
        found: list[Found] = []
        for activation in self.config.activations:
            narrow = self.grid(activation, self.config.widths[0], "standard")
            found.append(_found(activation, self.config.widths[0], "standard", narrow, narrow))
            for width in self.config.widths[1:]:
                for kind in get_args(Parametrization):
                    own = self.grid(activation, width, kind, narrow.best)
                    found.append(_found(activation, width, kind, own, narrow))
        return found

    def grid(
        self, activation: str, width: int, kind: Parametrization, carried: float | None = None
    ) -> Search:
        """Trains at every rate, and at the one that is `carried`."""
        name, compiled = f"{Arm.of(activation).folder}-{width}-{kind}", None

        def score(rate: float) -> float:
            nonlocal compiled
            losses = []
            for seed in range(FIRST_SEED, FIRST_SEED + self.config.seeds):
                key = RunKey(name, rate, seed, (self.config.steps,))
                run = self.runs.read(key)
                if run is None:
                    compiled = compiled or self.compiled(activation, width, kind)
                    self.display.doing(f"{name}, rate {rate:.3g}, seed {seed}")
                    run = self.trained(compiled, key)
                losses.append(run.score)
            return float(np.mean(losses))

        rates = {*self.config.learning_rates, *([] if carried is None else [carried])}
        found = search(sorted(rates), score)
        self.display.note(f"{name}: rate {found.best:.3g}, held-out {min(found.losses):.4f}")
        return found

    def trained(self, programs: Programs, key: RunKey) -> Run:
        """A run, which goes on where it was stopped."""
        rows, store = self.config.data.batch_size, self.corpus.train
        return self.runs.made(
            key,
            lambda kept: train(programs, key, store, self.heldout, batch_size=rows, kept=kept),
            commit=circumstances()["commit"],
            stop=self.stop,
            tell=lambda text: self.display.note(f"{key.arm}, seed {key.seed} {text}"),
        )

    def compiled(self, activation: str, width: int, kind: Parametrization) -> Programs:
        """The programs of one model, for all its rates and seeds."""
        self.display.doing(f"compile {activation}, width {width}, {kind}")
        cfg = self.config.model(activation, width, kind)
        cfg = replace(cfg, vocab_size=self.corpus.tokenizer.vocab_size)
        return compile_programs(cfg, OptimConfig(), self.batch)


def _found(activation: str, width: int, kind: str, own: Search, narrow: Search) -> Found:
    carried = own.losses[own.rates.index(narrow.best)]
    octaves = math.log2(own.best / narrow.best)
    return Found(Arm.of(activation).name, width, kind, own, octaves, carried - min(own.losses))


def sections(found: Sequence[Found]) -> list[Section]:
    """Which rate is best, and the losses that say so."""
    best = [
        (
            one.activation, f"{one.width}", one.parametrization,
            f"{one.search.best:.3g}" + (" (at the edge)" if one.search.at_edge else ""),
            f"{one.octaves:+.3g}", f"{min(one.search.losses):.4f}", f"{one.cost_of_carrying:.4f}",
        )
        for one in found
    ]  # fmt: skip
    rates = sorted({rate for one in found for rate in one.search.rates})
    losses = [
        (f"{one.activation}, {one.width}, {one.parametrization}", *_losses(one.search, rates))
        for one in found
    ]
    columns = ("width", "parametrization", "best rate", "octaves", "held-out", "lost by carrying")
    return [
        Section(
            "The best rates",
            ("activation", *columns),
            tuple(best),
            (
                "Octaves: log2 of the best rate in units of the narrowest model's. Lost by carrying"
                " that rate: held-out loss at it less the loss at the model's own best, on the"
                " seeds that chose the best, so that it is never below 0. At the base width muP is"
                " the standard parametrization.",
            ),
        ),
        Section(
            "Held-out nats a token at each rate",
            ("model", *(f"{rate:.3g}" for rate in rates)),
            tuple(losses),
        ),
    ]


def _losses(found: Search, rates: Sequence[float]) -> list[str]:
    known = dict(zip(found.rates, found.losses, strict=True))
    return [f"{known[rate]:.4f}" if rate in known else "" for rate in rates]


def about(config: TransferConfig, study: Transferring, command: str) -> Mapping[str, Any]:
    """Where the numbers come from."""
    tokens = config.data.batch_size * config.seq_len
    return {
        "command": command,
        **versions(),
        **circumstances(),
        **own_files.worded(map(Arm.of, config.activations)),
        "model": f"2 layers, widths {', '.join(map(str, config.widths))}, heads of {HEAD}",
        "data": f"{config.data.source} ({study.corpus.fingerprint})",
        "tokens": f"{config.steps} updates of {tokens}",
        "seeds": config.seeds,
        "commit of the runs": ", ".join(
            sorted({run.commit or "not known" for run in study.runs.all()})
        ),
    }


def main(argv: Sequence[str]) -> int:
    """Trains what is not there yet; writes what came out."""
    config = LINE(TransferConfig(), argv)
    try_json(config.json)
    command = shlex.join(["python", "-m", "experiments.compare", "transfer", *argv])
    cache_compiled(config.data.cache_dir)
    folder = Workdir(config.out)
    with (
        Display(aside=config.json == STDOUT) as display,
        folder.locked("--out", notify=display.note),
    ):
        with stop_request(GRACE_S) as stop:
            study = Transferring(config, folder, display, stop)
            found = study.all()
        tables, facts = sections(found), about(config, study, command)
        write_text(folder.root / TEXT, page(TITLE, facts, tables, ()))
        write_json(folder.root / NUMBERS, {"about": facts, "found": [asdict(f) for f in found]})
        for table in tables:
            print_section(display.console, table)
        hand_over(config.json, folder.root / NUMBERS)
    return 0
