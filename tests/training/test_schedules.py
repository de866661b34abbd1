"""Schedules against their closed forms, written out in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.training import OptimConfig, make_schedule
from polycom_jax.training.schedules import SHAPES, warmed_up

W, H, F, D = 10, 60, 0.1, 0.25
CLOSED = {
    "cosine": lambda t: F + (1 - F) * (1 + math.cos(math.pi * (t - W) / (H - W))) / 2,
    "linear": lambda t: 1 - (1 - F) * (t - W) / (H - W),
    "constant": lambda t: 1.0,
    "wsd": lambda t: 1.0 if t <= H - D * H else F + (1 - F) * (H - t) / (D * H),
}


def rates(name, count=80, **changes):
    numbers = {"peak": 2e-3, "final": F, "warmup": W, "horizon": H, "decay_fraction": D}
    schedule = warmed_up(name, **(numbers | changes))
    return np.asarray(jax.vmap(schedule)(jnp.arange(count)))


def test_every_shape_has_a_closed_form_here():
    assert CLOSED.keys() == SHAPES.keys()


@pytest.mark.parametrize("name", CLOSED)
def test_rates_are_those_of_the_closed_form(name):
    expected = [2e-3 * (t / W if t <= W else CLOSED[name](min(t, H))) for t in range(1, 81)]
    np.testing.assert_allclose(rates(name), np.array(expected), rtol=1e-5)


@pytest.mark.parametrize("name", CLOSED)
def test_the_peak_and_the_end_are_reached_exactly(name):
    values = rates(name)
    assert values[W - 1] == np.float32(2e-3)
    last = 2e-3 if name == "constant" else 2e-4
    np.testing.assert_allclose(values[H - 1 :], last, rtol=1e-6)


@pytest.mark.parametrize("name", CLOSED)
def test_a_run_shorter_than_its_warm_up_never_leaves_it(name):
    values = rates(name, 4, horizon=4)
    np.testing.assert_allclose(values, 2e-4 * np.arange(1, 5), rtol=1e-6)


def test_a_fall_longer_than_what_is_left_begins_at_the_end_of_the_warm_up():
    np.testing.assert_allclose(rates("wsd", decay_fraction=1.0), rates("linear"), rtol=1e-5)


def test_the_schedule_of_a_config_is_the_one_that_it_names():
    optim = OptimConfig(schedule="wsd", decay_fraction=D, peak_learning_rate=2e-3, warmup_steps=W)
    found = np.asarray(jax.vmap(make_schedule(optim, H))(jnp.arange(80)))
    np.testing.assert_array_equal(found, rates("wsd"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"schedule": "cosin"}, "Did you mean|cosine"), ({"decay_fraction": 0.0}, "decay_fraction")],
)
def test_what_there_is_not_is_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        OptimConfig(**changes)
    with pytest.raises(InputError, match="schedule"):
        warmed_up("cosin", peak=1.0, final=0.1, warmup=1, horizon=2)  # pyright: ignore
