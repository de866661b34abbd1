"""From runs to findings: differences at equal tokens and seconds, and families of comparisons."""

import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.compare import report
from experiments.compare.arms import Arm, Study
from experiments.compare.findings import (
    Comparison,
    cost_of,
    findings,
    relative_times,
    speed_error,
    tokens_needed,
)
from experiments.compare.runs import Run, RunKey
from experiments.compare.studies import STUDIES
from experiments.run.rate_search import Search
from experiments.run.statistics import at_tokens, median_error, paired
from polycom_jax import models

SMALL = models.ModelConfig(
    vocab_size=257, num_layers=1, embed_dim=16, num_heads=1, num_kv_heads=1, head_dim=16,
    gated_width=16, context_length=16, tie_embeddings=True,
)  # fmt: skip


TWO = Study(
    "Which?",
    (Arm("swiglu", "swiglu"), Arm("poly_norm", "poly_norm")),
    (("poly_norm", "swiglu"),),
)


def run(arm: str, seed: int, heldout: tuple[float, ...], *, diverged: bool = False) -> Run:
    key = RunKey(arm, 0.01, seed, (25, 50, 100))
    return Run(key, diverged, heldout, (1,), (1.0,), (1.0,), ({},), 1.0)


def finding(arm: str, runs: list[Run], time: float, times: tuple[float, ...] = ()):
    from experiments.compare.findings import Cost, arm_finding
    from experiments.run.rate_search import Search

    rounds = times or (time,) * 11
    cost = Cost(1, 1, 1.0, 0.0, time, time, 1.0, 1, tuple(rounds))
    search = Search((0.01,), (1.0,), 0.01, False)
    cfg = replace(SMALL, activation=arm)
    return arm_finding(arm, cfg, search, cost, runs, batch_tokens=10)


def test_an_arm_that_is_better_and_slower_may_lose_at_equal_seconds():
    runs = {
        "swiglu": [run("swiglu", s, (4.0, 3.0, 2.0 + s)) for s in (0, 1, 2)],
        "poly_norm": [run("poly_norm", s, (3.5, 2.5, 1.5 + s)) for s in (0, 1, 2)],
    }
    arms = [finding("swiglu", runs["swiglu"], 1.0), finding("poly_norm", runs["poly_norm"], 4.0)]
    found = findings("activations", TWO, arms, runs)
    tokens, seconds = found.comparisons
    assert tokens.result is not None
    assert seconds.result is not None
    assert tokens.result.mean == pytest.approx(-0.5)
    assert arms[1].losses_at_seconds == pytest.approx((3.5, 3.5, 3.5))  # a quarter of the tokens
    assert seconds.result.mean == pytest.approx(0.5)
    # Seed 0: 2.0 is half of the way from 2.5 to 1.5, so at 100 / sqrt(2) tokens. Seeds 1 and 2:
    # the reference's 3.0 and 4.0 lie between the first lengths, or above them: a bound.
    needed = found.tokens_needed[0]
    assert needed.high == pytest.approx(2**-0.5)
    assert needed.low == pytest.approx(0.25)
    assert needed.bounded == 1


def test_an_interval_at_equal_seconds_holds_the_error_of_the_speeds():
    # d = -0.4 to -0.6 at equal tokens; the loss falls by 1 with each doubling.
    shift = (-0.1, 0.0, 0.1)
    runs = {
        "swiglu": [run("swiglu", s, (4.0, 3.0, 2.0)) for s in range(3)],
        "poly_norm": [
            run("poly_norm", s, (3.5 + x, 2.5 + x, 1.5 + x)) for s, x in enumerate(shift)
        ],
    }

    def compared(times: tuple[float, ...]):
        arms = [finding("swiglu", runs["swiglu"], 1.0)]
        arms += [finding("poly_norm", runs["poly_norm"], 1.0, times)]
        return findings("activations", TWO, arms, runs).comparisons

    tokens, steady = compared((1.0,) * 11)
    assert steady.speed_error == tokens.speed_error == 0
    assert steady.result == tokens.result
    assert steady.verdict == "lower, not after Holm"
    # A speed that is known within a factor of two: no difference of half a doubling is found.
    _, shaky = compared((0.5,) * 5 + (1.0,) + (2.0,) * 5)
    assert shaky.speed_error > 0.5
    assert shaky.result is not None
    assert steady.result is not None
    assert shaky.result.mean == steady.result.mean
    assert shaky.result.low < steady.result.low
    assert shaky.verdict == "no difference found"


def test_the_error_of_the_speeds_is_that_of_the_losses_which_are_read_by_them():
    losses = {"swiglu": (4.0, 3.0, 2.0), "poly_norm": (3.5, 2.0, 1.9)}
    runs = {name: [run(name, 0, own)] for name, own in losses.items()}
    spread, count = 0.1, 1001
    times = np.exp(spread * np.random.default_rng(0).normal(size=count))
    reference = finding("swiglu", runs["swiglu"], 1.0, (1.0,) * count)
    arm = finding("poly_norm", runs["poly_norm"], 3.0, tuple(times.tolist()))
    # A little less time: what it changes in each loss, where that arm's time ends.
    tokens, step = (250.0, 500.0, 1000.0), 1e-5
    changes = [
        (at_tokens(tokens, losses[name], at * (1 - step)) - at_tokens(tokens, losses[name], at))
        / step
        for name, at in (("swiglu", 1000.0), ("poly_norm", 1000 / 3))
    ]
    # Of the median of many: sqrt(pi / 2) sd / sqrt(n), as in the test of `median_error`.
    median = math.sqrt(math.pi / 2) * spread / math.sqrt(count)
    wanted = math.sqrt((changes[0] ** 2 + changes[1] ** 2) / 2) * median
    assert speed_error(arm, reference) == pytest.approx(wanted, rel=0.2)
    # The same, with the median's error as it was drawn.
    exact = wanted / median * median_error(np.log(times).tolist())
    assert speed_error(arm, reference) == pytest.approx(exact, rel=1e-4)


def test_tokens_for_the_same_loss_are_asked_of_the_better_arm_and_the_middle_seed_is_told():
    # The reference's loss falls by 1 with each doubling; the arm ends lower, higher, much higher.
    others = [run("swiglu", seed, (4.0, 3.0, 2.0)) for seed in range(3)]
    shifts = (-0.5, 0.5, 1.0)
    own = [run("poly_norm", s, (4.0 + x, 3.0 + x, 2.0 + x)) for s, x in enumerate(shifts)]
    found = tokens_needed("poly_norm", "swiglu", own, others)
    assert found is not None
    assert (found.low, found.median, found.high) == pytest.approx((2**-0.5, 2**0.5, 2))
    assert found.bounded == 0


def test_a_curve_is_the_mean_of_the_runs_that_did_not_diverge():
    losses = ((4.0, 3.0, 2.0), (4.0, 3.0, 2.0), (7.0, 3.3, 2.9))
    runs = [run("swiglu", seed, own) for seed, own in enumerate(losses)]
    found = finding("swiglu", [*runs, run("swiglu", 3, (), diverged=True)], 1.0)
    assert [tokens for tokens, _ in found.curve] == [250, 500, 1000]
    assert [loss for _, loss in found.curve] == pytest.approx([5.0, 3.1, 2.3])


def test_tables_have_the_numbers_of_the_arms_under_their_names():
    runs = {
        "swiglu": [run("swiglu", s, (5.0, 4.0, x)) for s, x in enumerate((2.0, 2.1, 2.4))],
        "poly_norm": [run("poly_norm", s, (3.25, 2.5, 2.0 + s)) for s in range(3)],
    }
    search = Search((0.01, 0.02, 0.04), (2.5, 2.25, math.inf), 0.02, False)
    arms = [finding("swiglu", runs["swiglu"], 1.0), finding("poly_norm", runs["poly_norm"], 4.0)]
    changes = ({"flops": 4.0, "memory": 3 << 20}, {"parameters": 5, "flops": 6.0, "memory": 1})
    arms = [
        replace(arm, rate=0.02, search=search, cost=replace(arm.cost, **own))
        for arm, own in zip(arms, changes, strict=True)
    ]
    found = findings("activations", TWO, arms, runs)
    tables = {section.title: section for section in report.sections(found)}
    costs = tables["What each arm costs"].rows
    assert costs[0][1:5] == ("1", "1.0000", "4", "1.0000")
    assert costs[1][1:5] == ("5 (1 active)", "5.0000", "6", "1.5000")
    assert [row[-2:] for row in costs] == [("1.000", "3.0"), ("4.000", "0.0")]
    rates = tables["Learning rate of each arm"].rows
    assert rates[0][1:] == ("2.5000", "2.2500*", "diverged", "inside")
    swiglu, poly_norm = tables["Held-out loss, nats a token"].rows
    assert swiglu[1:] == ("5.0000", "4.0000", "2.1667", "0.2082", "2.1667", "0")
    # At equal seconds it has a quarter of the tokens.
    assert poly_norm[1:] == ("3.2500", "2.5000", "3.0000", "1.0000", "3.2500", "0")
    compared = tables["Differences at equal tokens"]
    result = paired([2.0, 3.0, 4.0], [2.0, 2.1, 2.4])
    cells = dict(zip(compared.columns, compared.rows[0], strict=True))
    assert cells["detectable"] == f"{result.detectable:.4f}" != f"{result.sd:.4f}"
    assert cells["correlation"] == "+0.96"


def test_of_a_mixture_the_parameters_that_a_token_meets_are_told_apart():
    cfg = models.preset("moe-tiny")
    found = cost_of(cfg, batch_size=1, seconds=[1.0], relative=1.0, memory=1)
    expert = (2 + cfg.activation_fn.gated) * cfg.embed_dim * cfg.hidden_width
    idle = cfg.num_layers * (cfg.moe.num_experts - cfg.moe.top_k) * expert
    assert found.parameters - found.active == idle > 0


def test_a_cost_is_of_a_model_and_of_the_middle_round():
    cfg, seconds = replace(SMALL, activation="poly_norm"), [0.5, 0.25, 9.0]
    found = cost_of(cfg, batch_size=3, seconds=seconds, relative=1.0, memory=5)
    assert found.step_seconds == 0.5
    assert found.tokens_per_second == 3 * 16 / 0.5
    own = 3 * cfg.activation_fn.flops * cfg.hidden_width  # forward, and twice as much backward
    assert found.activation_share * found.flops == pytest.approx(own, rel=1e-12)


def test_a_stall_in_one_round_is_no_arm_s_speed():
    found = relative_times({"a": [1.0] * 5, "b": [2.0] * 4 + [50.0]})
    assert found == pytest.approx({"a": 1, "b": 2})


def test_times_are_ratios_within_a_round():
    # The machine is ten times slower in the second round; b always takes twice as long as a.
    found = relative_times({"a": [1.0, 10.0, 1.0], "b": [2.0, 20.0, 2.0]})
    assert found == pytest.approx({"a": 1, "b": 2})
    # It gets slower from round to round, and b takes twice as long but for the second: of the
    # arms' own medians, 2 and 8, the ratio is 4.
    found = relative_times({"a": [1.0, 2.0, 4.0], "b": [2.0, 8.0, 8.0]})
    assert found == pytest.approx({"a": 1, "b": 2})


def test_equal_seconds_are_those_of_arms_that_are_compared():
    # A model of double width is many times slower than one of half: its seconds are its pair's.
    sizes = STUDIES["width-depth"].groups()
    assert [set(group) for group in sizes] == [
        {f"swiglu_{size}", f"poly_norm_{size}"}
        for size in ("half_width", "base", "double_width", "half_depth", "double_depth")
    ]
    for name in ("activations", "controls", "precision"):
        (every,) = STUDIES[name].groups()
        assert every == [arm.name for arm in STUDIES[name].arms]
    assert TWO.only(["swiglu", "poly_norm"]).groups() == [["swiglu", "poly_norm"]]


def test_a_difference_that_holm_leaves_nothing_of_is_said_to_be_one():
    result = paired([1.0, 2.0, 3.0], [2.0, 3.0, 4.001])
    assert Comparison("a", "b", "tokens", result, 0.5).verdict == "lower, not after Holm"
    assert Comparison("a", "b", "tokens", result, 0.01).verdict == "lower"


def test_all_comparisons_of_a_table_are_one_family():
    # Two pairs without an arm in common, as in width-depth: three seeds, all differences positive.
    losses = {"swiglu": 1.0, "poly_norm": 1.5, "relu": 2.0, "relu2": 2.5}
    runs = {n: [run(n, s, (x + s, x + s, x + s)) for s in (0, 1, 2)] for n, x in losses.items()}
    arms = [finding(name, own, 1.0) for name, own in runs.items()]
    two = replace(TWO, pairs=(("poly_norm", "swiglu"), ("relu2", "relu")))
    found = findings("width-depth", two, arms, runs)
    assert [c.p_holm for c in found.comparisons] == pytest.approx([2 * 2 / 8] * 4)


def test_a_comparison_that_a_run_has_spoiled_counts_in_the_family():
    losses = {"swiglu": 1.0, "poly_norm": 1.5, "relu2": 2.0}
    runs = {n: [run(n, s, (x + s, x + s, x + s)) for s in (0, 1, 2)] for n, x in losses.items()}
    runs["relu2"][1] = run("relu2", 1, (), diverged=True)
    arms = [finding(name, own, 1.0) for name, own in runs.items()]
    two = replace(TWO, pairs=(("poly_norm", "swiglu"), ("relu2", "swiglu")))
    found = findings("activations", two, arms, runs)
    kept, spoiled = found.comparisons[:2]
    assert spoiled.result is None
    assert kept.p_holm == pytest.approx(2 * 2 / 8)
    table = next(s for s in report.sections(found) if s.title == "Differences at equal tokens")
    assert "With 3 seeds and 2 comparisons, no p can be below 0.5" in table.notes[1]
    table = next(s for s in report.sections(found) if s.title == "Differences at equal seconds")
    assert "rounds of one measurement (another may differ by more)" in table.notes[0]


def test_differences_are_compared_seed_by_seed():
    # Apart by 0.5 and by 0.2, at levels that vary far more from seed to seed.
    losses = {"swiglu": 1.0, "poly_norm": 1.5, "relu": 2.0, "relu2": 2.2}
    runs = {
        n: [run(n, s, (9.0, 9.0, x + 5 * s + 0.01 * s * (n == "relu"))) for s in (0, 1, 2)]
        for n, x in losses.items()
    }
    arms = [finding(name, own, 1.0) for name, own in runs.items()]
    pairs = (("poly_norm", "swiglu"), ("relu2", "relu"))
    crossed = replace(TWO, pairs=pairs, interactions=((pairs[0], pairs[1]),))
    found = findings("precision", crossed, arms, runs)
    (one,) = found.interactions
    assert one.result is not None
    assert one.result.mean == pytest.approx(0.3 + 0.01)
    assert one.result.low == pytest.approx(0.31 - 4.302653 * 0.01 / 3**0.5)
    assert one.p_holm == pytest.approx(0.25)
    assert one.verdict == "higher, not after Holm"
    table = next(s for s in report.sections(found) if s.title.startswith("Differences of"))
    assert table.rows[0][:2] == ("poly_norm - swiglu", "relu2 - relu")
    assert table.rows[0][2] == "+0.3100 [+0.2852, +0.3348]"


def test_interactions_are_of_pairs_that_are_compared():
    for name, study in STUDIES.items():
        assert {pair for both in study.interactions for pair in both} <= set(study.pairs), name
    cut = STUDIES["precision"].only(["swiglu_float32", "swiglu_bfloat16", "poly_norm_bfloat16"])
    assert not cut.interactions
    assert cut.pairs


def test_no_pair_is_compared_twice():
    for study in STUDIES.values():
        assert len({frozenset(pair) for pair in study.pairs}) == len(study.pairs)


def test_a_run_that_diverged_is_told_and_not_averaged_away():
    runs = {
        "swiglu": [run("swiglu", s, (4.0, 3.0, 2.0)) for s in (0, 1)],
        "poly_norm": [
            run("poly_norm", 0, (3.5, 2.5, 1.5)),
            run("poly_norm", 1, (), diverged=True),
        ],
    }
    arms = [finding(name, own, 1.0) for name, own in runs.items()]
    found = findings("activations", TWO, arms, runs)
    assert arms[1].diverged == 1
    table = next(s for s in report.sections(found) if s.title.startswith("Held-out loss"))
    assert "Means over 2 seeds, but for runs that diverged." in table.notes[0]
    assert [c.verdict for c in found.comparisons] == ["not comparable"] * 2
    assert found.tokens_needed == ()
