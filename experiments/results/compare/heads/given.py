"""What becomes of a run whose first layer starts with a head that looks at the token before.

    python -m experiments.results.compare.heads.given [STUDY ...]

trains runs of the plan in README.md that are not in given.json (default: none), in a folder where
the texts of their studies lie, adds them there, prints the tables of README.md and draws given.png.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.compare.runs import Run
from experiments.compare.train import Programs, train
from experiments.results.compare.heads.again import (
    HERE,
    Setting,
    keep,
    kept,
    repeats,
    results,
    setting_of,
    table,
)
from experiments.results.compare.heads.measure import ARMS, UPDATES, Shares, look, most_before
from experiments.run.statistics import Paired, holm, paired
from experiments.terminal.figures import BLUE, ORANGE, REFERENCE, panels
from polycom_jax.kernels.rope import rope
from polycom_jax.models import ModelConfig, layers
from polycom_jax.params import Params

STARTS = {"itself": 0, "previous": 1}
"""Which token the head looks at, and how many places back that is."""
DRAWN = "as drawn"
SHORT, LONG = "ablation", "scaling/bytes-0.1m-200"
STUDIED: Mapping[str, tuple[str, ...]] = {SHORT: (DRAWN, *STARTS), LONG: (DRAWN, "previous")}
"""Study -> the starts that its runs have; runs as drawn were trained for it."""
COMMON = 0.25
"""Share of the first layer's squared input that all tokens have in common."""
LOGIT = 15.0
"""Of the token that the head looks at; that of its neighbours is lower by a quarter."""
PLANES = 3
"""The fastest of RoPE; a logit from fewer comes back after dozens of tokens."""


@dataclass(frozen=True)
class Outcome:
    """A run.

    Attributes:
        study: folder of its study.
        start: one of `STARTS`, or `DRAWN`.
        arm: of the study.
        seed: of the run.
        at_start: layer -> head -> share of attention to the token `OFFSETS` places back.
        after: the same after `UPDATES`.
        heldout: nats a byte of the runs decayed at each length.
    """

    study: str
    start: str
    arm: str
    seed: int
    at_start: Shares
    after: Shares
    heldout: tuple[float, ...]

    @property
    def early(self) -> float:
        """See `most_before`, after `UPDATES`."""
        return most_before(self.after)


def given(cfg: ModelConfig, params: Params, offset: int) -> Params:
    """The parameters with one head changed: the first of the first layer looks `offset` back.

    All embeddings get a part in common, u, which adds the same to every logit of the model, since
    the unembedding is theirs: to its loss that is nothing. Along u, the head's query and key get a
    direction in the planes of the fastest rotations, the key's turned by `offset`, so that the
    product is largest where the key stands so far behind the query.
    """
    dim, width = cfg.embed_dim, cfg.head_dim
    table = params["embed"]
    real = jnp.arange(len(table)) < cfg.vocab_size
    size = jnp.sqrt(jnp.sum(table**2) / cfg.vocab_size * COMMON / (1 - COMMON))
    table = table + jnp.where(real[:, None], size / dim**0.5, 0)

    # A normalised input has sqrt(COMMON D) along u; the planes share the logit.
    each = (LOGIT * width**0.5 / (PLANES * COMMON * dim)) ** 0.5
    query = jnp.zeros(width).at[:PLANES].set(each)
    turned = rope(query[None, None, None], layers.rotary(cfg, jnp.array([[offset]])))[0, 0, 0]
    attention = dict(params["layers"][0]["attention"])
    for name, along in (("w_q", query), ("w_k", turned)):
        attention[name] = attention[name].at[0, :, 0].add(along[None] / dim**0.5)
    group = {**params["layers"][0], "attention": attention}
    return {**params, "embed": table, "layers": [group, *params["layers"][1:]]}


def programs_of(setting: Setting, arm: str, start: str) -> Programs:
    """An arm's programs with another start."""
    programs = setting.programs(arm)
    if start not in STARTS:
        return programs

    def init(key: Any) -> Any:
        state = programs.init(key)
        params = given(programs.cfg, state.params, STARTS[start])
        where = jax.tree.map(lambda array: array.sharding, state.params)
        return replace(state, params=jax.device_put(params, where))

    return replace(programs, init=init)


def missing(study: str, found: Sequence[Outcome]) -> list[tuple[Run, str]]:
    """Runs of the study's results and starts that are not there yet, in the order of the seeds."""
    done = {(one.study, one.start, one.arm, one.seed) for one in found}
    runs = sorted(results(study, ARMS), key=lambda run: (run.key.seed, run.key.arm == ARMS[1]))
    return [
        (run, start)
        for run in runs
        for start in STUDIED[study]
        if (study, start, run.key.arm, run.key.seed) not in done
    ]


def train_missing(study: str, found: list[Outcome]) -> None:
    """Trains them, and adds each to given.json."""
    todo = missing(study, found)
    for at, (run, start) in enumerate(todo, 1):
        found.append(outcome(study, run, start))
        keep(HERE / "given.json", found)
        print(f"[{at}/{len(todo)}] {study}: {start}, {run.key.arm}, seed {run.key.seed}")


def outcome(study: str, run: Run, start: str) -> Outcome:
    """Trains a run from its other start; one that starts as drawn was trained for the study."""
    setting, key = setting_of(study), run.key
    programs = programs_of(setting, key.arm, start)
    at_start = look(setting, programs, key, 0, 1)[2]
    curves, _, after = look(setting, programs, key, UPDATES, run.steps[0])
    if start in STARTS:
        batch = setting.config.data.batch_size
        run = train(programs, key, setting.store, setting.heldout, batch_size=batch)
    assert repeats(run, curves), "to train again repeats every digit"
    return Outcome(study, start, key.arm, key.seed, at_start, after, run.heldout)


Found = dict[tuple[str, str], list[Outcome]]


def by_start(found: Sequence[Outcome], study: str) -> Found:
    """(start, arm) -> outcomes of a study in the order of their seeds."""
    seeds = sorted({run.key.seed for run in results(study, ARMS)})
    own = {(one.start, one.arm, one.seed): one for one in found if one.study == study}
    return {
        (start, arm): [own[start, arm, seed] for seed in seeds]
        for start, arm in product(STUDIED[study], ARMS)
    }


def ends(groups: Found, start: str, arm: str | None = None, at: int = -1) -> list[float]:
    """Of each seed; without an arm the mean of both."""
    arms = ARMS if arm is None else (arm,)
    each = [[one.heldout[at] for one in groups[start, arm]] for arm in arms]
    return np.mean(each, axis=0).tolist()


def shares(groups: Found) -> None:
    """Where the heads look, at the start and later, and how far the ends are apart."""
    rows = []
    for (start, arm), own in groups.items():
        first = np.mean([one.at_start[0] for one in own], axis=0)
        later = np.mean([one.after[0] for one in own], axis=0)
        heads = [f"{head[0]:.2f} {head[1]:.2f}" for head in (*first, *later)]
        early, end = [one.early for one in own], ends(groups, start, arm)
        rows.append((start, arm, *heads, f"{np.mean(early):.3f}", f"{np.std(early, ddof=1):.3f}",
                     f"{np.mean(end):.4f}", f"{np.std(end, ddof=1):.4f}"))  # fmt: skip
    head = ("start", "arm", "head 0: itself, before", "head 1", "head 0, later", "head 1, later",
            "largest", "deviation", "end", "deviation")  # fmt: skip
    table(head, rows)


def compared(groups: Found) -> None:
    """Differences between starts, and between arms from each start, at each length."""
    lengths = range(len(next(iter(groups.values()))[0].heldout))
    starts = list(dict.fromkeys(start for start, _ in groups))
    rows = []
    for b, a in combinations(starts, 2):
        for arm in (None, *ARMS):
            each = [paired(ends(groups, a, arm, at), ends(groups, b, arm, at)) for at in lengths]
            rows.append((f"{a} - {b}", arm or "both", *map(said, each), f"{each[-1].p:.2g}"))
    for start in starts:
        pairs = [[ends(groups, start, arm, at) for arm in reversed(ARMS)] for at in lengths]
        each = [paired(arm, reference) for arm, reference in pairs]
        rows.append(("poly_norm - swiglu", start, *map(said, each), f"{each[-1].p:.2g}"))
    table(("", "", *(f"length {at + 1}" for at in lengths), "p"), rows)


def tested(groups: Found) -> None:
    """The question of the plan."""
    each = [paired(ends(groups, "previous"), ends(groups, start)) for start in ("itself", DRAWN)]
    for start, p in zip(("itself", DRAWN), holm([one.p for one in each]), strict=True):
        print(f"previous - {start}: p {p:.2g} (Holm)")
    print()


def said(one: Paired) -> str:
    """Mean and interval."""
    return f"{one.mean:+.4f} [{one.low:.4f}, {one.high:.4f}]"


def draw(groups: Found) -> None:
    """A panel for each arm: the end of each run over its share."""
    title = "The first layer starts with a head that looks at the token before, or at itself"
    note = (
        "Across: most attention that a head of the first layer gives to the token before, after"
        f" {UPDATES} updates. Large: means."
    )
    colours = {DRAWN: REFERENCE["color"], "itself": ORANGE, "previous": BLUE}
    with panels(HERE / "given", len(ARMS), title=title, note=note, shared="y") as axes:
        for axis, arm in zip(axes, ARMS, strict=True):
            for start, colour in colours.items():
                own = np.array([(one.early, one.heldout[-1]) for one in groups[start, arm]])
                axis.plot(*own.T, "o", ms=4, alpha=0.5, color=colour, label=start)
                axis.plot(*own.mean(axis=0), "D", ms=8, color=colour)
            axis.set(title=arm, xlabel="share", ylabel="held-out nats a byte")
    (HERE / "given.pdf").unlink()  # the page shows the PNG alone


if __name__ == "__main__":
    every = kept(HERE / "given.json", Outcome)
    for name in sys.argv[1:]:
        train_missing(name, every)
    for name in STUDIED:
        print(f"## {name}\n")
        if todo := missing(name, every):
            print(f"{len(todo)} runs are missing.\n")
            continue
        grouped = by_start(every, name)
        shares(grouped)
        compared(grouped)
        if name == SHORT:
            tested(grouped)
            draw(grouped)
