"""A better plan by trials: one change at a time, the best so far kept; `--search` of the program.

Each trial compiles the whole step, so the lists are short: what moved a predicted step before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import jax

from experiments.plan.outcome import Outcome
from experiments.run.config import PretrainConfig
from experiments.terminal import flags
from experiments.terminal.tables import Section
from polycom_jax._errors import InputError
from polycom_jax.models.config import Remat

OPTIONS: dict[str, dict[str, tuple[str | None, ...]]] = {
    "tpu": {
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": ("1000000", None),
        "xla_tpu_scoped_vmem_limit_kib": (None, "32768", "49152", "65536"),
    },
    "gpu": {},
}
"""XLA options of each platform and their values; None: XLA's own."""

BEST = 5
"""Plans that are printed."""

SAID = 160
"""Characters of what a compiler says where it refuses."""


@dataclass(frozen=True)
class Trial:
    """A config that was tried.

    Attributes:
        flags: how it departs from the one that the search began with, as words.
        outcome: what came out; None: it did not compile.
        why_not: what the compiler or the config said then.
    """

    flags: tuple[str, ...]
    outcome: Outcome | None
    why_not: str = ""

    @property
    def good(self) -> bool:
        """Whether it compiles and nothing is wrong with it."""
        return self.outcome is not None and not self.outcome.problems

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts good plans first, by MFU: the batch may differ."""
        return not self.good, -self.outcome.mfu if self.outcome else 0.0


def search(
    config: PretrainConfig,
    compile: Callable[[PretrainConfig], Outcome],
    tell: Callable[[Trial, int], None],
    platform: str,
) -> list[Trial]:
    """Tries every change, group by group, from the best config so far: the trials, best first.

    Args:
        config: to begin with; no size of its mesh is -1.
        compile: a config to its findings; `InputError` and the compiler's own errors are results.
        tell: takes each trial, and how many are to come.
        platform: whose XLA options are tried, a key of `OPTIONS`.
    """
    groups = (partial(_options, OPTIONS[platform]), *GROUPS)

    def tried(candidate: PretrainConfig) -> Trial:
        flags = tuple(changes(config, candidate))
        try:
            return Trial(flags, compile(candidate))
        except (InputError, jax.errors.JaxRuntimeError) as error:
            return Trial(flags, None, " ".join(str(error).split())[:SAID])

    best, trials = config, [tried(config)]
    tell(trials[0], sum(len(group(best)) for group in groups))
    for number, group in enumerate(groups):
        candidates = group(best)
        for index, candidate in enumerate(candidates):
            trial = tried(candidate)
            if trial.rank < min(known.rank for known in trials):
                best = candidate
            trials.append(trial)
            later = sum(len(other(best)) for other in groups[number + 1 :])
            tell(trial, len(candidates) - index - 1 + later)
    return sorted(trials, key=lambda trial: trial.rank)


def _options(
    table: Mapping[str, tuple[str | None, ...]], config: PretrainConfig
) -> list[PretrainConfig]:
    has = dict(option.split("=", 1) for option in config.run.compiler_options)
    found = []
    for name, values in table.items():
        others = {other: value for other, value in has.items() if other != name}
        for value in values:
            if value != has.get(name):
                chosen = others if value is None else others | {name: value}
                options = tuple(f"{n}={v}" for n, v in chosen.items())
                found.append(replace(config, run=replace(config.run, compiler_options=options)))
    return found


def _remats(config: PretrainConfig) -> list[PretrainConfig]:
    others = (remat for remat in get_args(Remat) if remat != config.model.remat)
    return [replace(config, model=replace(config.model, remat=remat)) for remat in others]


def _meshes(config: PretrainConfig) -> list[PretrainConfig]:
    """Twice or half of an axis, for half or twice of fsdp."""
    mesh, found = config.mesh, []
    for axis in ("data", "tensor", *(("expert",) if config.model.is_moe else ())):
        size = getattr(mesh, axis)
        if mesh.fsdp % 2 == 0:
            found.append(replace(mesh, **{axis: size * 2}, fsdp=mesh.fsdp // 2))
        if size % 2 == 0:
            found.append(replace(mesh, **{axis: size // 2}, fsdp=mesh.fsdp * 2))
    return [replace(config, mesh=mesh) for mesh in found]


def _batches(config: PretrainConfig) -> list[PretrainConfig]:
    rows = config.data.batch_size
    others = (rows * 2, *((rows // 2,) if rows % 2 == 0 else ()))
    return [replace(config, data=replace(config.data, batch_size=rows)) for rows in others]


GROUPS: Sequence[Callable[[PretrainConfig], list[PretrainConfig]]] = (
    _remats,
    _meshes,
    _batches,
)
"""What is changed after XLA options, in this order; each takes the best config so far."""


def changes(start: PretrainConfig, config: PretrainConfig) -> list[str]:
    """The flags that make one config of the other."""
    before, now = flags.flatten(start), flags.flatten(config)
    return flags.as_words({name: value for name, value in now.items() if value != before[name]})


def said(trial: Trial) -> str:
    """A line on a trial."""
    name = " ".join(trial.flags) or "as it is"
    if trial.outcome is None:
        return f"{name}: {trial.why_not}"
    found = trial.outcome
    problem = f"; {found.problems[0]}" if found.problems else ""
    rates = f"MFU {found.mfu:.1%} (PaLM's count; causal {found.mfu_causal:.1%})"
    return f"{name}: {found.seconds * 1e3:,.0f} ms, {rates}{problem}"


def section(trials: Sequence[Trial]) -> Section:
    """The best few as a table."""
    rows = []
    for trial in trials[:BEST]:
        if found := trial.outcome:
            rows.append(
                (
                    " ".join(trial.flags) or "as it is",
                    f"{found.seconds * 1e3:,.1f}",
                    f"{found.tokens_per_second:,.0f}",
                    f"{found.mfu:.1%}",
                    f"{found.mfu_causal:.1%}",
                    f"{found.memory['peak of all'] / found.hbm:.0%}",
                    "; ".join(found.problems) or "none",
                )
            )
    return Section(
        "The best plans",
        ("changed", "ms a step", "tokens/s", "MFU, PaLM", "MFU, causal", "memory", "problems"),
        tuple(rows),
        (f"Of {len(trials)} tried; by predicted MFU, those without problems first.",),
    )
