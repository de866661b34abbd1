"""A study under way: searches rates, trains all arms on all seeds, times them, and reports.

Several processes may be at one study, see `experiments.compare.sharing`: the same command in each,
with a device of its own. What concerns the whole folder is done by one after the other.
"""

import contextlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import jax

from experiments.compare import own_files, report, timing
from experiments.compare.arms import Arm, check_widths, training_flops
from experiments.compare.concluding import Finished
from experiments.compare.config import CompareConfig
from experiments.compare.recipe import worded
from experiments.compare.runs import Run, RunFolder, RunKey, data_fingerprint
from experiments.compare.sharing import Sharing
from experiments.compare.train import Programs, compile_programs, heldout_batches, train
from experiments.run.folder import Workdir
from experiments.run.lock import Hold
from experiments.run.provenance import circumstances, versions
from experiments.run.resuming import BY_FINGERPRINT
from experiments.run.settings import check_settings
from experiments.run.signals import GRACE_S, StopRequest, stop_request
from experiments.terminal import flags
from experiments.terminal.progress import Display
from experiments.terminal.tables import print_section
from polycom_jax import models, storage
from polycom_jax.data import Corpus, prepare, train_batches
from polycom_jax.models import ModelConfig
from polycom_jax.storage import Place

FREE = frozenset(
    {"out", "json", "arms", "activation", "seeds", "learning_rates", "search_seeds", "scale"}
    | {"data.cache_dir", "data.lock_timeout_s", *BY_FINGERPRINT}
)
"""Settings that may change while a folder's runs stay what they are."""


def common_settings(config: CompareConfig) -> dict[str, Any]:
    """What all runs of a study's folder have in common, by name."""
    settings = flags.flatten(config)
    settings["study"] = config.chosen.runs_of or config.study
    # What it says, not how it was written; None in folders from before there was one. A folder has
    # one block of seeds: more of them follow those that are there.
    settings["recipe"] = config.changes or None
    settings["first_seed"] = config.first_seed or None
    return {name: value for name, value in settings.items() if name not in FREE}


class Comparing:
    """One study under way: its data, its compiled programs, its finished runs."""

    def __init__(
        self,
        config: CompareConfig,
        root: Place,
        command: str,
        display: Display,
        carried: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """`carried`: arm -> a rate of smaller models, to be checked in place of a search."""
        self.config, self.root, self.command, self.display = config, root, command, display
        self.study = config.chosen
        base = config.common.model
        check_widths(self.study.arms, base)
        self.corpus: Corpus = prepare(
            config.data, vocab_size=base.vocab_size, progress=display.busy
        )
        self.base = replace(base, vocab_size=self.corpus.tokenizer.vocab_size)
        settings, common = flags.flatten(config), common_settings(config)
        kept = root / "settings.json"
        known = not storage.is_made(kept) or "device" in json.loads(storage.read(kept))
        data = {
            **({"device": jax.devices()[0].device_kind} if known else {}),
            "data_fingerprint": data_fingerprint(kept, self.corpus),
            "train_tokens": self.corpus.train.num_tokens,
            "vocab_size": self.base.vocab_size,
            **{name: settings[name] for name in BY_FINGERPRINT},
        }
        check_settings(
            kept,
            {**common, **data, "jax": jax.__version__},
            # The fingerprint decides; these say what it is of.
            free={"train_tokens", "vocab_size", *BY_FINGERPRINT},
            holds="runs with other settings",
            advice="Repeat the command that made them, or give another --out. Only arms, seeds,"
            " learning rates and search seeds may change.",
        )
        own_files.keep(root, self.study.arms)
        self.runs = RunFolder(root / "runs")
        rows, seq_len = config.data.batch_size, self.base.context_length
        self.heldout = heldout_batches(
            self.corpus.heldout, batch_size=rows, seq_len=seq_len, tokens=config.heldout_tokens
        )
        some = next(train_batches(self.corpus.train, batch_size=rows, seq_len=seq_len, seed=0))
        self.batch = jax.device_put(some)
        self.programs: dict[str, Programs] = {}
        self.circumstances = circumstances()
        self.sharing = Sharing(config, carried, self.runs, self.trained, display)
        self.stop = StopRequest(GRACE_S)

    def model(self, arm: Arm) -> ModelConfig:
        """The arm's model."""
        return arm.model(self.base)

    def compiled(self, arm: Arm) -> Programs:
        """The arm's programs, compiled on first use."""
        if arm.name not in self.programs:
            self.display.doing(f"compile {arm.name}")
            optim = arm.optimizer(self.config.common.optim)
            self.programs[arm.name] = compile_programs(self.model(arm), optim, self.batch)
        return self.programs[arm.name]

    def train(self) -> None:
        """Every run; those that are finished are read."""
        self.describe()
        with stop_request(GRACE_S) as self.stop:
            self.agenda = self.sharing.all()

    def conclude(self, *, report: bool = True) -> None:
        """Times a step of each arm, if nobody has done so, and reports, if so wanted."""
        arms = self.study.arms
        times = timing.measured(
            self.root / timing.TIMES,
            {arm.folder: partial(self.compiled, arm) for arm in arms},
            self.batch,
            self.display.doing,
        )
        self.display.stop()
        if not report:
            return
        now, finished = self.agenda, self.sharing.finished
        searched = {name: [finished[key] for key in keys] for name, keys in now.searched.items()}
        results = {name: [finished[key] for key in keys] for name, keys in now.results.items()}
        self.report(
            Finished(self.config, self.study, self.base, now.searches, searched, results, times)
        )

    def describe(self) -> None:
        """A line on the study, and one on each arm's size."""
        config, base = self.config, self.base
        tokens = config.data.batch_size * base.context_length
        self.display.note(
            f"{config.study}: {self.study.question}\n"
            f"{config.model}; lengths {', '.join(f'{n:,}' for n in config.lengths)} steps of"
            f" {tokens:,} tokens; {self.corpus.train.num_tokens:,} training tokens"
            f" ({config.steps * tokens / self.corpus.train.num_tokens:.2f} epochs);"
            f" {config.seeds} seeds; one device, {jax.devices()[0].device_kind}"
        )
        if self.corpus.treated:
            self.display.note(self.corpus.treated)
        if config.changes:
            self.display.note(f"recipe: {self.recipe}")
        for arm in self.study.arms:
            cfg = self.model(arm)
            self.display.note(
                f"  {arm.name:<22}{models.count_params(cfg):>12,} parameters"
                f"{training_flops(cfg):>16,.0f} FLOPs a token"
            )

    def trained(self, arm: Arm, key: RunKey, hold: Hold) -> Run:
        """A run, from where it was stopped if it was."""
        programs = self.compiled(arm)
        self.display.doing(f"{arm.name}, rate {key.rate:.3g}, seed {key.seed}")
        rows, store = self.config.data.batch_size, self.corpus.train
        return self.runs.made(
            key,
            lambda kept: train(programs, key, store, self.heldout, batch_size=rows, kept=kept),
            commit=self.circumstances["commit"],
            stop=self.stop,
            tell=lambda text: self.display.note(f"{arm.name}, seed {key.seed} {text}"),
            hold=hold,
        )

    def report(self, done: Finished) -> None:
        """Prints the tables; writes report, numbers and figures."""
        about = {**self.about(), "commit of the runs": done.commits}
        text, numbers = done.write(self.root, about)
        for section in report.sections(done.findings):
            print_section(self.display.console, section)
        self.display.note(
            f"Report: {text}   Numbers: {numbers}   Plots: {self.root / 'plots'}\n"
            f"Next:\n  {self.next_command()}"
        )

    @property
    def recipe(self) -> str:
        """What all arms have otherwise than without --recipe, in a line; empty: nothing."""
        return " ".join(worded(self.config.changes))

    def about(self) -> dict[str, Any]:
        """Where the numbers come from."""
        config, base = self.config, self.base
        return {
            "command": self.command,
            **({"recipe": self.recipe} if self.recipe else {}),
            **versions(),
            **self.circumstances,
            "model": f"{config.model}: {base.num_layers} layers of {base.embed_dim},"
            f" gated width {base.gated_width}, vocabulary {base.vocab_size}",
            "data": f"{config.data.source} ({self.corpus.fingerprint})",
            **({"text": self.corpus.treated} if self.corpus.treated else {}),
            "tokens": f"{config.data.batch_size} x {base.context_length} a step,"
            f" {config.lengths} steps, of {self.corpus.train.num_tokens:,} for training",
            "seeds": worded_seeds(config.result_seeds),
            **own_files.worded(self.study.arms),
        }

    def next_command(self) -> str:
        """More seeds, or another study."""
        if self.config.scale == "quick":
            return f"python -m experiments.compare {self.config.study} --scale cpu"
        changed = {"--seeds": 2 * self.config.seeds, "--workdir": None, "--out": self.root}
        return shlex.join(flags.replaced(shlex.split(self.command), changed))


def carry_out(
    config: CompareConfig,
    command: str,
    display: Display,
    carried: Mapping[str, float] = MappingProxyType({}),
    written: Callable[[Place], None] | None = None,
) -> bool:
    """A whole study in its folder, or this process's part of it.

    Of several processes the one that has trained the last run reports; all wait for the times of a
    step, so that nothing else runs meanwhile.

    Args:
        config: of the study.
        command: for the report.
        display: for people.
        carried: see `Comparing`.
        written: takes the folder while its report is this process's, and not the next one's, so
            that there is a report of this process, too.

    Returns:
        Whether it has reported.
    """
    folder = Workdir(config.folder)

    def held() -> contextlib.AbstractContextManager[object]:
        return folder.locked("--out", patient=True, notify=display.note)

    with held():
        study = Comparing(config, folder.root, command, display, carried)
    study.train()
    with held():
        report = study.sharing.last or written is not None
        study.conclude(report=report)
        if written is not None:
            written(folder.root)
    if not report:
        display.note(
            f"{folder.root}: the process that trained the last run reports; if it was ended before"
            " that, the same command once more does."
        )
    return report


def worded_seeds(seeds: range) -> str:
    """Their number, and which they are where that is not 0, 1, 2 ..."""
    return f"{len(seeds)}" if seeds[0] == 0 else f"{len(seeds)}, {seeds[0]} to {seeds[-1]}"
