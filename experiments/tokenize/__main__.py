"""Tokenises a corpus by many workers: `python -m experiments.tokenize --help`.

    python -m experiments.tokenize --data 'text/*.jsonl.zst' --tokenizer tokenizer.json

What is done is kept: the same command goes on where one was ended. A run with the same `--data`,
tokenizer and cache folder finds everything prepared.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from experiments.run.config import default_config
from experiments.terminal.checks import at_least
from experiments.terminal.flags import CommandLine
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from experiments.tokenize import executors, workers
from polycom_jax._errors import require
from polycom_jax._fields import check_fields
from polycom_jax.data import DataConfig
from polycom_jax.data.corpus import open_prepared
from polycom_jax.data.mixture import requests
from polycom_jax.data.plan import PIECE_BYTES
from polycom_jax.data.preparing import Progress, alone, begin, discarded_if_changed, finish
from polycom_jax.data.request import Request

LINE = CommandLine(
    "tokenize",
    "Tokenise a corpus by many workers, for runs that then begin at once.",
    short={"data": "data.source", "tokenizer": "data.tokenizer", "cache_dir": "data.cache_dir"},
    refused=frozenset({"data.batch_size"}),
    why_refused="tokens do not depend on it; leave it out.",
)


@dataclass(frozen=True)
class TokenizeConfig:
    """What to tokenise, and by whom.

    Attributes:
        data: the corpus and its tokenizer, as for `experiments.pretrain`.
        vocab_size: of a BPE to train: the model's.
        workers: processes; with another executor, tasks at a time. Default: one a CPU.
        executor: "local", processes of this machine; or one of datatrove's (extra tokenize):
            "datatrove-local", "slurm", "ray".
        piece_bytes: of text, about, in a shard; each is for one worker.
        slurm_partition: where Slurm runs the tasks.
        slurm_time: how long Slurm gives each of them.
    """

    data: DataConfig = field(default_factory=DataConfig)
    vocab_size: int = default_config("tiny").model.vocab_size
    workers: int | None = None
    executor: Literal["local", "datatrove-local", "slurm", "ray"] = "local"
    piece_bytes: int = PIECE_BYTES
    slurm_partition: str | None = None
    slurm_time: str = "24:00:00"

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(self, 1, "vocab_size", "piece_bytes")
        if self.workers is not None:
            at_least(self, 1, "workers")
        require(
            (self.executor == "slurm") == (self.slurm_partition is not None),
            f"executor={self.executor!r} with slurm_partition={self.slurm_partition!r}: Slurm needs"
            " a partition, and nothing else takes one.",
        )


@program
def main(argv: Sequence[str]) -> int:
    """Does what is missing, and says what there is."""
    config = LINE(TokenizeConfig(), argv)
    with Display() as display:
        every = requests(config.data, config.vocab_size, display.busy)
        queued = [
            asked for asked in every if not asked.done and not _prepare(config, asked, display)
        ]
        for asked in every:
            if asked not in queued:
                _tell(asked, display)
        if queued:
            display.note(
                "Queued. Once all tasks are done, the same command puts the pieces together, or a"
                " run with this data does."
            )
    return 0


def _tell(asked: Request, display: Display) -> None:
    """What there is of a text."""
    corpus = open_prepared(asked)
    for split, store in (("train", corpus.train), ("held-out", corpus.heldout)):
        display.note(f"{split}: {store.num_documents:,} documents, {store.num_tokens:,} tokens")
    if corpus.treated:
        display.note(corpus.treated)
    display.note(f"{asked.source.name}: prepared in {asked.folder}")


def _prepare(config: TokenizeConfig, asked: Request, display: Display) -> bool:
    """Whether all is there now."""
    by_itself = config.executor == "local"
    with alone(asked.folder, asked.cfg.lock_timeout_s, display.busy, by_itself):
        job, tokenizer = begin(asked, display.busy, config.piece_bytes)
        pieces = job.missing()
        taken = sum(piece in job.known for piece in pieces)
        display.note(
            f"{len(job.plan.pieces):,} pieces, {len(pieces) - taken:,} of them to tokenise"
            + (f", {taken:,} to take over from earlier data" if taken else "")
        )
        count = config.workers or len(os.sched_getaffinity(0))
        with discarded_if_changed(job):
            if config.executor == "local":
                workers.tokenise(job, pieces, count, Progress(job, pieces, display.busy))
            elif pieces:
                options = _options(config)
                executors.tokenise(job, pieces, config.executor, workers=count, options=options)
        if job.missing():
            return False
        finish(asked, job, tokenizer)
    return True


def _options(config: TokenizeConfig) -> dict[str, Any]:
    if config.executor != "slurm":
        return {}
    return {"time": config.slurm_time, "partition": config.slurm_partition, "job_name": "tokenize"}


if __name__ == "__main__":
    sys.exit(main())
