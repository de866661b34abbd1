"""What to measure: the flags of `python -m experiments.benchmark`."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from tyro.conf import Positional, arg

from experiments.benchmark.arg_specs import ARG_SPECS
from experiments.benchmark.peers import PEERS
from experiments.terminal.checks import at_least
from polycom_jax._errors import require, unknown
from polycom_jax._fields import PathText, check_fields
from polycom_jax.models import PRESETS, preset
from polycom_jax.models.config import Remat
from polycom_jax.reference import is_reference
from polycom_jax.table import ACTIVATIONS, get_activation

SUITES: tuple[str, ...] = (
    *("ops", "ffn", "attention", "loss", "train", "safety", "data", "tpu", "generate"),
)

Pass = Literal["forward", "backward", "both"]
"""The value; the gradients alone, given what the forward pass kept; value and gradients."""
PASSES: tuple[str, ...] = get_args(Pass)

Dtype = Literal["float32", "bfloat16", "float16"]

SMALL = "small-5m"
"""Name of a model for two CPU cores; see `experiments.benchmark.shapes`."""
MODELS: tuple[str, ...] = (SMALL, *(name for name in PRESETS if not preset(name).is_moe))
"""Dense ones: no peer has PolyCom's mixtures."""

CHIPS: tuple[str, ...] = ("v4", "v5e", "v5p", "v6e")


@dataclass(frozen=True)
class Options:
    """A benchmark.

    Attributes:
        suites: what to measure, of: ops (a PolyCom activation alone), ffn (the whole feed-forward
            block), attention, loss, train (whole steps), safety (checkpoints, the guard against
            losses that are no numbers), data (the input pipeline), tpu (predicted by compiling for
            TPUs that are not there), generate (writing text).
        peers: implementations to compare with, of: implementations, yardsticks, copy, torch-eager,
            torch-checkpoint, torch-compile, liger, hf-llama, hf-generate, torch-loader. One that
            cannot run here is listed with the reason.
        activations: to measure, in operations and blocks; the first one is the reference. Also
            FILE.py:NAME or MODULE:NAME, in blocks.
        shapes: of the operations in ops and tpu, by name from experiments/benchmark/arg_specs.py;
            Default: those for this backend, dense_1b in tpu.
        passes: forward, backward (given what forward kept), both.
        dtype: of the arrays. Default: the shape's or the model's own.
        model: whose shapes the other suites take: small-5m or a preset. Default: small-5m on CPU,
            else dense-1b, as always in tpu.
        batch_size: sequences a step. Default: the model's own here, 8,192 tokens in tpu, and in
            generate 1 and 8 texts.
        seq_len: tokens a sequence, half of them a prompt in generate. Default: the model's context.
        remat: what training recomputes: none, dots, full. Default: the model's own.
        loss_chunk: tokens a chunk of the loss. Default: 512 in the suite loss, the model's own in
            training.
        implementation: of the activation in the suites ffn, train and tpu. Default: the backend's
            best.
        rounds: of the alternation; each contestant is measured once in each.
        sample_seconds: about how long each contestant runs in each round.
        fresh: the suite train also starts every contestant in a process of its own, for its time to
            the first step and its peak memory.
        chips: of the suite tpu: v4, v5e, v5p, v6e.
        out: folder for results.json, results.md and plots.
        json: also write results.json to this file, or to stdout (-).
    """

    suites: Annotated[tuple[str, ...], Positional, arg(metavar="[SUITE ...]")] = ("ops",)
    peers: tuple[str, ...] = tuple(PEERS)
    activations: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    passes: tuple[str, ...] = PASSES
    dtype: Dtype | None = None
    model: str | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    remat: Remat | None = None
    loss_chunk: int | None = None
    implementation: str | None = None
    rounds: int = 7
    sample_seconds: float = 0.2
    fresh: bool = True
    chips: tuple[str, ...] = CHIPS
    out: PathText = "runs/benchmark"
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        known = {
            "suites": ("suite", SUITES),
            "peers": ("peer", tuple(PEERS)),
            "activations": ("activation", ACTIVATIONS),
            "shapes": ("shape", tuple(spec.name for spec in ARG_SPECS)),
            "passes": ("pass", PASSES),
            "chips": ("chip", CHIPS),
        }
        for name, (kind, values) in known.items():
            for value in getattr(self, name):
                if name == "activations" and is_reference(value):
                    get_activation(value)
                elif value not in values:
                    raise unknown(kind, value, values)
        for name in ("suites", "passes", "chips"):
            require(bool(getattr(self, name)), f"{name} is empty; leave it out for the default.")
        if self.model is not None and self.model not in MODELS:
            raise unknown("model", self.model, MODELS)
        at_least(self, 1, "batch_size", "seq_len", "loss_chunk", "rounds")
        require(
            0 < self.sample_seconds < math.inf,
            f"sample_seconds={self.sample_seconds} must be positive and finite.",
        )
