"""Suite allocator: an activation under several settings of the C library's allocator.

A setting holds for a whole process, so each has a process of its own (`allocator_process`), and
these take turns. It shows what a user of the library has, whose program asks the allocator for
nothing, beside what our programs have (`experiments.run.host_memory`).
"""

import platform
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial

import jax

from experiments.benchmark import ops, peers
from experiments.benchmark.allocator_process import FRESH, PEERS, started
from experiments.benchmark.arg_specs import ArgSpec
from experiments.benchmark.contest import plan
from experiments.benchmark.harness import Contestant, measure
from experiments.benchmark.options import Options
from experiments.benchmark.results import Case, Result, Tell, rows_from_seconds
from polycom_jax._errors import require

ACTIVATIONS = ("poly_norm",)
SETTINGS: Mapping[str, Mapping[str, str]] = {
    # An empty value changes nothing, and tells our programs that the user has chosen.
    "defaults": {"GLIBC_TUNABLES": ""},
    "huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "memory kept": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "1000000000000",
    },
}
"""Name -> environment of a process; the last is `keep_freed_memory` in words."""


def cases(options: Options) -> list[Case]:
    """One for each shape, activation and pass, as in the suite ops."""
    ops.check_activations(options)
    return [
        Case(
            "allocator",
            f"{activation} {spec.name} {which}",
            partial(_run, options, spec, activation, which),
        )
        for spec in ops.shapes(options)
        for activation in options.activations or ACTIVATIONS
        for which in options.passes
    ]


def _run(options: Options, spec: ArgSpec, activation: str, which: str, tell: Tell) -> Result:
    require(
        jax.default_backend() == "cpu" and platform.libc_ver()[0] == "glibc",
        "the suite allocator measures glibc's allocator under JAX on a CPU; set JAX_PLATFORMS=cpu"
        " on Linux, or leave the suite out.",
    )
    chosen, left_out = peers.split(options.peers, PEERS)
    request = {
        **{"options": asdict(options), "shape": spec.name, "activation": activation},
        **{"which": which, "peers": chosen},
    }
    with ExitStack() as stack:
        contestants: list[Contestant] = []
        fresh: dict[str, Callable[[], float]] = {}
        for setting, environment in SETTINGS.items():
            tell(f"starting a process: {setting}")
            process = stack.enter_context(started(request, environment))
            for name in process.names:
                label = _label(name, setting)
                contestants.append(process.contestant(name, label))
                fresh[label] = partial(process.fresh, name)
        readings = measure(contestants, plan(options), tell)
    return Result(
        "allocator",
        f"{activation} {which}, {spec.name}",
        rows_from_seconds(
            readings,
            [_label(ops.ours(activation), setting) for setting in SETTINGS],
            lambda name, seconds: {FRESH: fresh[name]()},
        ),
        left_out,
        (f"{FRESH}: median of the calls; a huge page is counted as an ordinary one.",),
    )


def _label(name: str, setting: str) -> str:
    return f"{name}, {setting}"
