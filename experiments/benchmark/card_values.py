"""Values and gradients of every kernel on this device, beside the same in float64 on the CPU."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.calls import as_numpy
from experiments.benchmark.harness import relative_error, tolerance
from experiments.benchmark.options import Options
from experiments.benchmark.results import Result, Row, Spread, Tell
from polycom_jax import get_activation
from polycom_jax import params as pm
from polycom_jax._errors import InputError
from polycom_jax.kernels.attention import attention
from polycom_jax.kernels.feed_forward import feed_forward
from polycom_jax.kernels.grouped_matmul import grouped_matmul, triton
from polycom_jax.kernels.implementations import (
    ATTENTION_IMPLEMENTATIONS,
    GROUPED_IMPLEMENTATIONS,
    IMPLEMENTATIONS,
    FeedForwardImplementation,
    compiling_for,
)
from polycom_jax.table import ACTIVATIONS, Activation

MOST = {"bfloat16": 4e-2, "float16": 5e-3}
"""Of the differences; float32's is that between two contestants of a benchmark."""

DTYPES = ("bfloat16", "float32")
TPU_ALONE = ("splash", "megablox", "pallas_tpu")
SHAPE, QUICK_SHAPE = (256, 4096), (64, 192)
"""Of activations' arguments."""


@dataclass(frozen=True)
class Check:
    """A kernel and what it should compute.

    Attributes:
        name: for the table.
        f: f(*arguments) -> array, as it runs here.
        reference: the same by plain operations.
        arguments: trees, differentiated by; what is float64 is cast to the dtype in question.
        dtypes: what it is checked in.
        used: rows of the value, and of the first argument's gradient, that mean anything.
    """

    name: str
    f: Callable[..., Any]
    reference: Callable[..., Any]
    arguments: tuple[Any, ...]
    dtypes: tuple[str, ...] = DTYPES
    used: int | None = None


def activations(options: Options, tell: Tell) -> Result:
    """Every row of the table, and each version of those that have several."""
    return _compared("activations", _activation_checks(options), options, tell)


def products(options: Options, tell: Tell) -> Result:
    """Attention, grouped products and the feed-forward block, each version that runs here."""
    checks = [*_attention_checks(options), *_grouped_checks(options), *_block_checks(options)]
    return _compared("attention, grouped products, blocks", iter(checks), options, tell)


def _compared(case: str, checks: Iterator[Check], options: Options, tell: Tell) -> Result:
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    failures: list[str] = []
    for check in checks:
        for dtype in (options.dtype,) if options.dtype else check.dtypes:
            name = f"{check.name} {dtype}"
            tell(name)
            try:
                found = _errors(check, dtype)
            except InputError as error:
                left_out[name] = str(error)
                continue
            except Exception as error:
                failures.append(f"{name}: {type(error).__name__}: {_line(error)}")
                continue
            most = MOST.get(dtype) or tolerance(dtype, jax.default_backend())
            numbers = {"value off by": found[0], "gradients off by": max(found[1:])}
            rows.append(Row(name, Spread.exact(0.0), numbers={**numbers, "at most": most}))
            if not max(found) <= most:  # a NaN is not within it either
                failures.append(f"{name}: off by {max(found):.2g}, {most:.2g} at most")
    notes = ("largest difference from float64, of an array's largest magnitude; nothing is timed",)
    return Result("card", f"values of {case}", tuple(rows), left_out, notes, failures=(*failures,))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _errors(check: Check, dtype: str) -> list[float]:
    """Of the value, and of the gradient by each array of the arguments."""
    arguments = jax.tree.map(lambda a: jnp.asarray(a, _dtype(a, dtype)), check.arguments)
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), arguments)
    got = as_numpy(jax.jit(partial(_both, check.f))(*arguments))
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]), compiling_for("cpu"):
        wanted = as_numpy(jax.jit(partial(_both, check.reference))(*exact))
    if check.used is not None:
        got, wanted = ([v[: check.used], dx[: check.used], *r] for v, dx, *r in (got, wanted))
    return [relative_error(a, b) for a, b in zip(wanted, got, strict=True)]


def _dtype(array: Any, dtype: str) -> Any:
    """Learned parameters are float32 whatever the rest is."""
    return dtype if array.dtype == np.float64 else array.dtype


def _both(f: Callable[..., Any], *arguments: Any) -> Any:
    y, pull = jax.vjp(f, *arguments)
    # Not all alike, as a sum's cotangent would be.
    dy = jnp.cos(jnp.arange(y.size, dtype=jnp.float32) % 1009).reshape(y.shape).astype(y.dtype)
    return y, *pull(dy)


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _activation_checks(options: Options) -> Iterator[Check]:
    shape = QUICK_SHAPE if options.quick else SHAPE
    for name in options.activations or ACTIVATIONS:
        plain = get_activation(name)
        versions = (None, *_here(IMPLEMENTATIONS)) if "implementation" in plain.reads else (None,)
        params = pm.init(plain.specs_at(shape[-1]), jax.random.key(0))
        hidden = tuple(_normal(seed, *shape) for seed in range(2 if plain.gated else 1))
        reference = get_activation(name, implementation="reference") if versions[1:] else plain
        # Those of one version are XLA's plain operations: one dtype says enough.
        dtypes = DTYPES if versions[1:] else DTYPES[:1]
        for version in versions:
            act = get_activation(name, implementation=version) if version else plain
            label = f"{name} [{version}]" if version else name
            yield Check(label, act.apply, reference.apply, (params, *hidden), dtypes)


def _attention_checks(options: Options) -> Iterator[Check]:
    shape = (1, 128, 2, 16) if options.quick else (2, 1024, 8, 64)
    arguments = tuple(_normal(seed, *shape) for seed in range(3))
    reference = partial(attention, implementation="xla")
    for name in _here(ATTENTION_IMPLEMENTATIONS):
        f = partial(attention, implementation=name)
        yield Check(f"attention [{name}]", f, reference, arguments)


def _grouped_checks(options: Options) -> Iterator[Check]:
    rows, k, m = (96, 24, 40) if options.quick else (4096, 1000, 1536)
    sizes = np.array([rows // 2 - 7, 0, rows // 4 + 3, 1, rows // 8], np.int32)
    arguments = (_normal(0, rows, k), _normal(1, len(sizes), k, m))
    reference = partial(_grouped, sizes, "xla")
    for name in _here(GROUPED_IMPLEMENTATIONS):
        f = partial(_grouped, sizes, name)
        yield Check(f"grouped_matmul [{name}]", f, reference, arguments, used=int(sizes.sum()))


def _block_checks(options: Options) -> Iterator[Check]:
    shape, width = ((1, 8, 32), 96) if options.quick else ((4, 128, 512), 1536)
    act, plain = (get_activation("poly_norm", implementation=i) for i in (None, "reference"))
    own = pm.init(act.specs, jax.random.key(0))
    up = _normal(1, shape[-1], width) / shape[-1] ** 0.5
    down = _normal(2, width, shape[-1]) / width**0.5
    reference = partial(_block, plain, "reference")
    for name in get_args(FeedForwardImplementation):
        f = partial(_block, act, name)
        yield Check(f"feed_forward [{name}]", f, reference, (_normal(0, *shape), up, down, own))


def _block(act: Activation, implementation: Any, x: Any, up: Any, down: Any, own: Any) -> Any:
    params = {"w_up": up, "w_down": down, "activation": own}
    return feed_forward(act, params, x, implementation=implementation)


def _here(versions: Sequence[str]) -> list[Any]:
    """Those that are not for TPUs alone."""
    return [name for name in versions if name not in TPU_ALONE]


def _grouped(sizes: np.ndarray, implementation: Any, x: Any, w: Any) -> Any:
    if implementation == "triton" and jax.default_backend() == "cpu":
        y = triton.grouped_matmul(x, w, jnp.asarray(sizes), interpret=True)
    else:
        y = grouped_matmul(x, w, jnp.asarray(sizes), implementation=implementation)
    # What stands behind the last group is anything.
    return jnp.where(jnp.arange(len(x))[:, None] < int(sizes.sum()), y, 0)
