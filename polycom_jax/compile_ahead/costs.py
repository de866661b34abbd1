"""How long one run of an instruction takes, and how that is known."""

import math
import re
from collections.abc import Sequence
from typing import Literal

from polycom_jax.compile_ahead.chips import Chip, Gpu, Tpu
from polycom_jax.compile_ahead.collectives import leaving_bytes
from polycom_jax.compile_ahead.gpu_products import ATTENTION, product_flops
from polycom_jax.compile_ahead.hbm_bytes import hbm_traffic
from polycom_jax.compile_ahead.hlo import Module, size
from polycom_jax.compile_ahead.runs import Run, beside

Kind = Literal["compiled", "kernel", "collective", "asynchronous collective"]

ATTENTION_SHARE = 0.5
"""Of the peak, that attention kernels are taken to reach: they also have a softmax to do."""


def cost(module: Module, run: Run, chip: Chip) -> tuple[Kind, float] | None:
    """How the time of one run of an instruction is known, and the time; None where it is not."""
    instruction = run.instruction
    leaving = leaving_bytes(module, run.where, instruction)
    if leaving is not None:
        seconds = leaving / chip.link_bandwidth
        hidden = instruction.opcode.endswith("-start")
        if isinstance(chip, Gpu) and hidden:
            others = (cost(module, other, chip) for other in beside(run))
            hidden = sum(other[1] for other in others if other is not None) >= seconds
        kind: Kind = "asynchronous collective" if hidden else "collective"
        return kind, seconds
    if isinstance(chip, Gpu):
        return "kernel", _gpu_seconds(module, run, chip)
    if instruction.cycles is not None:
        return "compiled", instruction.cycles / chip.clock
    if instruction.attribute(r'custom_call_target="(tpu_custom_call)"'):
        sources = [run.where.instructions[name].type for name in instruction.operands]
        moved = sum(map(size, (*sources, instruction.type)))
        flops = float(instruction.attribute(r'"flops":"?([\d.e+]+)') or 0)
        unit = chip.matrix_unit if isinstance(chip, Tpu) else 1
        flops = max(flops, _splash_flops(instruction.scope, sources, unit) / ATTENTION_SHARE)
        return "kernel", max(moved / chip.hbm_bandwidth, flops / chip.peak_flops)
    return None


def _gpu_seconds(module: Module, run: Run, chip: Gpu) -> float:
    """Bytes over bandwidth or FLOPs over peak, whichever is more."""
    moved = hbm_traffic(module, run.where, run.instruction) / chip.hbm_bandwidth
    flops = product_flops(module, run.where, run.instruction)
    computed = sum(
        n / (ATTENTION_SHARE * chip.peak_flops if dtype == ATTENTION else chip.peak(dtype))
        for dtype, n in flops.items()
    )
    return max(moved, computed)


# Products of T x T x C that JAX's splash kernels make for each head, of which the mask leaves half
# or, with a window, as many columns as `kernels.attention.splash` puts into their scope.
_SPLASH_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}


def _splash_flops(scope: str, operands: Sequence[str], unit: int) -> float:
    """FLOPs of a causal attention kernel, from its name and its largest operand [B, H, T, C].

    Heads count as the matrix units that they keep busy: one of 128 in a unit of 256 leaves half of
    it idle, as rows of q k^T and as columns of p v.
    """
    products = next((n for name, n in _SPLASH_PRODUCTS.items() if name in scope), 0)
    shapes = [tuple(map(int, dims.split(","))) for t in operands for dims in _FOUR.findall(t)]
    if not products or not shapes:
        return 0.0
    batch, heads, length, width = max(shapes, key=math.prod)
    filled_up = -(-width // unit) * unit
    window = _WINDOW.search(scope)
    seen = min(length, int(window[1])) if window else length
    pairs = seen * length - seen**2 / 2
    return products * 2 * batch * heads * pairs * filled_up


_WINDOW = re.compile(r"\bwindow_(\d+)\b")
_FOUR = re.compile(r"\w+\[(\d+,\d+,\d+,\d+)\]")
