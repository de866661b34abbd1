"""Compares activations: `python -m experiments.compare --help`.

    python -m experiments.compare activations --quick
    python -m experiments.compare controls --seeds 12 --out runs/controls
    python -m experiments.compare activations --recipe optim.optimizer=muon
    python -m experiments.compare scaling --dry-run
    python -m experiments.compare leaderboard
    python -m experiments.compare report experiments/results/compare/scaling
    python -m experiments.compare pretrained gs://BUCKET/runs

One JSON file a finished run: the same command again resumes, and more seeds add to what is there.
The same command beside it, with another device, takes part: see `experiments.compare.sharing`.
A run that was stopped goes on, from a minute before as a rule; see `experiments.run.kept_state`.
"""

import importlib
import shlex
import sys
from collections.abc import Sequence

from experiments.compare.comparing import carry_out
from experiments.compare.config import WIDER, from_command
from experiments.compare.report import NUMBERS
from experiments.run.compiled import cache_compiled
from experiments.run.files import STDOUT, hand_over, try_json
from experiments.terminal.program import program
from experiments.terminal.progress import Display


@program
def main(argv: Sequence[str]) -> int:
    """Runs one study, or what is made of several."""
    if argv and argv[0] in WIDER:
        return importlib.import_module(f"experiments.compare.across.{argv[0]}").main(argv[1:])
    config = from_command(argv)
    try_json(config.json)
    command = shlex.join(["python", "-m", "experiments.compare", *argv])
    cache_compiled(config.data.cache_dir)
    with Display(aside=config.json == STDOUT) as display:
        carry_out(
            config,
            command,
            display,
            written=None
            if config.json is None
            else lambda root: hand_over(config.json, root / NUMBERS),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
