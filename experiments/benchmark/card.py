"""Suite card: a GPU that is at hand, checked against float64 and against what was predicted for it.

It is made for ten minutes of an H100, and has not met one. A part that fails is reported and the
rest goes on; the report is written after each part. With --quick everything is small, so that the
suite can be tried on a machine without a GPU; its times then say nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from experiments.benchmark import card_runs, card_speed, card_values, ops
from experiments.benchmark.options import SMALL, Options
from experiments.benchmark.results import Case, Result, Tell

STEPS = ("dense-110m", "dense-1b")
SHAPES = ("dense_1b",)
QUICK_SHAPES = ("many_rows",)


def cases(options: Options) -> list[Case]:
    """Values, speed alone and in steps, peers, whole runs: the cheapest first."""
    if options.quick:
        batch, length = options.batch_size or 1, options.seq_len or 64
        options = replace(options, batch_size=batch, seq_len=length, rounds=min(options.rounds, 2))
    shapes = options.shapes or (QUICK_SHAPES if options.quick else SHAPES)
    models = [options.model] if options.model else ([SMALL] if options.quick else STEPS)
    parts: list[tuple[str, Callable[[Tell], Result]]] = [
        ("values of activations", partial(card_values.activations, options)),
        (
            "values of attention, grouped products, blocks",
            partial(card_values.products, options),
        ),
    ]
    for shape in shapes:
        for which in (which for which in options.passes if which != "both"):
            found = partial(card_speed.passes, options, shape, which)
            parts.append((f"bandwidth of {shape} {which}", found))
    for model in models:
        parts.append((f"step of {model}", partial(card_speed.steps, options, model)))
    parts += [(f"peers: {case.name}", case.run) for case in _peers(options, shapes[:1])]
    parts += [(name, partial(run, options)) for name, run in card_runs.RUNS.items()]
    return [Case("card", name, run, guarded=True) for name, run in parts]


def _peers(options: Options, shapes: Sequence[str]) -> list[Case]:
    """PolyNorm beside the other activations, a copy and Liger's kernel, by the suite ops."""
    peers = tuple(p for p in ("yardsticks", "copy", "liger") if p in options.peers)
    same = replace(options, shapes=tuple(shapes), activations=("poly_norm",), peers=peers)
    return ops.cases(replace(same, passes=("both",)))
