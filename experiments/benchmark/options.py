"""What to measure: the flags of `python -m experiments.benchmark`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from experiments.benchmark.arg_specs import ARG_SPECS
from experiments.benchmark.peers import PEERS
from experiments.terminal.checks import at_least
from polycom_jax._errors import require, unknown
from polycom_jax._fields import PathText, check_fields
from polycom_jax.compile_ahead import PRODUCT_BACKENDS
from polycom_jax.models import PRESETS, preset
from polycom_jax.models.config import Remat
from polycom_jax.reference import is_reference
from polycom_jax.table import ACTIVATIONS, get_activation

SUITES: tuple[str, ...] = (
    *("ops", "ffn", "attention", "loss", "train", "safety", "data", "tpu", "gpu", "generate"),
    *("allocator", "card"),
)

WALL_ONLY = ("tpu", "gpu", "allocator", "card")
"""Suites without a choice of the clock: they predict, time other processes, or an accelerator."""

PASSES: tuple[str, ...] = ("forward", "backward", "both")
"""The value; the gradients alone, given what the forward pass kept; value and gradients."""

Dtype = Literal["float32", "bfloat16", "float16"]

SMALL = "small-5m"
"""Name of a model for two CPU cores; see `experiments.benchmark.shapes`."""
MODELS: tuple[str, ...] = (SMALL, *(name for name in PRESETS if not preset(name).is_moe))
"""Dense ones: no peer has PolyCom's mixtures."""

CHIPS: tuple[str, ...] = ("v4", "v5e", "v5p", "v6e")
CARDS: tuple[str, ...] = ("t4", "l4", "a100", "h100", "h200", "b200")
ALL = "all"
"""Stands for every activation of the table."""

BEST = "best"
"""Stands for the implementation that a backend takes by itself."""

PARTS: tuple[str, ...] = ("ops", "ffn", "step")
"""What the suites tpu and gpu compile: activations alone, in the feed-forward block; gpu: steps."""

PRODUCTS: tuple[str, ...] = tuple(PRODUCT_BACKENDS)
"""What computes matrix products in the suite gpu."""


@dataclass(frozen=True)
class Options:
    """A benchmark.

    Attributes:
        suites: what to measure: ops (an activation alone), ffn (a feed-forward block), attention,
            loss, train (training steps), safety (checkpoints, and the guard against losses that are
            not finite), data (input pipeline), tpu (prediction by compiling for TPUs that are not
            there), gpu (the same for GPUs), generate (decoding), allocator (an activation under
            settings of the C library's allocator), card (a GPU that is here, against float64 and
            against predictions).
        peers: implementations to compare with: implementations, yardsticks, copy, torch-eager,
            torch-checkpoint, torch-compile, liger, hf-llama, hf-generate, torch-loader. One that
            cannot run on this machine is listed with the reason.
        activations: activations in the suites ops, allocator, ffn and tpu; the first one is the
            reference. all stands for the table. Also FILE.py:NAME or MODULE:NAME, in ffn.
        shapes: shapes in the suites ops, allocator, tpu and gpu, by name; --list prints them.
            Default: those for this backend; dense_1b in tpu and gpu.
        passes: passes to time: forward, backward (given what the forward pass saved), both.
        dtype: dtype of the arrays. Default: that of the shape or of the model.
        model: model whose shapes the other suites take: small-5m or a preset. Default: small-5m on
            a CPU; dense-1b elsewhere, and in tpu; in gpu dense-1b, and steps of dense-110m too.
        batch_size: sequences in a batch. Default: the model's; in tpu 8,192 tokens, in generate 1
            and then 8 texts.
        seq_len: tokens in a sequence; in generate, half of them are the prompt. Default: the
            model's context.
        remat: what the backward pass recomputes: none, dots, attention, full. Default: the model's.
        loss_chunk: tokens in a chunk of the loss. Default: 512 in the suite loss, elsewhere the
            model's.
        implementation: implementation of the activation in the suites ffn, train and tpu. best is
            the one that the backend takes by itself. Default: best; in tpu, each that runs there.
        rounds: rounds of measurement; contestants take turns, and each is measured once in a round.
        sample_seconds: seconds that a contestant runs in a round, about.
        clock: wall; or cpu, the time of the processor that this process takes, all threads
            together: for a CPU that other programs use, too; not in tpu, gpu, allocator and card.
        fresh: in the suite train, also start each contestant in a process of its own, to measure
            its time to the first step and its peak memory.
        chips: TPU generations in the suite tpu.
        gpus: cards in the suite gpu: t4, l4, a100, h100, h200, b200. Default: all but b200.
        parts: parts of the suites tpu and gpu: ops, ffn; and in gpu step.
        products: in the suite gpu, what computes the matrix products of blocks and steps: Triton,
            cuBLAS; each is a case.
        quick: in the suite card, all of it with small arrays, models and runs: to try it anywhere.
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
    clock: Literal["wall", "cpu"] = "wall"
    fresh: bool = True
    chips: tuple[str, ...] = CHIPS
    gpus: tuple[str, ...] = CARDS[:-1]
    parts: tuple[str, ...] = PARTS
    products: tuple[str, ...] = PRODUCTS
    quick: bool = False
    out: PathText = "runs/benchmark"
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "activations", _named(self.activations))
        known = {
            "suites": ("suite", SUITES),
            "peers": ("peer", tuple(PEERS)),
            "activations": ("activation", ACTIVATIONS),
            "shapes": ("shape", tuple(spec.name for spec in ARG_SPECS)),
            "passes": ("pass", PASSES),
            "chips": ("chip", CHIPS),
            "gpus": ("GPU", CARDS),
            "parts": ("part", PARTS),
            "products": ("products", PRODUCTS),
        }
        for name, (kind, values) in known.items():
            for value in getattr(self, name):
                if name == "activations" and is_reference(value):
                    get_activation(value)
                elif value not in values:
                    raise unknown(kind, value, values)
        for name in ("suites", "passes", "chips", "gpus", "parts", "products"):
            require(bool(getattr(self, name)), f"{name} is empty; leave it out for the default.")
        if self.model is not None and self.model not in MODELS:
            raise unknown("model", self.model, MODELS)
        at_least(self, 1, "batch_size", "seq_len", "loss_chunk", "rounds")
        require(
            0 < self.sample_seconds < math.inf,
            f"sample_seconds={self.sample_seconds} must be positive and finite.",
        )
        others = [suite for suite in self.suites if suite in WALL_ONLY]
        require(
            self.clock == "wall" or not others,
            f"clock={self.clock} is nothing for the suite {' or '.join(others)}, whose work is not"
            " this process's own on a CPU; leave --clock out, or run the suite by itself.",
        )


def read_options(stored: Mapping[str, Any]) -> Options:
    """The options as JSON brings them to another process: with lists for tuples."""
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    return Options(**given)


def _named(activations: Sequence[str]) -> tuple[str, ...]:
    """Each once, with the table in the place of `ALL`."""
    each = [ACTIVATIONS if name == ALL else (name,) for name in activations]
    return tuple(dict.fromkeys(chain.from_iterable(each)))
