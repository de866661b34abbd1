"""What the study of coordinates takes."""

import math
from dataclasses import dataclass

from experiments.sobolev.coordinates.arms import NAMES
from experiments.sobolev.coordinates.networks import Zoomed, network_of_size
from experiments.sobolev.coordinates.targets import kind_of
from experiments.sobolev.coordinates.train import Loss
from experiments.sobolev.options import Options, distinct
from experiments.terminal.checks import at_least
from polycom_jax._errors import require, unknown
from polycom_jax._fields import check_fields, check_range

DIM = 2


@dataclass(frozen=True)
class CoordinatesOptions(Options):
    """Networks that map coordinates to an image or a signed distance, at equal size.

    Every second pixel in both directions is trained on; errors are measured on the others, too. A
    photograph is scaled to [-1, 1], distances are those of the square [-1, 1]^2.

    Attributes:
        targets: images (grace_hopper, elevation; with scikit-learn also china, flower) and signed
            distances (shapes, pieces).
        chosen_on: targets that learning rates are chosen on: one image and one distance, none of
            `targets`.
        arms: networks; --list prints them.
        reference: the arm that others are compared with.
        parameters: trained ones of each network, at most.
        layers: hidden layers.
        side: pixels of a side, even.
        extent: coordinates fill [-extent, extent]^2. Published frequencies are for 1 and images of
            about 512 pixels; 0.125 gives 64 pixels the same pitch.
        steps: updates by Adam, each on all points trained on; warm-up, then cosine decay to 0.
        loss: l2, the squared error of values; h1, also that of gradients, each in units of the
            target's.
        learning_rates: peak rates that each search begins with: ascending, at least three. The best
            is chosen by the error on pixels held out.
        search_seeds: runs at each of these rates, at least; all that were tried have as many. Their
            seeds are not used for the results.
        seeds: runs of each arm on each target, at least 2.
    """

    targets: tuple[str, ...] = ("grace_hopper", "shapes")
    chosen_on: tuple[str, ...] = ("elevation", "pieces")
    arms: tuple[str, ...] = NAMES
    reference: str = "siren"
    parameters: int = 600
    layers: int = 3
    side: int = 64
    extent: float = 1.0
    steps: int = 500
    loss: Loss = "l2"
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    search_seeds: int = 1
    seeds: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        distinct(self, "targets", "chosen_on", "arms")
        at_least(self, 1, "parameters", "layers", "steps", "search_seeds")
        at_least(self, 2, "seeds")  # an interval needs two
        check_range(self, "positive and finite", "extent")
        require(
            self.side >= 8 and self.side % 2 == 0,
            f"side={self.side} must be even and at least 8: every second pixel is trained on.",
        )
        for arm in self.arms:
            if arm not in NAMES:
                raise unknown("arm", arm, NAMES)
            self.network(arm)
        if self.reference not in self.arms:
            raise unknown("reference among --arms", self.reference, self.arms)
        rates = self.learning_rates
        require(
            len(rates) >= 3
            and list(rates) == sorted(set(rates))
            and rates[0] > 0
            and math.isfinite(rates[-1]),
            f"learning_rates={rates} must be three or more positive numbers, ascending.",
        )
        for name in self.targets:
            self.selection(name)

    def selection(self, target: str) -> str:
        """The target that rates for this one are chosen on.

        Raises:
            InputError: there is none, or it is a target itself.
        """
        kind = kind_of(target)
        found = [name for name in self.chosen_on if kind_of(name) == kind]
        require(
            len(found) == 1 and found[0] not in self.targets,
            f"chosen_on={self.chosen_on} must name one {kind} that is not among"
            f" targets={self.targets}: rates for {target} are chosen on it.",
        )
        return found[0]

    def network(self, arm: str) -> Zoomed:
        """The arm's network."""
        found = network_of_size(arm, self.parameters, dim=DIM, layers=self.layers)
        return Zoomed(found, self.extent)


QUICK_COORDINATES = CoordinatesOptions(
    arms=("siren", "relu_fourier", "poly_norm"), parameters=200, side=16, steps=60, seeds=2
)
