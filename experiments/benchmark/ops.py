"""Suite ops: an activation alone, its value and its gradients, at the shapes that tests cover."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark import formulas_torch as formulas
from experiments.benchmark import peers
from experiments.benchmark.arg_specs import ARG_SPECS, ArgSpec, make_arguments, select
from experiments.benchmark.calls import JaxFunction, TorchFunction, to_torch
from experiments.benchmark.contest import able, hold
from experiments.benchmark.harness import Contestant
from experiments.benchmark.options import Options
from experiments.benchmark.results import Case, Result, Spread, Tell
from polycom_jax import get_activation
from polycom_jax._errors import require
from polycom_jax.kernels.implementations import IMPLEMENTATIONS

ACTIVATIONS = ("poly_norm", "poly_relu")
YARDSTICKS = ("relu2", "gelu", "silu")
GATED_YARDSTICKS = ("swiglu",)
PEERS = (
    *("implementations", "yardsticks", "copy"),
    *("torch-eager", "torch-checkpoint", "torch-compile", "liger"),
)
COPY = "copy of x"


def cases(options: Options) -> list[Case]:
    """One for each shape, activation and pass."""
    check_activations(options)
    return [
        Case(
            "ops",
            f"{activation} {spec.name} {which}",
            partial(_run, options, spec, activation, which),
        )
        for spec in shapes(options)
        for activation in options.activations or ACTIVATIONS
        for which in options.passes
    ]


def check_activations(options: Options) -> None:
    """Raises `InputError` for one that has not a PolyCom one's coefficients, and these alone."""
    for name in options.activations:
        require(
            [*get_activation(name).parameters] == ["coeffs"],
            f"activations {name!r}: the suite ops measures PolyCom activations, and others as their"
            f" yardsticks; take {', '.join(ACTIVATIONS)}, or the suite ffn.",
        )


def shapes(options: Options) -> list[ArgSpec]:
    """Those asked for, or this backend's: float32 ones are a CPU's, the others an accelerator's."""
    if options.shapes:
        specs = [spec for spec in ARG_SPECS if spec.name in options.shapes]
    else:
        cpu = jax.default_backend() == "cpu"
        specs = [spec for spec in select("primary") if (spec.dtype == jnp.float32) == cpu]
    if options.dtype is not None:
        specs = [replace(spec, dtype=jnp.dtype(options.dtype)) for spec in specs]
    return specs


def _run(options: Options, spec: ArgSpec, activation: str, which: str, tell: Tell) -> Result:
    dtype = jnp.dtype(spec.dtype).name
    case = f"{activation} {which}, {' x '.join(map(str, spec.shape))} {dtype}"
    tell("making arguments")
    chosen, left_out = peers.split(options.peers, PEERS)
    found = list(contestants(spec, activation, which, chosen, left_out))
    return hold(
        "ops",
        case,
        found,
        options,
        tell,
        dtype=dtype,
        references=(ours(activation), ours("swiglu" if _gated(activation) else "relu2")),
        left_out=left_out,
        numbers=partial(_bandwidth, spec.bytes, activation, which),
        notes=(
            f"GB/s, and the share of the copy's: of {_arrays(activation, which)} arrays as large as"
            " x, which the program takes and gives, each read or written once.",
        ),
    )


def _bandwidth(
    size: int, activation: str, which: str, readings: Mapping[str, Sequence[float]]
) -> Callable[[str, float], Mapping[str, float]]:
    """GB/s over what a program takes and gives, each read or written once, and that as a share of
    the copy's. A program that reads its inputs twice moves more."""
    arrays = _arrays(activation, which)

    def numbers(name: str, seconds: float) -> dict[str, float]:
        moved = 2 if name == COPY else arrays
        found = {"GB/s": moved * size / seconds / 1e9}
        if COPY in readings:
            copy = Spread.of(readings[COPY]).median
            found["of copy"] = moved / 2 * copy / seconds
        return found

    return numbers


def _arrays(activation: str, which: str) -> int:
    hidden = 2 if _gated(activation) else 1
    # Forward: the inputs and the result; backward: the inputs, dy, and the inputs' gradients; both:
    # one program, to which the inputs come once.
    return {"forward": hidden + 1, "backward": 2 * hidden + 1, "both": 2 * hidden + 2}[which]


def _gated(activation: str) -> bool:
    return get_activation(activation).gated


def ours(activation: str, implementation: str | None = None) -> str:
    """The name of a contestant of ours."""
    return activation if implementation is None else f"{activation} [{implementation}]"


def contestants(
    spec: ArgSpec, activation: str, which: str, chosen: Sequence[str], left_out: dict[str, str]
) -> Iterator[Contestant]:
    """Ours, and the `chosen` peers; why another one is none goes to `left_out`."""
    arguments = _inputs(spec, activation)
    base = _jax(activation, None, *arguments)
    yield base.contestant(which)
    if "implementations" in chosen:
        yield from _implementations(activation, which, arguments, left_out)
    if "yardsticks" in chosen:
        inputs, coeffs, dy = arguments
        for name in GATED_YARDSTICKS if _gated(activation) else YARDSTICKS:
            yield _jax(name, None, inputs, coeffs, dy).contestant(which)
    if "copy" in chosen:
        yield Contestant(COPY, jax.jit(jnp.copy), jax.block_until_ready, lambda: (arguments[0][0],))
    yield from _torch(activation, which, arguments, chosen, left_out)


def overwriting(spec: ArgSpec, activation: str) -> Contestant:
    """Ours, both passes, whose results are written over its arguments: they are donated."""
    return _jax(activation, None, *_inputs(spec, activation)).overwriting()


def _inputs(spec: ArgSpec, activation: str) -> tuple[tuple[Any, ...], Any, Any]:
    """(inputs, coefficients, dy); a gated activation has a second input."""
    x, coeffs, dy = make_arguments(spec, jax.random.key(0))
    if not _gated(activation):
        return (x,), coeffs, dy
    return (x, make_arguments(spec, jax.random.key(1))[0]), coeffs, dy


def _jax(
    activation: str, implementation: str | None, inputs: Any, coeffs: Any, dy: Any
) -> JaxFunction:
    learned = (coeffs,) if get_activation(activation).parameters else ()
    chosen = {"implementation": implementation, "order": coeffs.size - 1} if learned else {}
    act = get_activation(activation, **chosen)

    def f(*arguments: Any) -> Any:
        hidden, rest = arguments[: len(inputs)], arguments[len(inputs) :]
        return act.apply(dict(zip(act.specs, rest, strict=True)), *hidden)

    return JaxFunction(ours(activation, implementation), f, (*inputs, *learned), dy, activation)


def _implementations(
    activation: str, which: str, arguments: tuple[Any, Any, Any], left_out: dict[str, str]
) -> Iterator[Contestant]:
    """Every version by name. The one that None stands for comes twice: how far those two are apart
    is what the machine's noise makes of equal work."""
    makers = {
        ours(activation, name): lambda name=name: _jax(activation, name, *arguments).contestant(
            which
        )
        for name in IMPLEMENTATIONS
    }
    yield from able(makers, left_out)


def _torch(
    activation: str,
    which: str,
    arguments: tuple[Any, Any, Any],
    chosen: Sequence[str],
    left_out: dict[str, str],
) -> Iterator[Contestant]:
    wanted = [peer for peer in chosen if peer in formulas.VARIANTS or peer == "liger"]
    if not wanted:
        return
    formulas.begin_case()
    inputs, coeffs, dy = arguments
    device = peers.torch_device()
    # In training under bfloat16 the official code has its weights in bfloat16 too.
    coeffs = to_torch(coeffs.astype(dy.dtype), device)
    learned = [p.clone().requires_grad_(True) for p in formulas.parameters(coeffs)]
    leaves = (*(to_torch(x, device, gradient=True) for x in inputs), *learned)
    cotangent = to_torch(dy, device)
    for peer in wanted:
        if peer == "liger":
            f = formulas.LIGER.get(activation)
        else:
            f = formulas.FORMULAS.get(activation)
            f = None if f is None else formulas.VARIANTS[peer](f)
        if f is None or (peer == "liger" and coeffs.numel() != 4):
            left_out[peer] = f"it has no {activation} of this order"
            continue
        yield TorchFunction(
            f"{peer} {activation}",
            f,
            leaves,
            cotangent,
            activation,
            gradients=formulas.order_gradients,
            overwrites=peer == "liger",
        ).contestant(which)
