"""What a run of a study reads, at which rates, and how it is scored and timed, without a model."""

import math
from collections.abc import Callable
from itertools import islice
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.compare import concluding, timing, train
from experiments.compare.arms import Arm, Study
from experiments.compare.comparing import Comparing
from experiments.compare.concluding import Finished
from experiments.compare.runs import Run, RunKey
from experiments.compare.train import Programs, heldout_batches, heldout_loss
from polycom_jax import models
from polycom_jax.data import TokenStore, train_batches
from polycom_jax.training import TrainState
from polycom_jax.training.loss_stats import LossStats

EOT, T, ROWS = 999, 4, 2
LENGTHS, PEAK, SEED = (20, 40), 0.5, 7


def store(count: int) -> TokenStore:
    return TokenStore(np.array([count]), lambda shard: np.arange(count), EOT, 1, count)


def started(key: Any) -> TrainState:
    return TrainState(jnp.int32(0), jax.random.normal(key, ()), (), LossStats.start())


def programs(step: Callable[..., Any], nats: Callable[..., Any]) -> Programs:
    cfg: Any = SimpleNamespace(context_length=T)
    return Programs(cfg, started, step, nats, 0)


def counted(params: Any, batch: Any) -> tuple[Any, Any]:
    return params * batch["mask"].sum(), batch["mask"].sum()


def ran(monkeypatch: pytest.MonkeyPatch, *, left_out_at: float = math.nan) -> Run:
    """A run whose only parameter adds up rate x mean token, and is its own loss; at one rate the
    step leaves its update out."""

    def step(state: TrainState, batch: Any, rate: Any) -> tuple[TrainState, dict[str, Any]]:
        change = float(rate) * float(batch["tokens"].mean())
        metrics = {"loss": jnp.float32(change), "grad_norm": jnp.float32(rate)}
        if rate == left_out_at:
            metrics["loss"] = jnp.float32(math.nan)
            watch = state.watch.replace(skipped=state.watch.skipped + 1)  # pyright: ignore
            return state.replace(watch=watch), metrics  # pyright: ignore
        return state.replace(params=state.params + change), metrics  # pyright: ignore

    monkeypatch.setattr(train, "activation_parameters", lambda cfg, params: [{}])
    monkeypatch.setattr(train, "POINTS", 5)
    text = store(400)
    heldout = heldout_batches(text, batch_size=ROWS, seq_len=T, tokens=None)
    key = RunKey("arm", PEAK, SEED, LENGTHS)
    return train.train(programs(step, counted), key, text, heldout, batch_size=ROWS)


def changes(length: int) -> list[float]:
    """By hand: of each update up to a length, after two of warm-up, with a fall over 20 %."""
    fall = length // 5
    rates = [1 / 2] + [1.0] * (length - fall - 1) + [left / fall for left in range(fall, 0, -1)]
    batches = train_batches(store(400), batch_size=ROWS, seq_len=T, seed=SEED)
    pairs = zip(rates, islice(batches, length), strict=True)
    return [PEAK * rate * float(batch["tokens"].mean()) for rate, batch in pairs]


def test_every_length_ends_where_a_run_of_its_own_would(monkeypatch: pytest.MonkeyPatch):
    run, start = ran(monkeypatch), float(jax.random.normal(jax.random.key(SEED), ()))
    assert run.initial == pytest.approx(start, rel=1e-6)
    wanted = [start + sum(changes(length)) for length in LENGTHS]
    assert run.heldout == pytest.approx(wanted, rel=40 * 2**-24)


def test_a_run_of_which_an_update_was_left_out_is_over_though_no_point_of_its_curve_says_so(
    monkeypatch: pytest.MonkeyPatch,
):
    # The last update of the first branch, whose rate is a quarter: behind the last point, at 16.
    run = ran(monkeypatch, left_out_at=PEAK / 4)
    assert run.steps == (8, 16)
    assert np.isfinite(run.loss).all()
    assert (run.diverged, run.heldout) == (True, ())


def test_where_a_recipe_averages_weights_their_average_is_scored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train, "average_of", lambda opt_state: 4.5)
    assert ran(monkeypatch).heldout == (4.5, 4.5)


def test_the_curve_of_a_run_is_that_of_its_longest_branch(monkeypatch: pytest.MonkeyPatch):
    run = ran(monkeypatch)
    assert run.steps == (8, 16, 24, 32, 40)
    means = np.reshape(changes(40), (5, 8)).mean(1)
    np.testing.assert_allclose(run.loss, means, rtol=1e-6)
    rates = [7.5 / 8, 1, 1, 1, 4.5 / 8]
    np.testing.assert_allclose(run.grad_norm, PEAK * np.array(rates), rtol=1e-6)


@pytest.mark.parametrize("tokens", [None, 20, 36])
def test_held_out_windows_are_read_once_and_lie_evenly_over_the_text(tokens: int | None):
    batches = heldout_batches(store(82), batch_size=8, seq_len=T, tokens=tokens)  # 21 windows
    seen = [int(t) for b in batches for t in np.asarray(b["targets"])[np.asarray(b["mask"])]]
    assert len(seen) == len(set(seen))
    if tokens is None:
        assert sorted(seen) == [*range(1, 82), EOT]
        return
    firsts = sorted(seen)[::T]
    assert len(seen) == T * len(firsts) == tokens
    gaps = np.diff([*firsts, firsts[0] + 21 * T])
    assert gaps.max() - gaps.min() <= T


def test_a_held_out_loss_is_a_mean_over_tokens_and_not_over_batches():
    sums = {"few": (6.0, 2.0), "many": (1.0, 10.0)}
    made = programs(lambda *args: None, lambda params, batch: sums[batch])
    batches: Any = ["few", "many"]
    assert heldout_loss(made, None, batches) == pytest.approx(7 / 12)


def test_step_seconds_are_of_one_step_that_is_warm(monkeypatch: pytest.MonkeyPatch):
    clock, cold = [0.0], [True]

    def step(seconds: float) -> Callable[..., Any]:
        def run(state: Any, batch: Any, rate: Any) -> tuple[Any, dict[str, Any]]:
            clock[0] += 100 * seconds if cold[0] else seconds
            cold[0] = False
            return state, {}

        return run

    def init(key: Any) -> None:
        cold[0] = True

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    arms: Any = {
        name: SimpleNamespace(init=init, step=step(seconds))
        for name, seconds in (("slow", 0.5), ("fast", 0.25))
    }
    batch: Any = {}
    found = timing.step_seconds(arms, batch, lambda text: None)
    assert {len(rounds) for rounds in found.values()} == {timing.LEAST_ROUNDS}
    assert found["slow"] == pytest.approx([0.5] * timing.LEAST_ROUNDS)
    assert found["fast"] == pytest.approx([0.25] * timing.LEAST_ROUNDS)


def test_times_of_a_report_are_in_units_of_the_fastest_arm_that_an_arm_is_compared_with(
    monkeypatch: pytest.MonkeyPatch,
):
    found: dict[str, tuple[float, float]] = {}
    seconds = {"small": 1.0, "small_relu": 2.0, "large_relu": 10.0, "large": 30.0}
    arms = tuple(Arm(name, "relu") for name in seconds)
    study = Study("?", arms, (("small_relu", "small"), ("large_relu", "large")))

    def keep(name: str, cfg: Any, search: Any, cost: Any, runs: Any, **words: Any) -> None:
        found[name] = cost.step_seconds, cost.relative_seconds

    monkeypatch.setattr(concluding, "arm_finding", keep)
    for name in ("findings", "sensitivities"):
        monkeypatch.setattr(concluding, name, lambda *words: None)
    rounds = {name: [each] * 3 for name, each in seconds.items()}
    times = timing.Timing(rounds, dict.fromkeys(seconds, 1))
    config: Any = SimpleNamespace(study="?", data=SimpleNamespace(batch_size=1))
    base, none = models.preset("tiny"), dict.fromkeys(seconds, ())
    searches: Any = dict.fromkeys(seconds)
    _ = Finished(config, study, base, searches, {}, none, times).findings
    relative = {"small": 1, "small_relu": 2, "large_relu": 1, "large": 3}
    assert found == {name: (seconds[name], pytest.approx(relative[name])) for name in seconds}


@pytest.mark.parametrize("treated", ["", "1 of 9 held-out documents are in the training text, too"])
def test_a_study_tells_what_is_odd_about_its_text(treated: str):
    lines: list[str] = []
    corpus = SimpleNamespace(train=SimpleNamespace(num_tokens=9), treated=treated, fingerprint="")
    data = SimpleNamespace(batch_size=1, source="a.txt")
    config = SimpleNamespace(
        study="?", model="tiny", data=data, lengths=(1, 2, 4), steps=4, seeds=2, changes={},
        result_seeds=range(2),
    )  # fmt: skip
    own: Any = SimpleNamespace(
        config=config, study=Study("?", (), ()), base=models.preset("tiny"), corpus=corpus,
        recipe="",
        display=SimpleNamespace(note=lines.append), command="c", circumstances={},
    )  # fmt: skip
    Comparing.describe(own)
    assert lines[1:] == [treated][: bool(treated)]
    assert Comparing.about(own).get("text", "") == treated
