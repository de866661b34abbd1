"""What is represented: images that dependencies ship, and signed distances that are known exactly.

Both are sampled at the centres of side x side pixels of [-1, 1]^2, the first coordinate being down.
Every second pixel in both directions is trained on; the others are held out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polycom_jax._errors import InputError, unknown

Kind = Literal["image", "distance"]
Distance = Callable[[Float[Array, "P 2"]], Float[Array, " P"]]
Vertices = Sequence[tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Samples:
    """Points, and what the target is there.

    Attributes:
        points: in [-1, 1]^2.
        values: of the target.
        slopes: its gradients.
    """

    points: Float[np.ndarray, "P 2"]
    values: Float[np.ndarray, " P"]
    slopes: Float[np.ndarray, "P 2"]


@dataclass(frozen=True, eq=False)
class Target:
    """A function on [-1, 1]^2.

    Attributes:
        name: of `IMAGES` or `DISTANCES`.
        kind: which of them.
        train: every second pixel in both directions.
        held: the other pixels.
        pixels: values at all of them.
    """

    name: str
    kind: Kind
    train: Samples
    held: Samples
    pixels: Float[np.ndarray, "S S"]


def kind_of(name: str) -> Kind:
    """Whether it is an image or a distance.

    Raises:
        InputError: neither.
    """
    if name in IMAGES:
        return "image"
    if name in DISTANCES:
        return "distance"
    raise unknown("target", name, (*IMAGES, *DISTANCES))


def load(name: str, side: int) -> Target:
    """The target of that name at side x side pixels.

    An image is scaled to [-1, 1]. Its gradients are central differences of all pixels, one-sided at
    the border; for training those of the pixels trained on alone, so that nothing is known of the
    others.

    Raises:
        InputError: there is no such target, or what ships it is not installed.
    """
    kind, points = kind_of(name), pixel_centres(side)
    if kind == "image":
        pixels = _image(name, side)
        slopes = _differences(pixels, 2 / side)
        coarse = _differences(pixels[::2, ::2], 4 / side)
    else:
        values, slopes = exact(DISTANCES[name], points.reshape(-1, 2))
        pixels, slopes = values.reshape(side, side), slopes.reshape(side, side, 2)
        coarse = slopes[::2, ::2]
    trained = np.zeros((side, side), bool)
    trained[::2, ::2] = True
    train = Samples(points[trained], pixels[trained], coarse.reshape(-1, 2))
    held = Samples(points[~trained], pixels[~trained], slopes[~trained])
    return Target(name, kind, train, held, pixels)


def pixel_centres(side: int) -> Float[np.ndarray, "S S 2"]:
    """Of side x side pixels that fill [-1, 1]^2."""
    centres = (2 * np.arange(side) + 1) / side - 1
    return np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1)


def _differences(pixels: Float[np.ndarray, "R C"], step: float) -> Float[np.ndarray, "R C 2"]:
    rows, columns = (np.gradient(pixels, step, axis=axis) for axis in (0, 1))
    return np.stack([rows, columns], axis=-1)


def _image(name: str, side: int) -> Float[np.ndarray, "S S"]:
    """The largest square in the middle, in grey, averaged down to side x side, in [-1, 1]."""
    from PIL import Image  # Matplotlib needs it, too

    whole = IMAGES[name]()
    least = min(whole.shape)
    top, left = ((n - least) // 2 for n in whole.shape)
    square = Image.fromarray(whole[top : top + least, left : left + least].astype(np.float32))
    small = np.asarray(square.resize((side, side), Image.Resampling.BOX), np.float64)
    return 2 * small - 1


def _matplotlib(name: str) -> Path:
    import matplotlib as mpl

    path = Path(mpl.get_data_path()) / "sample_data" / name
    if not path.exists():
        raise InputError(
            f"{path} is missing: this Matplotlib came without its sample data; reinstall it by pip,"
            " or take the images of scikit-learn: china, flower."
        )
    return path


def _grey(pixels: np.ndarray) -> Float[np.ndarray, "R C"]:
    """Luma of Rec. 601, in [0, 1]."""
    return pixels[..., :3].astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255


def _photograph(name: str) -> Float[np.ndarray, "R C"]:
    from PIL import Image

    with Image.open(_matplotlib(name)) as image:
        return _grey(np.asarray(image.convert("RGB")))


def _elevation() -> Float[np.ndarray, "R C"]:
    with np.load(_matplotlib("jacksboro_fault_dem.npz")) as file:
        heights = file["elevation"].astype(np.float64)
    return (heights - heights.min()) / np.ptp(heights)


def _scikit_learn(name: str) -> Float[np.ndarray, "R C"]:
    try:
        from sklearn.datasets import load_sample_image
    except ModuleNotFoundError as error:
        raise InputError(
            f"target {name}: scikit-learn ships it and is not installed;"
            " pip install -c constraints.txt -e '.[vision]', or take grace_hopper or elevation."
        ) from error
    return _grey(np.asarray(load_sample_image(f"{name}.jpg")))


IMAGES: Mapping[str, Callable[[], Float[np.ndarray, "R C"]]] = {
    "grace_hopper": partial(_photograph, "grace_hopper.jpg"),
    "elevation": _elevation,
    "china": partial(_scikit_learn, "china"),
    "flower": partial(_scikit_learn, "flower"),
}
"""Name -> pixels in [0, 1]: a photograph and a map of heights of Matplotlib's, two of
scikit-learn's photographs."""


def disc(centre: tuple[float, float], radius: float) -> Distance:
    """Signed distance to a disc, negative inside."""
    return lambda x: jnp.sqrt(jnp.sum((x - jnp.array([centre])) ** 2, axis=1)) - radius


def polygon(vertices: Vertices) -> Distance:
    """Signed distance to a polygon that does not cross itself, negative inside."""

    def distance(x: Float[Array, "P 2"]) -> Float[Array, " P"]:
        begin = jnp.array(vertices)[None]
        edge = jnp.roll(begin, -1, axis=1) - begin
        away = x[:, None] - begin
        along = jnp.sum(away * edge, axis=2) / jnp.sum(edge**2, axis=2)
        nearest = away - jnp.clip(along, 0, 1)[..., None] * edge
        least = jnp.sqrt(jnp.min(jnp.sum(nearest**2, axis=2), axis=1))
        # A ray from a point inside meets an odd number of edges.
        spans = (away[..., 1] >= 0) != (away[..., 1] - edge[..., 1] >= 0)
        side = away[..., 0] * edge[..., 1] - away[..., 1] * edge[..., 0]
        meets = spans & ((side < 0) == (edge[..., 1] > 0))
        return jnp.where(jnp.sum(meets, axis=1) % 2 == 1, -least, least)

    return distance


def apart(*shapes: Distance) -> Distance:
    """Signed distance to shapes that do not touch: the least of theirs."""
    return lambda x: jnp.min(jnp.stack([shape(x) for shape in shapes]), axis=0)


def star(centre: tuple[float, float], outer: float, inner: float, points: int) -> Vertices:
    """Vertices of a star, one point upwards."""
    radii = (outer, inner)
    angles = [math.pi * k / points for k in range(2 * points)]
    return [
        (
            centre[0] - radii[k % 2] * math.cos(angle),
            centre[1] + radii[k % 2] * math.sin(angle),
        )
        for k, angle in enumerate(angles)
    ]


DISTANCES: Mapping[str, Distance] = {
    "shapes": apart(
        polygon(star((-0.31, -0.33), 0.55, 0.22, 5)),
        disc((0.47, 0.53), 0.26),
        polygon([(0.26, -0.46), (0.62, -0.77), (0.87, -0.31), (0.49, -0.04)]),
        polygon([(-0.83, 0.41), (-0.23, 0.33), (-0.47, 0.84)]),
    ),
    "pieces": apart(
        polygon([(-0.8, -0.7), (-0.1, -0.6), (-0.2, -0.2), (-0.45, -0.25), (-0.6, 0.3)]),
        disc((-0.38, 0.58), 0.2),
        polygon([(0.15, 0.12), (0.85, 0.31), (0.33, 0.79)]),
        polygon(star((0.5, -0.42), 0.4, 0.25, 4)),
    ),
}
"""Name -> signed distance to shapes with sharp corners, its gradient of length 1 where it has one;
it has none on the lines that are equally far from two places."""


def exact(
    distance: Distance, points: Float[np.ndarray, "P 2"]
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, "P 2"]]:
    """Values and gradients in float64."""
    with jax.enable_x64(True):
        values, pull = jax.vjp(distance, jnp.asarray(points, jnp.float64))
        return np.asarray(values), np.asarray(pull(jnp.ones_like(values))[0])
