"""FLOPs of what a GPU's matrix units do: XLA's own products, cuBLAS's, cuDNN's attention, and our
grouped products."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping

from polycom_jax.compile_ahead.hlo import Computation, Instruction, Module
from polycom_jax.kernels.grouped_matmul.row_blocks import block_count

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CONTRACTED = (
    r"lhs_contracting_dims=\{([\d,]*)\}",
    r'"lhs_contracting_dimensions":\[([\d",]*)\]',
)
# cuDNN's attention, with the number of products of T x S x C that it makes for each head.
_ATTENTION = re.compile(r'custom_call_target="__cudnn\$fmha\w*?(Backward)?"')
_FORWARD_PRODUCTS, _BACKWARD_PRODUCTS = 2, 5
_WINDOW = r'"sliding_window_length":\s*"?(\d+)'
_SCORES = r'"intermediate_tensor_shape":\s*\{[^{}]*?"dimensions":\s*\[([\d", ]+)\]'

# Our kernels for grouped products, with the rows of a step.
_GROUPED = re.compile(r"grouped_(rows|matrices)_(\d+)/pallas_call")

ATTENTION = "attention"
"""Among the types of numbers that are multiplied: what cuDNN's attention does."""


def product_flops(
    module: Module, where: Computation, instruction: Instruction
) -> Mapping[str, float]:
    """FLOPs of one run by the type of the numbers that are multiplied: "bf16", "highest", ..."""
    found: dict[str, float] = defaultdict(float)
    opcode = instruction.opcode
    if opcode == "dot" or 'custom_call_target="__cublas$' in instruction.attributes:
        dtype, flops = _product(where, instruction)
        found[dtype] += flops
    elif opcode == "custom-call" and (flops := _attention(where, instruction)):
        found[ATTENTION] += flops
    elif opcode == "custom-call" and (call := _GROUPED.search(instruction.scope)):
        dtype, flops = _grouped(where, instruction, call[1] == "rows", int(call[2]))
        found[dtype] += flops
    elif opcode in ("fusion", "fusion-start"):
        for name in instruction.calls:
            inner = module.computations[name]
            for each in inner.instructions.values():
                for dtype, flops in product_flops(module, inner, each).items():
                    found[dtype] += flops
    return found


def _product(where: Computation, instruction: Instruction) -> tuple[str, float]:
    dtype, sizes = _shape(where.instructions[instruction.operands[0]].type)
    listed = next(filter(None, map(instruction.attribute, _CONTRACTED)), "")
    depth = math.prod(sizes[int(axis)] for axis in re.findall(r"\d+", listed))
    if dtype == "f32" and "highest" in instruction.attributes.lower():
        dtype = "highest"
    return dtype, 2.0 * math.prod(_shape(instruction.type)[1]) * depth


def _attention(where: Computation, instruction: Instruction) -> float:
    """FLOPs of a call of cuDNN's attention, without what a causal mask and a window leave out."""
    call, scores = _ATTENTION.search(instruction.attributes), instruction.attribute(_SCORES)
    if call is None or scores is None:
        return 0.0
    sizes = [int(n) for n in re.findall(r"\d+", scores)]
    pairs, length = math.prod(sizes), sizes[-1]
    width = _shape(where.instructions[instruction.operands[0]].type)[1][-1]
    products = _BACKWARD_PRODUCTS if call[1] else _FORWARD_PRODUCTS
    causal = "CAUSAL" in (instruction.attribute(r'"mask_type":\s*"(\w+)"') or "")
    if causal:
        window = min(length, int(instruction.attribute(_WINDOW) or 0) or length)
        pairs *= (window - window**2 / (2 * length)) / length
    return products * 2.0 * pairs * width


def _grouped(
    where: Computation, instruction: Instruction, by_rows: bool, step: int
) -> tuple[str, float]:
    """FLOPs of the most steps that any sizes of groups make; x stands before the last operand."""
    operands = [_shape(where.instructions[name].type) for name in instruction.operands[-2:]]
    (dtype, (rows, depth)), (_, other) = operands
    result = _shape(instruction.type)[1]
    groups = other[0] if by_rows else result[0]
    return dtype, 2.0 * block_count(rows, groups, step) * step * depth * result[-1]


def _shape(kind: str) -> tuple[str, tuple[int, ...]]:
    """Type and sizes of the first array of a type as printed."""
    found = _ARRAY.search(kind)
    if found is None:
        return "", ()
    return found[1], tuple(int(n) for n in found[2].split(",") if n)
