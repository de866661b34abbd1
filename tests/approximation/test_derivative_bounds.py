"""Errors of derivatives, measured and bounded."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax import approximation as pa
from polycom_jax.approximation.derivative_bounds import _SLOPES

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("kind", ["trapezoid", "spline"])
def test_slopes_of_a_partition_add_up_to_what_is_said(kind):
    bump, z = pa.partition(kind).bump, np.linspace(-2, 2, 4 * 3 * 4000 + 1)
    phi = np.asarray(pa.evaluate(bump, z[:, None]))[:, 0]
    cell = len(z) // 4
    for order, most in enumerate(_SLOPES[kind].sums):
        slopes = np.abs(np.diff(phi, order)) / (z[1] - z[0]) ** order
        sums = np.sum([slopes[k * cell : (k + 1) * cell - 2] for k in range(4)], axis=0)
        assert sums.max() == pytest.approx(most, rel=2e-3)  # of the differences


@pytest.mark.parametrize(
    ("kind", "n", "d"),
    [("trapezoid", 1, 1), ("trapezoid", 2, 2), ("spline", 2, 1), ("spline", 2, 2)],
)
@pytest.mark.parametrize("name", ["waves", "spline"])
def test_errors_of_derivatives_stay_below_the_bound(name, kind, n, d):
    target, cells = pa.get_target(name, order=n, dim=d), 6
    net = pa.taylor_network(target, n, d, cells, kind=kind)
    order = min(n, len(_SLOPES[kind].sums) - 1)
    smoothness = min(net.smoothness, target.smoothness)
    norms = pa.derivative_norms(
        lambda x: pa.evaluate_copies(net, x, pa.active_copies(x, cells))[:, 0] - target(x),
        pa.Grid(d, cells, 3),
        order=order,
        smoothness=smoothness,
    )
    for m, worst in norms.items():
        if sum(m) > 0:
            assert worst <= pa.derivative_bound(n, d, cells, sum(m), kind) * (1 + 1e-9)


def test_the_known_formula_and_its_rate():
    n, d, cells = 3, 2, 10
    r = 2 * d / (3 * cells)
    assert pa.derivative_bound(n, d, cells) == pytest.approx(6 * cells * r**3 / 6 + r**2 / 2)
    for order in (1, 2):
        few, many = (pa.derivative_bound(n, d, c, order, "spline") for c in (10, 100))
        assert few / many == pytest.approx(10 ** (n - order))
    few, many = (pa.hoelder_bound(n, d, c, 0.25) for c in (10, 100))
    assert few / many == pytest.approx(10 ** (n - 0.25))


def test_bounds_are_the_numbers_that_the_formulas_give_by_hand():
    # r = 0.2: 4.5^2 x 10^2 x 0.2^3 / 6, then 2 x 4.5 x 10 x 0.2^2 / 2, then 0.2.
    assert pa.derivative_bound(3, 2, 10, 2, "spline") == pytest.approx(2.7 + 1.8 + 0.2)
    # r = 0.1, and 18 in place of 4.5^2.
    assert pa.derivative_bound(3, 1, 10, 2, "spline") == pytest.approx(0.3 + 0.45 + 0.1)
    # r = 1/3: twice the error, 2 x 1/18, and sqrt(2) times its slope, 24 / 18 + 1/3.
    assert pa.hoelder_bound(2, 2, 4, 0.5) == pytest.approx((1 / 9 * 2**0.5 * 5 / 3) ** 0.5)
    assert pa.hoelder_bound(2, 2, 4, 0.25) == pytest.approx(
        (1 / 9) ** 0.75 * (2**0.5 * 5 / 3) ** 0.25
    )


def test_hoelder_quotients_stay_below_their_bound():
    target, cells = pa.get_target("waves", order=2, dim=1), 8
    net = pa.taylor_network(target, 2, 1, cells)
    x = np.linspace(0, 1, 801)
    e = np.asarray(pa.evaluate(net, x[:, None]))[:, 0] - np.asarray(target(jnp.asarray(x[:, None])))
    for s in (0.1, 0.5, 0.9):
        apart = np.abs(x[:, None] - x[None]) + np.eye(len(x))
        assert (np.abs(e[:, None] - e[None]) / apart**s).max() <= pa.hoelder_bound(2, 1, cells, s)


@pytest.mark.parametrize(
    ("order", "kind", "n"),
    [(2, "trapezoid", 4), (3, "spline", 4), (2, "spline", 1), (0, "spline", 2)],
)
def test_derivatives_that_networks_do_not_have_are_refused(order, kind, n):
    with pytest.raises(InputError, match=f"order={order}"):
        pa.derivative_bound(n, 1, 4, order, kind)
    with pytest.raises(InputError, match="between 0 and 1"):
        pa.hoelder_bound(2, 1, 4, 1.0)


def test_a_partition_that_is_none_is_refused():
    kind: Any = "splines"
    with pytest.raises(InputError, match="Unknown partition of unity 'splines'"):
        pa.derivative_bound(2, 1, 4, kind=kind)
    with pytest.raises(InputError, match="Unknown partition of unity 'splines'"):
        pa.hoelder_bound(2, 1, 4, 0.5, kind)
