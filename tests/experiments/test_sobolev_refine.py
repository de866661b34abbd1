"""Training from a construction: what is trained, where it starts, what stands beside it."""

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sobolev import fit, refine
from experiments.sobolev.__main__ import main
from experiments.sobolev.options import RefineOptions, named_target
from experiments.sobolev.train import Standardised
from polycom_jax import InputError
from polycom_jax import approximation as pa

OPTIONS = RefineOptions(activations=("gelu",), sizes=(100,), targets=("spline:2", "waves:2"))


@pytest.fixture(scope="module")
def targets() -> list[Standardised]:
    names = (*OPTIONS.targets, *OPTIONS.chosen_on)
    return [Standardised.of(named_target(name, OPTIONS.dim)) for name in names]


@pytest.fixture(scope="module")
def net(targets: list[Standardised]) -> refine.Wired:
    return refine.wired(OPTIONS, targets, 100)


X = np.random.default_rng(0).random((64, 1), dtype=np.float32)


def test_the_construction_is_the_largest_that_fits():
    for size in (62, 92, 93, 400, 899):
        cells = OPTIONS.construction(size)
        assert pa.size_formula(2, 1, cells) <= size < pa.size_formula(2, 1, cells + 1)
    with pytest.raises(InputError, match="the smallest has 62"):
        OPTIONS.construction(61)


def test_contestants_have_equal_size(targets: list[Standardised]):
    built, random, mlp = refine.contestants(OPTIONS, targets)
    assert built.network.size == random.network.size == pa.size_formula(2, 1, 2) == 93
    # One unit more has 2 W + 4 more parameters, W = 7.
    assert 93 - 18 < mlp.network.size <= 93


def test_training_starts_at_the_network_built_for_the_runs_target(
    net: refine.Wired, targets: list[Standardised]
):
    for index, target in enumerate(targets):
        params = net.init(jax.random.key(0), jnp.int32(index))
        with jax.enable_x64(True):
            expected = pa.evaluate(pa.taylor_network(target, 2, 1, 2), X.astype(float))[:, 0]
        # float32, dozens of operations on numbers up to 20.
        np.testing.assert_allclose(net.apply(params, jnp.asarray(X)), expected, atol=1e-4)


def test_a_random_start_has_the_same_wires_and_powers(net: refine.Wired):
    random = refine.Wired(net.wires, net.built, random=True)
    built, drawn, other = (
        each.init(jax.random.key(seed), jnp.int32(0))
        for each, seed in ((net, 0), (random, 0), (random, 1))
    )
    for k, wires in enumerate(net.wires["layers"]):
        own = drawn["layers"][k]
        for name in ("weights", "biases"):
            assert bool(((own[name] != 0) == wires[name]).all())
            assert not wires[name].any() or bool(jnp.any(own[name] != other["layers"][k][name]))
        np.testing.assert_array_equal(own["coeffs"], built["layers"][k]["coeffs"])
    assert drawn["readout"]["weights"].shape == built["readout"]["weights"].shape


def test_what_does_not_stand_in_the_network_is_not_trained(net: refine.Wired):
    how = fit.Fit(net, steps=40, batch_size=64)
    runs = fit.Runs.of([(1e-2, 0, 0), (1e-2, 0, 1)])
    # 1 added to the standardised target: at its built start, the network is off by that.
    y = net.apply(net.init(jax.random.key(0), jnp.int32(0)), jnp.asarray(X)) + 1
    before = how.start(runs)
    start = jax.tree.map(jnp.copy, before.params)
    after = how.advance(before, runs, fit.Data(jnp.asarray(X), y[None]), 0, 40).params
    for old, new, wires in zip(*map(jax.tree.leaves, (start, after, net.wires)), strict=True):
        still = ~np.asarray(wires)
        np.testing.assert_array_equal(old[:, still], new[:, still])
    moved = net.apply(jax.tree.map(lambda leaf: leaf[0], after), jnp.asarray(X))
    assert float(jnp.mean((moved - y) ** 2)) < 0.5


@pytest.mark.slow
def test_the_study_reports_all_contestants(tmp_path: Path):
    words = "refine --quick --targets spline:2 --steps 20 --points 64 --cells 2"
    assert main([*words.split(), "--out", str(tmp_path)]) == 0
    with (tmp_path / "refine.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = (refine.AS_BUILT, refine.TRAINED, refine.REWIRED, "MLP gelu")
    assert {row["activation"] for row in rows} == set(names)
    assert len(rows) == 4 * 2
    errors = {float(row["l2"]) for row in rows if row["activation"] == refine.AS_BUILT}
    assert len(errors) == 1  # no seed has a part in it
    record = json.loads((tmp_path / "refine.json").read_text())
    assert {row["parameters"] for row in record["summary"]} >= {93}
    assert "Theorem 3's network" in (tmp_path / "refine.md").read_text()
