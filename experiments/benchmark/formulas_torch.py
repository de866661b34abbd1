"""The peers' side in PyTorch: the official formulas as their authors' code computes them.

Written from the description of BryceZhuo/PolyCom: weights run from the highest power down, RMS
normalisation with rsqrt(mean + eps), arithmetic in the dtype of x, no fusion.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

EPS = 1e-6


def poly_norm(x: Any, weight: Any, bias: Any) -> Any:
    """sum_i w_i x^i rsqrt(mean(x^2i) + eps) + b."""
    order = len(weight)
    return (
        sum(w * _normalised(x**p) for w, p in zip(weight, range(order, 0, -1), strict=True)) + bias
    )


def _normalised(u: Any) -> Any:
    return u * (u.pow(2).mean(-1, keepdim=True) + EPS).rsqrt()


def poly_relu(x: Any, weight: Any, bias: Any) -> Any:
    """sum_i w_i relu(x)^i + b."""
    z, order = x.relu(), len(weight)
    return sum(w * z**p for w, p in zip(weight, range(order, 0, -1), strict=True)) + bias


def poly_norm_glu(gate: Any, up: Any, weight: Any, bias: Any) -> Any:
    """poly_norm(gate) * up."""
    return poly_norm(gate, weight, bias) * up


def relu2(x: Any) -> Any:
    """relu(x)^2."""
    return x.relu().square()


def gelu(x: Any) -> Any:
    """x Phi(x)."""
    from torch.nn.functional import gelu as function  # pyright: ignore[reportMissingImports]

    return function(x)


def silu(x: Any) -> Any:
    """x sigmoid(x)."""
    from torch.nn.functional import silu as function  # pyright: ignore[reportMissingImports]

    return function(x)


def swiglu(gate: Any, up: Any) -> Any:
    """silu(gate) * up."""
    return silu(gate) * up


FORMULAS: dict[str, Callable[..., Any]] = {
    "poly_norm": poly_norm,
    "poly_relu": poly_relu,
    "poly_norm_glu": poly_norm_glu,
    "relu2": relu2,
    "gelu": gelu,
    "silu": silu,
    "swiglu": swiglu,
}
"""The activations of our table that there is a PyTorch formula for."""


def parameters(coeffs: Any) -> tuple[Any, ...]:
    """Our ascending [order + 1] coefficients as (weight, bias): reversed, the bias by itself."""
    return coeffs[1:].flip(0), coeffs[:1]


def coefficients(weight: Any, bias: Any) -> Any:
    """The way back; for gradients too."""
    import torch  # pyright: ignore[reportMissingImports]

    return torch.cat([bias, weight.flip(0)])


def checkpointed(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` with what is inside recomputed in the backward pass, as both official stacks do."""
    from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportMissingImports]

    return lambda *arguments: checkpoint(f, *arguments, use_reentrant=False)


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` under torch.compile for fixed shapes; it fails rather than run `f` as it is."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch._dynamo import config  # pyright: ignore[reportMissingImports]

    config.fail_on_recompile_limit_hit = True
    # It is said on every machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return torch.compile(f, dynamic=False)


def begin_case() -> None:
    """Before a case: torch.compile starts anew, or a function that was compiled for eight other
    cases would not be for a ninth; and float32 products may be rounded as JAX rounds its own on a
    GPU."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.compiler.reset()
    torch.set_float32_matmul_precision("high")


def liger_poly_norm(x: Any, weight: Any, bias: Any) -> Any:
    """Liger-Kernel's Triton kernels, as users get them: the backward pass writes over dy."""
    from liger_kernel.transformers.functional import (  # pyright: ignore[reportMissingImports]
        liger_poly_norm as function,
    )

    # Its bias is a scalar, and the gradient it returns for it too.
    return function(x, weight, bias[0], EPS)


def cross_entropy(x: Any, table: Any, targets: Any) -> Any:
    """Mean of -log softmax(x table^T)[target]; products in the dtype of x, the rest in float32."""
    from torch.nn.functional import (  # pyright: ignore[reportMissingImports]
        cross_entropy as function,
    )
    from torch.nn.functional import linear  # pyright: ignore[reportMissingImports]

    logits = linear(x.flatten(0, 1), table.to(x.dtype))
    return function(logits.float(), targets)


def liger_cross_entropy(x: Any, table: Any, targets: Any) -> Any:
    """The same by Liger-Kernel, which never has all logits in memory."""
    from liger_kernel.transformers.functional import (  # pyright: ignore[reportMissingImports]
        liger_fused_linear_cross_entropy as function,
    )

    return function(x.flatten(0, 1), table.to(x.dtype), targets)


LIGER: dict[str, Callable[..., Any]] = {"poly_norm": liger_poly_norm}
"""The activations that Liger-Kernel has a kernel for."""

VARIANTS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "torch-eager": lambda f: f,
    "torch-checkpoint": checkpointed,
    "torch-compile": compiled,
}
"""Peer -> how it runs a formula."""


def order_gradients(gradients: Sequence[Any]) -> Sequence[Any]:
    """(inputs ..., weight, bias) -> (inputs ..., coefficients)."""
    *inputs, weight, bias = gradients
    return (*inputs, coefficients(weight, bias))
