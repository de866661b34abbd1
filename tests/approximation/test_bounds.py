import math

import pytest

from polycom_jax import InputError
from polycom_jax import approximation as pa


def test_the_size_of_a_cell_is_the_known_integer():
    # By hand: 11 is two units of (1 weight, 1 bias, 1 coefficient), one of (2, 1, 1), the readout.
    # 59 is 3 x 10 for trapezoids, 3 x (2 + 1) and 1 + 1 for (ab, c), 3 x (4 + 1) for (ab)c, 3.
    assert [pa.cell_size(n, 1) for n in (1, 2, 3, 4)] == [11, 31, 55, 75]
    assert [pa.cell_size(n, 2) for n in (1, 2, 3, 4)] == [32, 86, 159, 251]
    assert [pa.cell_size(n, 3) for n in (1, 2, 3, 4)] == [59, 176, 343, 703]
    # 21 is 2 x (1 + 1 + 1), 3 x (2 + 1 + 1) and 3. 51 is 18 + 10 for bump and coordinate, 1 + 3 and
    # 3 x (4 + 1) for phi and phi t, 1 + 3.
    assert [pa.cell_size(n, 1, "spline") for n in (1, 2)] == [21, 51]
    assert pa.size_formula(2, 2, 9) == 86 * 100
    assert pa.size_formula(2, 1, 9, "spline") == pa.cell_size(2, 1, "spline") * 10


def test_the_sharp_bound_is_below_the_paper_bound():
    for n, d in ((1, 1), (3, 1), (2, 3)):
        assert pa.bound(n, d, 7) == pytest.approx((2 * d / 3) ** n / math.factorial(n) * 7**-n)
        assert pa.paper_bound(n, d, 7) == pytest.approx(2**d * d**n / math.factorial(n) * 7**-n)
        assert pa.bound(n, d, 7) < pa.paper_bound(n, d, 7)


def test_cells_are_the_least_that_reach_eps():
    for n, d in ((1, 1), (2, 1), (4, 2), (3, 3)):
        for cells in (2, 5, 10, 31):
            eps = pa.bound(n, d, cells)
            if eps < 1:
                assert pa.cells_for(eps, n, d) == cells
                assert pa.cells_for(eps * 0.999, n, d) == cells + 1
    assert pa.cells_for(0.9, 4, 1) == 1
    for eps in (1e-20, 1e-60):  # beyond the whole numbers that a float tells apart
        cells = pa.cells_for(eps, 1, 1)
        assert pa.bound(1, 1, cells) <= eps < pa.bound(1, 1, cells - max(1, cells >> 50))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: pa.bound(0, 1, 4), "n=0"),
        (lambda: pa.bound(1, 0, 4), "d=0"),
        (lambda: pa.size_formula(1, 1, 0), "N=0"),
        (lambda: pa.cells_for(1.0, 1, 1), "eps=1.0 must be between 0 and 1"),
        (lambda: pa.cells_for(0.0, 1, 1), "eps=0.0"),
        (lambda: pa.interior_error(5, 4), "from 1 to 4"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()
