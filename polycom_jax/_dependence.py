"""Which elements of its inputs each element of a program's result may read, axis by axis."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polycom_jax._operations import (
    ELEMENTWISE,
    REVERSE_ONLY,
    as_program,
    inner_programs,
    scan_parts,
)
from polycom_jax._reads import (
    Reach,
    Reads,
    into_loop,
    joined,
    moved,
    out_of_loop,
    reshaped,
    steered,
    unknown,
)

Rule = Callable[[Any, list[Reads]], list[Reads]]
"""What the results of an operation read, given what its operands read."""

CALLS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
    | {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
)
"""Primitives that run the one program within them."""


def reads_of_results(jaxpr: Any, inputs: Sequence[Reads]) -> list[Reads]:
    """What each result of a program reads, where its inputs stand for these; {}: nothing followed.

    An operation that is not known, and what depends on it, reads `Reach.UNKNOWN`.
    """
    known: dict[Any, Reads] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(v: Any) -> Reads:
        return {} if hasattr(v, "val") else known.get(v, {})  # a literal has a value and no hash

    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        if any(operands):
            known.update(zip(eqn.outvars, _results(eqn, operands), strict=True))
    return [read(v) for v in jaxpr.outvars]


def has_reverse_only(jaxpr: Any) -> bool:
    """Whether something in it has no forward derivative."""
    return any(
        eqn.primitive.name in REVERSE_ONLY or any(map(has_reverse_only, inner_programs(eqn)))
        for eqn in jaxpr.eqns
    )


def _results(eqn: Any, operands: list[Reads]) -> list[Reads]:
    name = eqn.primitive.name
    if name in RULES:
        return RULES[name](eqn, operands)
    if name in ELEMENTWISE:
        return [joined(*operands)] * len(eqn.outvars)
    inner = inner_programs(eqn)
    if name in CALLS and len(inner) == 1 and len(inner[0].invars) == len(operands):
        return reads_of_results(inner[0], operands)
    return [joined(*map(unknown, operands))] * len(eqn.outvars)


def _mixing(*names: str) -> Rule:
    """Of the dimensions that a parameter of the operation names, elements are mixed."""

    def rule(eqn: Any, operands: list[Reads]) -> list[Reads]:
        mixed = _dims(eqn, names)
        out = moved(joined(*operands), lambda dim: None if dim in mixed else dim)
        return [out] * len(eqn.outvars)

    return rule


def _dropping(*names: str) -> Rule:
    """Those dimensions go, and their elements are mixed."""

    def rule(eqn: Any, operands: list[Reads]) -> list[Reads]:
        gone = _dims(eqn, names)

        def to(dim: int) -> int | None:
            return None if dim in gone else dim - sum(other < dim for other in gone)

        return [moved(joined(*operands), to)] * len(eqn.outvars)

    return rule


def _dims(eqn: Any, names: Sequence[str]) -> tuple[int, ...]:
    found = next(eqn.params[name] for name in names if name in eqn.params)
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def _keeping(whole: Callable[[Any, int, Any], bool]) -> Rule:
    """Dimensions stay where they are; elements are mixed unless `whole(eqn, dim, result)`.

    What else the operation takes says where it reads, or fills what is left.
    """

    def rule(eqn: Any, operands: list[Reads]) -> list[Reads]:
        first, *others = operands
        return [
            joined(
                moved(first, lambda dim: dim if whole(eqn, dim, out) else None),  # noqa: B023
                *(moved(other, lambda dim: None) for other in others),
            )
            for out in eqn.outvars
        ]

    return rule


def _is_as_long(eqn: Any, dim: int, out: Any) -> bool:
    return eqn.invars[0].aval.shape[dim] == out.aval.shape[dim]


def _is_unpadded(eqn: Any, dim: int, out: Any) -> bool:
    del out
    return tuple(eqn.params["padding_config"][dim]) == (0, 0, 0)


def _has_no_window(eqn: Any, dim: int, out: Any) -> bool:
    return eqn.params["window_dimensions"][dim] == 1 and _is_as_long(eqn, dim, out)


def _sliced_anywhere(eqn: Any, operands: list[Reads]) -> list[Reads]:
    """Of `dynamic_slice`: in a loop over elements it reads the one whose turn it is."""
    first, *indices = operands
    (out,) = eqn.outvars
    kept = moved(first, lambda dim: dim if _is_as_long(eqn, dim, out) else None, lost=Reach.UNKNOWN)
    return [joined(kept, *indices)]


def _updated(eqn: Any, operands: list[Reads]) -> list[Reads]:
    """Of `dynamic_update_slice`: the array stays, the update does where it is as long."""
    first, update, *indices = operands
    (out,) = eqn.outvars
    long = eqn.invars[1].aval.shape
    kept = moved(
        update, lambda dim: dim if long[dim] == out.aval.shape[dim] else None, lost=Reach.UNKNOWN
    )
    return [joined(first, kept, *indices)]


def _broadcast(eqn: Any, operands: list[Reads]) -> list[Reads]:
    dims = eqn.params["broadcast_dimensions"]
    return [moved(operands[0], lambda dim: dims[dim])]


def _stacked(eqn: Any, operands: list[Reads]) -> list[Reads]:
    new = eqn.params["axis"]
    return [moved(joined(*operands), lambda dim: dim + (dim >= new))]


def _sorted_out(eqn: Any, operands: list[Reads]) -> list[Reads]:
    """Of `top_k`, along the last axis where none is named."""
    axis = eqn.params.get("axis", eqn.invars[0].aval.ndim - 1)
    out = moved(operands[0], lambda dim: None if dim == axis else dim)
    return [out] * len(eqn.outvars)


def _transposed(eqn: Any, operands: list[Reads]) -> list[Reads]:
    return [moved(operands[0], tuple(eqn.params["permutation"]).index)]


def _reshaped(eqn: Any, operands: list[Reads]) -> list[Reads]:
    return [reshaped(operands[0], eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape)]


def _each_its_own(eqn: Any, operands: list[Reads]) -> list[Reads]:
    del eqn
    return operands


def _contracted(eqn: Any, operands: list[Reads]) -> list[Reads]:
    """Of `dot_general`: batch dimensions come first, then what is free of each operand."""
    contracted, batch = eqn.params["dimension_numbers"]
    found, start = [], len(batch[0])
    for side, reads in enumerate(operands):
        taken = (*contracted[side], *batch[side])
        free = [dim for dim in range(eqn.invars[side].aval.ndim) if dim not in taken]
        to = {dim: start + i for i, dim in enumerate(free)}
        to |= {dim: i for i, dim in enumerate(batch[side])}
        found.append(moved(reads, to.get))
        start += len(free)
    return [joined(*found)]


def _convolved(eqn: Any, operands: list[Reads]) -> list[Reads]:
    """Examples stay apart; all else is mixed."""
    numbers = eqn.params["dimension_numbers"]
    to = {numbers.lhs_spec[0]: numbers.out_spec[0]} if eqn.params["batch_group_count"] == 1 else {}
    return [joined(moved(operands[0], to.get), moved(operands[1], lambda dim: None))]


def _gathered(eqn: Any, operands: list[Reads]) -> list[Reads]:
    """What is taken whole, and what both are mapped over, stays apart."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, last = eqn.invars[0].aval.shape, eqn.invars[1].aval.ndim - 1
    batching = numbers.operand_batching_dims
    window = [d for d in range(len(shape)) if d not in (*numbers.collapsed_slice_dims, *batching)]
    whole = {
        dim: to
        for dim, to in zip(window, numbers.offset_dims, strict=True)
        if sizes[dim] == shape[dim]
    }
    out = [d for d in range(eqn.outvars[0].aval.ndim) if d not in numbers.offset_dims]
    mapped = dict(zip(batching, (out[i] for i in numbers.start_indices_batching_dims), strict=True))
    taken = moved(operands[0], (whole | mapped).get)
    return [joined(taken, moved(operands[1], lambda dim: None if dim == last else out[dim]))]


def _branched(eqn: Any, operands: list[Reads]) -> list[Reads]:
    which, *rest = operands
    several = [reads_of_results(branch, rest) for branch in inner_programs(eqn)]
    return [joined(*each, steered(which)) for each in zip(*several, strict=True)]


def _looped(eqn: Any, operands: list[Reads]) -> list[Reads]:
    """Of `while_loop`: what is carried round, until nothing more is read."""
    first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    tested, own = operands[:first], operands[first : first + second]
    test, body = (as_program(eqn.params[name]) for name in ("cond_jaxpr", "body_jaxpr"))

    def again(carry: list[Reads]) -> list[Reads]:
        (end,) = reads_of_results(test, [*tested, *carry])
        made = reads_of_results(body, [*own, *carry])
        return [joined(a, b, steered(end)) for a, b in zip(carry, made, strict=True)]

    return _settled(again, operands[first + second :])


def _scanned(eqn: Any, operands: list[Reads]) -> list[Reads]:
    """Slices, and what is stacked of them, stay apart; what is carried on mixes them."""
    (body,) = inner_programs(eqn)
    consts, carried = scan_parts(eqn)
    outer = (getattr(place, "dim", 0) for reads in operands for place in reads.values())
    depth = min(0, *outer) - 1
    own, slices = operands[:consts], operands[consts + carried :]
    slices = [into_loop(reads, depth) for reads in slices]

    def made(carry: list[Reads]) -> list[Reads]:
        return reads_of_results(body, [*own, *carry, *slices])

    def again(carry: list[Reads]) -> list[Reads]:
        new = [out_of_loop(reads, depth, stacked=False) for reads in made(carry)[:carried]]
        return [joined(a, b) for a, b in zip(carry, new, strict=True)]

    carry = _settled(again, operands[consts : consts + carried])
    stacks = [out_of_loop(reads, depth, stacked=True) for reads in made(carry)[carried:]]
    return [*carry, *stacks]


def _settled(again: Callable[[list[Reads]], list[Reads]], carry: list[Reads]) -> list[Reads]:
    while (more := again(carry)) != carry:
        carry = more
    return carry


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
        _dropping("axes"),
    ),
    **dict.fromkeys(("reduce_xor", "argmax", "argmin"), _dropping("axes")),
    "reduce": _dropping("dimensions"),
    "unstack": _dropping("axis"),
    "squeeze": _dropping("dimensions"),
    **dict.fromkeys(
        ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"),
        _mixing("axis"),
    ),
    **dict.fromkeys(("sort", "concatenate"), _mixing("dimension")),
    "rev": _mixing("dimensions"),
    **dict.fromkeys(("slice", "split"), _keeping(_is_as_long)),
    "pad": _keeping(_is_unpadded),
    **dict.fromkeys(
        ("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _keeping(_has_no_window)
    ),
    "dynamic_slice": _sliced_anywhere,
    "dynamic_update_slice": _updated,
    "broadcast_in_dim": _broadcast,
    "stack": _stacked,
    "top_k": _sorted_out,
    "transpose": _transposed,
    "reshape": _reshaped,
    "optimization_barrier": _each_its_own,
    "dot_general": _contracted,
    "conv_general_dilated": _convolved,
    "gather": _gathered,
    "cond": _branched,
    "while": _looped,
    "scan": _scanned,
}
