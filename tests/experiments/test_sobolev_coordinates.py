"""Networks of coordinates beside what was published of them, and targets beside what is exact."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sobolev.coordinates.arms import ARMS, NAMES, Function
from experiments.sobolev.coordinates.networks import (
    Layered,
    Sl2a,
    Zoomed,
    chebyshev,
    network_of_size,
)
from experiments.sobolev.coordinates.targets import (
    DISTANCES,
    Samples,
    Target,
    _grey,
    exact,
    load,
    pixel_centres,
)
from experiments.sobolev.coordinates.train import (
    Loss,
    Points,
    Trainer,
    errors_of,
    values_and_slopes,
)
from polycom_jax import InputError

Z = np.linspace(-0.4, 0.4, 7)

SIDE = 120
"""Of the grids on which distances are tried: another number of points would compile hundreds of
operations anew."""


def function(arm: str) -> Function:
    found = ARMS[arm].function
    assert not isinstance(found, str)
    return found


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("siren", np.sin(30 * Z)),
        ("finer", np.sin(30 * (np.abs(Z) + 1) * Z)),
        ("gauss", np.exp(-((30 * Z) ** 2))),
        ("wire", np.exp(20j * (Z + 0.1j) - np.abs(10 * (Z + 0.1j)) ** 2)),
    ],
)
def test_functions_are_the_published_ones(arm: str, expected: np.ndarray):
    z = Z + 0.1j if arm == "wire" else Z
    with jax.enable_x64(True):
        np.testing.assert_allclose(function(arm)(jnp.asarray(z)), expected, rtol=1e-12)


def test_finer_s_scale_has_no_gradient_in_training_alone():
    trained = ARMS["finer"].trained
    assert trained is not None
    with jax.enable_x64(True):
        own, whole = (jax.grad(f)(0.2) for f in (trained, function("finer")))
    inner = 30 * 1.2 * 0.2
    assert own == pytest.approx(30 * 1.2 * math.cos(inner))
    assert whole == pytest.approx(30 * 1.4 * math.cos(inner))  # d/dz of (z + 1) z is 2 z + 1


def test_wire_has_a_derivative_at_zero():
    slope = jax.grad(lambda z: jnp.real(function("wire")(z + 0j)))(0.0)
    assert slope == 0.0


@pytest.mark.parametrize(
    ("arm", "layer", "bound"),
    [
        ("siren", 0, 1 / 2),
        ("siren", 1, math.sqrt(6 / 64) / 30),
        ("siren", 3, math.sqrt(6 / 64) / 30),
        ("finer", 0, 1 / 2),
        ("gauss", 0, 1 / math.sqrt(2)),
        ("gauss", 2, 1 / 8),
        ("wire", 1, 1 / 8),
    ],
)
def test_weights_start_uniform_within_the_published_bound(arm: str, layer: int, bound: float):
    params = Layered(arm, (64, 64, 64), 2).init(jax.random.key(0))[f"layer{layer}"]
    for name in {"w", "w_imaginary"} & {*params}:
        weights = np.abs(np.asarray(params[name]))
        assert 0.9 * bound < weights.max() <= bound
        assert weights.mean() == pytest.approx(bound / 2, rel=0.15)
    assert ("w_imaginary" in params) == (arm == "wire" and layer > 0)
    fan_in = 2 if layer == 0 else 64
    assert np.abs(np.asarray(params["b"])).max() <= 1 / math.sqrt(fan_in)


def test_fourier_features_are_of_the_published_scale_and_are_not_trained():
    network = Layered("relu_fourier", (200, 20), 2)
    params = network.init(jax.random.key(0))
    assert np.asarray(params["features"]).std() == pytest.approx(10, rel=0.1)
    assert np.asarray(params["layer0"]["w"]).std() == pytest.approx(
        math.sqrt(2 / (400 + 200)), rel=0.05
    )
    assert network.size == 400 * 200 + 200 + 200 * 20 + 20 + 21
    x = jnp.zeros((3, 2))
    slopes = jax.grad(lambda p: jnp.sum(network.apply(p, x)))(params)
    assert not np.any(slopes["features"])
    assert np.any(slopes["layer0"]["w"])


def test_chebyshev_s_polynomials_are_those_of_numpy():
    x = np.linspace(-0.76, 0.76, 9)
    expected = np.polynomial.chebyshev.chebvander(x, 24)
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            chebyshev(jnp.asarray(x)[:, None], 24)[:, 0], expected, atol=1e-12
        )


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_chebyshev_s_polynomials_begin_with_one_and_x(degree: int):
    found = chebyshev(jnp.array([[0.5, -1.0]]), degree)
    np.testing.assert_array_equal(found[0], np.array([[1, 0.5, -0.5], [1, -1, 1]])[:, : degree + 1])


def test_sl2a_s_first_layer_has_derivatives_where_tanh_rounds_to_one():
    def layer(x: float) -> jax.Array:
        return chebyshev(jnp.tanh(jnp.full((1, 1), x)), 5).sum()

    slope = jax.grad(layer)
    both = jax.jit(lambda x: (slope(x), jax.grad(slope)(x)))  # the second is for the loss h1
    assert jnp.tanh(12.0) == 1
    for x in (12.0, -12.0, 1000.0):
        assert both(x) == (0, 0)


def test_sl2a_is_the_published_network():
    network = Sl2a(width=6, degree=5, layers=2, dim=2)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), network.init(jax.random.key(1)))
        x = np.random.default_rng(0).uniform(-1, 1, (4, 2))
        found = network.apply(params, jnp.asarray(x))
        own = jax.tree.map(np.asarray, params)
    bases = np.polynomial.chebyshev.chebvander(np.tanh(x), 5)
    u = np.einsum("pdk,dwk->pw", bases, own["layer0"]["c"])
    u = (u - u.mean(1, keepdims=True)) / np.sqrt(u.var(1, keepdims=True) + 1e-5)
    layer = own["layer1"]
    y = np.maximum((u * u) @ layer["a"] @ layer["b"] + layer["bias"], 0)
    expected = (u * y) @ own["out"]["w"][:, 0] + own["out"]["b"]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert np.abs(own["layer0"]["c"]).max() <= math.sqrt(6 / (8 * 6))
    assert network.rank == 3


@pytest.mark.parametrize("size", [600, 2500])
def test_all_arms_have_equal_numbers_of_parameters(size: int):
    counts = {arm: network_of_size(arm, size, dim=2, layers=3).size for arm in NAMES}
    assert max(counts.values()) <= size
    assert min(counts.values()) >= 0.98 * max(counts.values())


@pytest.mark.parametrize("arm", ["finer", "wire", "sl2a", "poly_relu_fourier"])
def test_networks_have_gradients_in_their_coordinates_that_differences_confirm(arm: str):
    network = Zoomed(network_of_size(arm, 120, dim=2, layers=2), 0.5)
    x = np.random.default_rng(0).uniform(-0.9, 0.9, (3, 2))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), network.init(jax.random.key(0)))
        step = 1e-6
        moves = step * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
        points = jnp.asarray((x[:, None] + moves[None]).reshape(-1, 2))
        found = jax.jit(partial(values_and_slopes, network))(params, points)
    values, slopes = (np.asarray(each) for each in found)
    around = values.reshape(3, 5)
    expected = (around[:, [1, 3]] - around[:, [2, 4]]) / (2 * step)
    np.testing.assert_allclose(slopes.reshape(3, 5, 2)[:, 0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_have_gradients_of_length_one_that_differences_confirm(name: str):
    points = np.random.default_rng(0).uniform(-1, 1, (SIDE**2, 2))
    values, slopes = exact(DISTANCES[name], points)
    assert values.min() < -0.1 < 0.3 < values.max()
    np.testing.assert_allclose(np.linalg.norm(slopes, axis=1), 1, atol=1e-9)
    step = 1e-7
    found = np.stack(
        [
            (exact(DISTANCES[name], points + m)[0] - exact(DISTANCES[name], points - m)[0])
            / (2 * step)
            for m in step * np.eye(2)
        ],
        axis=1,
    )
    near = np.abs(found - slopes).max(axis=1) < 1e-6
    assert near.mean() > 0.99  # else it lies on a line of kinks


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_those_to_the_nearest_point_of_the_boundary(name: str):
    """A boundary is where the sign changes: no point within the distance has the other sign."""
    grid = pixel_centres(SIDE).reshape(-1, 2)
    values = exact(DISTANCES[name], grid)[0]
    inside, outside = values < 0, values >= 0
    for part, other in ((outside, inside), (inside, outside)):
        every = max(1, np.count_nonzero(part) // 60)
        some, own = grid[part][::every], np.abs(values[part][::every])
        nearest = np.min(np.linalg.norm(some[:, None] - grid[other][None], axis=2), axis=1)
        assert np.all(nearest >= own - 1e-12)
        assert np.all(nearest <= own + 2 * 2 / SIDE)


def test_an_image_is_a_square_in_grey_and_its_training_slopes_know_every_second_pixel_alone():
    target = load("grace_hopper", 16)
    assert target.kind == "image"
    assert -1 <= target.pixels.min() < -0.5
    assert 0.5 < target.pixels.max() <= 1
    assert len(target.train.points) == 64
    assert len(target.held.points) == 192
    coarse = target.pixels[::2, ::2]
    np.testing.assert_allclose(target.train.values, coarse.ravel())
    middle = target.train.slopes.reshape(8, 8, 2)[3, 3]
    expected = (coarse[4, 3] - coarse[2, 3], coarse[3, 4] - coarse[3, 2])
    np.testing.assert_allclose(middle, np.array(expected) / 0.5)


def test_the_losses_are_what_they_are_said_to_be():
    network = network_of_size("siren", 100, dim=2, layers=1)
    params, target = network.init(jax.random.key(0)), load("shapes", SIDE)
    at = Points.of(target.train)
    values, slopes = (np.asarray(each) for each in values_and_slopes(network, params, at.points))
    square = np.mean((values - target.train.values) ** 2)
    assert Trainer(network, 1, "l2").loss_at(params, at) == pytest.approx(square, rel=1e-4)
    errors = np.mean(np.sum((slopes - target.train.slopes) ** 2, axis=1))
    relative = square / target.train.values.var() + errors  # gradients of distances have length 1
    assert Trainer(network, 1, "h1").loss_at(params, at) == pytest.approx(relative, rel=1e-4)
    found = errors_of(jnp.asarray(values), jnp.asarray(slopes), at)
    assert float(found.l2) == pytest.approx(math.sqrt(square), rel=1e-4)


def samples(count: int, seed: int) -> Samples:
    """A target whose gradients are not of length 1."""
    rng = np.random.default_rng(seed)
    return Samples(*(rng.normal(size=shape) for shape in ((count, 2), count, (count, 2))))


def plain_errors(values: np.ndarray, slopes: np.ndarray, at: Samples) -> dict[str, float]:
    off = values - at.values
    apart, whole = np.sum((slopes - at.slopes) ** 2), np.sum(at.slopes**2)
    return {
        "l2": math.sqrt(np.mean(off**2)),
        "sup": max(abs(each) for each in off),
        "slopes": math.sqrt(apart / whole),
        "length": float(np.mean([abs(math.hypot(*slope) - 1) for slope in slopes])),
    }


def test_errors_are_those_of_numpy():
    at, rng = samples(5, 0), np.random.default_rng(1)
    values, slopes = at.values - np.array([0.1, 0.2, 2.0, -0.3, 0.0]), rng.normal(size=(5, 2))
    found = errors_of(jnp.asarray(values), jnp.asarray(slopes), Points.of(at))
    assert found._asdict() == pytest.approx(plain_errors(values, slopes, at), rel=1e-5)


@dataclass(frozen=True)
class Plane:
    """x . (w, w), w = 0.5."""

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        return {"w": jnp.float32(0.5)}

    def apply(self, params: Any, x: jax.Array, *, train: bool = False) -> jax.Array:
        return params["w"] * x.sum(axis=1)


@pytest.mark.parametrize("loss", ["l2", "h1"])
def test_a_run_is_measured_at_both_parts_and_judged_by_what_is_held_out(loss: Loss):
    train, held = samples(7, 2), samples(9, 3)
    target = Target("shapes", "distance", train, held, np.zeros((2, 2)))
    network: Any = Plane()
    run, _ = Trainer(network, 3, loss).run(target, 0, 0.0, lambda share: None)
    at_train, at_held = (
        plain_errors(0.5 * part.points.sum(1), np.full((len(part.points), 2), 0.5), part)
        for part in (train, held)
    )
    assert run.steps == (1, 2, 3)
    assert run.train == pytest.approx([at_train["l2"]] * 3, rel=1e-5)
    assert run.held == pytest.approx([at_held["l2"]] * 3, rel=1e-5)
    found = {name: getattr(run, name) for name in ("sup", "slopes", "length")}
    assert found == pytest.approx({name: at_held[name] for name in found}, rel=1e-5)
    assert run.deviation == pytest.approx(train.values.std(), rel=1e-5)
    scores = {"l2": at_held["l2"], "h1": math.hypot(at_held["l2"] / held.values.std(), run.slopes)}
    assert run.score == pytest.approx(scores[loss], rel=1e-5)


def test_gradients_of_an_image_are_central_differences_of_its_pixels():
    target = load("grace_hopper", 16)
    pixels, middle = target.pixels, pixel_centres(16)[7, 8]  # held out, since 7 is odd
    (place,) = np.flatnonzero((target.held.points == middle).all(axis=1))
    expected = (pixels[8, 8] - pixels[6, 8], pixels[7, 9] - pixels[7, 7])
    np.testing.assert_allclose(target.held.slopes[place], np.array(expected) / (2 * 2 / 16))


def test_grey_is_mostly_green_and_least_of_all_blue():
    red, green, blue = _grey(255 * np.eye(3)[None])[0]
    assert (red, green, blue) == pytest.approx((0.299, 0.587, 0.114))  # Rec. 601


def test_too_few_parameters_are_refused():
    with pytest.raises(InputError, match="parameters=10 do not fit: the smallest network here has"):
        network_of_size("siren", 10, dim=2, layers=3)
