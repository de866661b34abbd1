"""What training of images is judged by, and its rates, on a network whose losses are known."""

import math
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.vision.images import ImageSet, Part
from experiments.vision.train import RecipeConfig, Trainer
from polycom_jax.params import Params, ParamSpec, Specs

RECIPE = RecipeConfig(epochs=10, batch_size=16)


@dataclass(frozen=True)
class Level:
    """Logits 0 and b + sharp x the mean of the image, as it is handed over; b alone is trained."""

    sharp: float
    specs: Specs = field(
        default_factory=lambda: {"b": ParamSpec((), (), jax.nn.initializers.zeros, "norm")}
    )

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        level = self.sharp * x.mean(axis=(1, 2, 3)) + params["b"]
        return jnp.stack([jnp.zeros_like(level), level], axis=1)


def shaded(count: int, seed: int) -> Part:
    """Of class 1 where they are bright, as a rule."""
    rng = np.random.default_rng(seed)
    shade = rng.integers(10, 200, (count, 1, 1, 1))
    images = (shade + rng.integers(0, 9, (count, 4, 4, 1))).astype(np.uint8)
    return Part(images, (shade.ravel() > rng.integers(60, 140, count)).astype(np.int32))


def test_rates_are_chosen_and_results_judged_on_parts_of_their_own():
    """No image that fills up a last batch counts; images are in units of the training part's."""
    parts = shaded(70, 0), shaded(21, 1), shaded(19, 2)
    trainer = Trainer(Level(2.0), ImageSet("x", 2, *parts), replace(RECIPE, epochs=2))
    found = trainer.run(0, 0.0, lambda share: None)
    pixels = parts[0].images.astype(np.float64)

    def expected(part: Part) -> tuple[float, float]:
        level = 2 * ((part.images - pixels.mean()) / pixels.std()).mean(axis=(1, 2, 3))
        signed = np.where(part.labels == 1, level, -level)
        return float(np.log1p(np.exp(-signed)).mean()), float((signed > 0).mean())

    assert (found.test_loss, found.test_accuracy) == pytest.approx(expected(parts[2]), rel=1e-5)
    held = found.validation_loss[-1], found.validation_accuracy[-1]
    assert held == pytest.approx(expected(parts[1]), rel=1e-5)
    assert found.score == held[0] != found.test_loss
    # Six of 70 images wait in each epoch, and not the same ones.
    assert found.train_loss[0] != found.train_loss[1]


def test_the_rate_falls_by_one_cosine_over_all_epochs():
    parts = [Part(each.images, 0 * each.labels) for each in (shaded(64, 0), shaded(16, 1))]
    images = ImageSet("x", 2, parts[0], parts[1], parts[1])
    found = Trainer(Level(0.0), images, RECIPE).run(0, 1e-3, lambda share: None)
    # Adam steps by the rate where a gradient hardly changes; the loss tells how far b has come.
    moved = -math.log(math.expm1(found.test_loss)) / 1e-3
    steps, warm_up = 40, 2
    fall = np.arange(1, steps - warm_up + 1) / (steps - warm_up)
    shares = [0.5, 1.0, *0.5 * (1 + np.cos(np.pi * fall))]
    assert moved == pytest.approx(sum(shares), rel=0.01)
