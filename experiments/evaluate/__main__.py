"""Measures a model on texts and tasks: `python -m experiments.evaluate --help`."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

from rich.table import Table
from tyro.conf import Positional, arg

from experiments.evaluate import downstream
from experiments.run.files import STDOUT, try_json, write_json
from experiments.run.model_loading import (
    Model,
    Split,
    Weights,
    check_finite,
    check_tokenizer,
    load_model,
    read_text,
)
from experiments.terminal.checks import at_least
from experiments.terminal.flags import CommandLine
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from experiments.terminal.tables import print_section, print_table, table_of
from polycom_jax import storage
from polycom_jax._errors import require
from polycom_jax._fields import PathText, PlaceText, check_fields
from polycom_jax.data import (
    ByteTokenizer,
    Corpus,
    FileTokenizer,
    Tokenizer,
    TokenStore,
    eval_batches,
)
from polycom_jax.data.sources import names_files
from polycom_jax.sharding import make_mesh
from polycom_jax.training import batch_rows, evaluate, make_eval_step, put_batch

LINE = CommandLine(
    "evaluate",
    "Measure the loss of runs and Hugging Face models on texts, and their scores in tasks of"
    " lm-evaluation-harness (extra `eval`).",
    old={"workdir": "runs"},
    lists={"sets of tasks": downstream.TASK_SETS},
)

Windows = Literal["packed", "sliding"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Which models, on which text, and how.

    Attributes:
        runs: folders of runs, or Hugging Face folders.
        checkpoint: checkpoint of the runs: "latest", "best" (lowest held-out loss), or a step.
        weights: of the runs: "last", those of that step; "ema", their moving average, which runs
            with optim.ema_decay keep.
        data: texts, each as for `experiments.pretrain --data`. Default: stdlib; with --tasks, no
            text.
        tasks: tasks or groups of lm-evaluation-harness by name, the sets paper-dense and paper-moe,
            or your own tasks as YAML files or folders of them.
        num_fewshot: solved examples before each question. Default: what the task says.
        limit: documents of each task, for a quick look. Default: all.
        split: "heldout": only documents that training on this text leaves out (for the text of the
            run itself, those that it left out); "all": every document (of a TFDS name, of the split
            to train on and the held-out one).
        windows: "packed": windows one after another; "sliding": overlapping windows in which each
            token counts once, and sees at least the seq_len - stride tokens before it, if its
            document has so many.
        stride: tokens from one sliding window to the next. Default: half of seq_len.
        seq_len: tokens of a window, and the most that a task may fill. Default: the model's
            context.
        batch_size: windows of text, or requests of a task, in one batch.
        tokenizer: for a folder without a tokenizer: "bytes", or the path of a tokenizer.json.
        end_of_text: the end-of-text token, for a folder that does not name it.
        text_field: as --data.text-field of `experiments.pretrain`. Default: that of the run for its
            own text, else "text".
        json: also write the numbers, of several runs a list, to this file, or to stdout (-).
    """

    runs: Annotated[tuple[PlaceText, ...], Positional, arg(metavar="[RUN ...]")] = (
        "runs/tiny-poly_norm",
    )
    checkpoint: str = "latest"
    weights: Weights = "last"
    data: Annotated[tuple[PlaceText, ...], arg(metavar="TEXT [TEXT ...]")] = ()
    tasks: Annotated[tuple[PathText, ...], arg(metavar="TASK [TASK ...]")] = ()
    num_fewshot: int | None = None
    limit: int | None = None
    split: Split = "heldout"
    windows: Windows = "packed"
    stride: int | None = None
    seq_len: int | None = None
    batch_size: int = 8
    tokenizer: PlaceText | None = None
    end_of_text: str | None = None
    text_field: str | None = None
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.runs), "Name one or more folders of runs, as runs/tiny-poly_norm.")
        at_least(self, 1, "seq_len", "stride", "batch_size", "limit")
        at_least(self, 0, "num_fewshot")
        for name in ("num_fewshot", "limit"):
            value = getattr(self, name)
            require(value is None or bool(self.tasks), f"{name}={value} is of --tasks; name some.")
        require(
            self.stride is None or self.windows == "sliding",
            f"stride={self.stride} goes with windows='sliding'; packed windows do not overlap.",
        )


@program
def main(argv: Sequence[str]) -> int:
    """Prints one row a text and a number of a task, and writes them where a file is named."""
    config = LINE(EvaluateConfig(), argv)
    try_json(config.json)
    for run in config.runs:  # a missing one is reported before hours of work on others
        folder = storage.named(run)
        storage.require_reachable(folder)
        there = storage.is_folder(folder)
        require(there, f"{run!r} is no folder of a run, nor one of Hugging Face.")
    mesh = make_mesh()
    with Display(aside=config.json == STDOUT) as display:
        found = [measured(run, config, mesh, display) for run in config.runs]
        write_json(config.json, found if len(found) > 1 else found[0])
        display.note(f"Next:\n  python -m experiments.analyze {shlex.join(config.runs)}")
    return 0


def measured(run: str, config: EvaluateConfig, mesh: Any, display: Display) -> dict[str, Any]:
    """The numbers of one run, printed as they come."""
    display.busy(f"reading {run}")
    folder, end = storage.named(run), config.end_of_text
    model = load_model(
        folder, config.checkpoint, mesh=mesh, end_of_text=end, weights=config.weights
    )
    check_finite(model.origin, model.params)
    display.note(f"{model.origin}: {model.cfg.activation_name}")
    found: dict[str, Any] = {"run": run, "config": asdict(config)}
    texts = config.data if config.data or config.tasks else ("stdlib",)
    if texts:
        measure = Measure(config, model, mesh, display)
        rows = [measure(source) for source in texts]
        found |= {"seq_len": measure.seq_len, "stride": measure.stride, "results": rows}
        print_table(display.console, table(config, measure, rows))
    if config.tasks:
        found["tasks"] = run_tasks(config, model, mesh, display)
        print_section(display.console, downstream.section(found["tasks"]))
    return found


def run_tasks(config: EvaluateConfig, model: Model, mesh: Any, display: Display) -> dict[str, Any]:
    """The numbers of all tasks, see `downstream.run_tasks`."""
    check_tokenizer(model, config.tokenizer)
    tokenizer: Tokenizer | None = None
    if config.tokenizer is not None:
        named = config.tokenizer
        end = config.end_of_text
        tokenizer = ByteTokenizer() if named == "bytes" else FileTokenizer(named, end_of_text=end)
    return downstream.run_tasks(
        config.tasks,
        model,
        tokenizer,
        mesh,
        display,
        batch_size=config.batch_size,
        max_length=config.seq_len or model.cfg.context_length,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
    )


class Measure:
    """One model's numbers on one text after the other; its program is compiled once."""

    def __init__(self, config: EvaluateConfig, model: Model, mesh: Any, display: Display) -> None:
        self._config, self._model, self._mesh, self._display = config, model, mesh, display
        self.seq_len = config.seq_len or model.cfg.context_length
        self.stride = self.seq_len
        if config.windows == "sliding":
            self.stride = config.stride or max(1, self.seq_len // 2)
        self._step = make_eval_step(model.cfg, mesh)

    def __call__(self, source: str) -> dict[str, Any]:
        """The numbers on one text.

        Raises:
            InputError: a text that cannot be read, or a tokenizer that is not the model's.
        """
        corpus = self._prepared(source)
        stores = [corpus.heldout]
        if self._config.split == "all" and not names_files(source):
            stores.insert(0, corpus.train)
        batches = [batch for store in stores for batch in self._batches(store)]
        self._display.start(0, sum(map(len, batches)))
        self._display.doing(source)
        put = partial(put_batch, mesh=self._mesh, batch_size=self._config.batch_size)
        num_bytes = sum(store.num_bytes for store in stores)
        found = evaluate(
            self._step, self._model.params, map(put, self._counted(batches)), num_bytes
        )
        self._display.stop()
        return {
            "data": source,
            "documents": sum(store.num_documents for store in stores),
            "bytes": num_bytes,
            **found,
        }

    def _batches(self, store: TokenStore) -> list[Any]:
        if store.num_targets == 0:
            return []
        size = self._config.batch_size
        rows = batch_rows(size, self._mesh).tolist()
        return [
            eval_batches(
                store, batch_size=size, seq_len=self.seq_len, stride=self.stride, rows=rows
            )
        ]

    def _counted(self, batches: list[Any]) -> Any:
        done = 0
        for part in batches:
            for batch in part:
                yield batch
                done += 1
                self._display.step(done)

    def _prepared(self, source: str) -> Corpus:
        """The text as the model's own tokens."""
        asked = self._config
        corpus = read_text(
            self._model,
            source,
            self._display.busy,
            split=asked.split,
            tokenizer=asked.tokenizer,
            text_field=asked.text_field,
        )
        if corpus.treated:
            self._display.note(f"{source}: {corpus.treated}")
        return corpus


def table(config: EvaluateConfig, measure: Measure, rows: list[dict[str, Any]]) -> Table:
    """One line a text."""
    title = (
        f"{config.split} text, {config.windows} windows of {measure.seq_len} tokens,"
        f" one every {measure.stride}"
    )
    counts = ("documents", "bytes", "tokens")
    cells = [
        (
            row["data"],
            *(f"{row[name]:,.0f}" for name in counts),
            f"{row['loss']:.4f}",
            f"{row['bits_per_byte']:.4f}",
        )
        for row in rows
    ]
    return table_of(title, ("data", *counts, "nats a token", "bits a byte"), cells)


if __name__ == "__main__":
    sys.exit(main())
