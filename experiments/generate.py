"""Writes text with a trained model: `python -m experiments.generate --help`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from tyro.conf import Positional, arg

from experiments.run.files import STDOUT, try_json, write_json
from experiments.run.folder import Workdir
from experiments.run.model_loading import Weights, check_finite, load_trained
from experiments.run.sampling import Sampling, complete
from experiments.terminal.checks import at_least
from experiments.terminal.flags import CommandLine
from experiments.terminal.program import program
from polycom_jax._fields import PathText, PlaceText

LINE = CommandLine("generate", "Continue a prompt with the model of a run.", old={"workdir": "run"})


@dataclass(frozen=True)
class GenerateConfig(Sampling):
    """What to write, with which model.

    Attributes:
        run: folder of the run, as given to `experiments.pretrain`.
        checkpoint: "latest", "best" (lowest held-out loss), or a step.
        weights: "last", those of that step; "ema", their moving average, which runs with
            optim.ema_decay keep.
        prompt: text to continue; may be empty.
        num_samples: number of continuations.
        greedy: always take the most probable token, as with temperature 0.
        json: also write prompt and texts to this file, or to stdout (-).
    """

    run: Annotated[PlaceText, Positional, arg(metavar="[RUN]")] = "runs/tiny-poly_norm"
    checkpoint: str = "latest"
    weights: Weights = "last"
    prompt: str = "def "
    num_samples: int = 1
    greedy: bool = False
    json: PathText | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "num_samples")


@program
def main(argv: Sequence[str]) -> int:
    """Prints the continuations, each with its prompt."""
    config = LINE(GenerateConfig(), argv)
    try_json(config.json)
    trained = load_trained(Workdir(config.run), config.checkpoint, weights=config.weights)
    check_finite(config.run, trained.params)
    tokenizer = trained.tokenizer
    length = len(tokenizer.begin) + len(tokenizer.encode(config.prompt)) + config.max_new_tokens
    if length > (limit := trained.config.model.context_length):
        print(
            f"note: {length} tokens are longer than the {limit} that the model was trained on.",
            file=sys.stderr,
        )
    texts = complete(
        trained.config.model,
        trained.params,
        tokenizer,
        config.prompt,
        replace(config, temperature=0.0) if config.greedy else config,
        count=config.num_samples,
        ends=trained.ends,
    )
    write_json(config.json, {"run": config.run, "prompt": config.prompt, "texts": texts})
    if config.json != STDOUT:
        print(f"\n{'-' * 40}\n".join(texts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
