"""What an activation costs where it stands: in a feed-forward block, forward and backward."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import jax
import numpy as np

from polycom_jax import params as pm
from polycom_jax.models import ModelConfig
from polycom_jax.models.layers import ffn, ffn_specs
from polycom_jax.table import Activation, get_activation

YARDSTICK = "gelu"


class Options(Protocol):
    """What the measurement asks of the program's config."""

    @property
    def rounds(self) -> int: ...  # noqa: D102
    @property
    def embed_dim(self) -> int: ...  # noqa: D102
    @property
    def gated_width(self) -> int: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Cost:
    """Time of a block.

    Attributes:
        width: hidden, at equal numbers of weights.
        seconds: median.
        ratio: median of the ratios to the yardstick's time in the same round.
        low: their lower quartile.
        high: their upper one.
    """

    width: int
    seconds: float
    ratio: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """For results.json."""
        return asdict(self)


def costs(
    options: Options, chosen: Mapping[str, Activation], tell: Callable[[str], None]
) -> dict[str, Cost]:
    """The cost of each, by name; rounds alternate, so that a slow moment meets all alike."""
    measured = {**chosen, YARDSTICK: get_activation(YARDSTICK)}
    models = {name: _model(options, act) for name, act in measured.items()}
    for cfg in models.values():
        ffn_specs(cfg)  # a width that a row cannot have is refused before the others are compiled
    runs: dict[str, Callable[[], Any]] = {}
    for name, cfg in models.items():
        tell(f"compiling {name}")
        runs[name] = _compiled(options, cfg)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(options.rounds):
        tell(f"round {index + 1} of {options.rounds}")
        for name, run in runs.items():
            times[name].append(_timed(run))
    yardstick = np.array(times[YARDSTICK])
    return {
        name: _cost(models[name].hidden_width, np.array(times[name]), yardstick) for name in chosen
    }


def _cost(width: int, seconds: np.ndarray, yardstick: np.ndarray) -> Cost:
    low, ratio, high = np.quantile(seconds / yardstick, [0.25, 0.5, 0.75])
    return Cost(width, float(np.median(seconds)), float(ratio), float(low), float(high))


def _model(options: Options, act: Activation) -> ModelConfig:
    return ModelConfig(
        vocab_size=2,
        num_layers=1,
        embed_dim=options.embed_dim,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        gated_width=options.gated_width,
        context_length=options.tokens,
        activation=act,
    )


def _compiled(options: Options, cfg: ModelConfig) -> Callable[[], Any]:
    specs = ffn_specs(cfg)
    params = pm.init(specs, jax.random.key(0))
    x, dy = jax.random.normal(jax.random.key(1), (2, 1, options.tokens, options.embed_dim))

    @jax.jit
    def both(params: Any, x: jax.Array, dy: jax.Array) -> Any:
        y, vjp = jax.vjp(lambda params, x: ffn(cfg, params, x, None), params, x)
        return y, vjp(dy)

    program = both.lower(params, x, dy).compile()
    jax.block_until_ready(program(params, x, dy))  # the first run allocates
    return lambda: program(params, x, dy)


def _timed(run: Callable[[], Any]) -> float:
    clock = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - clock
