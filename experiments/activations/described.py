"""What is known of an activation, as numbers and as tables."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.activations.block import Cost
from experiments.terminal.tables import Section
from polycom_jax.row import Parameter
from polycom_jax.table import Activation


def record(act: Activation, cost: Cost | None) -> dict[str, Any]:
    """All of it, for results.json."""
    row = act.row
    return {
        "formula": row.formula,
        "gated": act.gated,
        "reads": "rows" if act.over_rows else "elements",
        "learns": {name: _parameter(each) for name, each in act.parameters.items()},
        "slopes": row.slopes,
        "flops": act.flops,
        "source": row.source,
        "cost": None if cost is None else cost.to_json(),
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    start = parameter.spec(parameter.groups).init(
        jax.random.key(0), (*parameter.shape, *[1] * parameter.by_channel), np.float32
    )
    return {
        "start": np.asarray(start, np.float64).ravel().tolist(),
        "per": parameter.per,
        "groups": parameter.groups,
        "role": parameter.role,
    }


def sections(records: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """What they are, and what they cost where that was measured."""
    found = [_formulas(records), _numbers(records)]
    return [*found, _costs(records)] if any(each["cost"] for each in records.values()) else found


def _formulas(records: Mapping[str, Mapping[str, Any]]) -> Section:
    rows = [(name, each["formula"] or "-", each["source"] or "-") for name, each in records.items()]
    return Section("Formulas", ("activation", "formula", "source"), tuple(rows))


def _numbers(records: Mapping[str, Mapping[str, Any]]) -> Section:
    rows = tuple(
        (
            name,
            "gate, up" if each["gated"] else "x",
            each["reads"],
            ", ".join(_learned(n, p) for n, p in each["learns"].items()) or "-",
            _bounds(each["slopes"]),
            str(each["flops"]),
        )
        for name, each in records.items()
    )
    columns = ("activation", "of", "reads", "learns, and starts at", "derivative", "FLOPs")
    notes = (
        "Derivative: its bounds at the start, by the gate with up = 1; of what reads whole rows it"
        " depends on the row. FLOPs: operations of the forward pass on each element.",
    )
    return Section("Numbers", columns, rows, notes)


def _learned(name: str, parameter: Mapping[str, Any]) -> str:
    start = " ".join(f"{number:.4g}" for number in parameter["start"])
    per = "" if parameter["per"] == "layer" else f" a {parameter['per']}"
    return f"{name} = {start}{per}"


def _bounds(slopes: tuple[float, float] | None) -> str:
    return "-" if slopes is None else f"{slopes[0]:.4g} to {slopes[1]:.4g}"


def _costs(records: Mapping[str, Mapping[str, Any]]) -> Section:
    rows = tuple(
        (
            name,
            f"{each['cost']['width']:,}",
            f"{1e3 * each['cost']['seconds']:.3g}",
            f"{each['cost']['ratio']:.3f}",
            f"{each['cost']['low']:.3f} to {each['cost']['high']:.3f}",
        )
        for name, each in records.items()
        if each["cost"]
    )
    columns = ("activation", "width", "ms", "by GELU's", "quartiles")
    notes = (
        "Forward and backward of norm, products and activation at equal numbers of weights; medians"
        " over rounds in which each block ran once. On other backends, and beside PyTorch:"
        " experiments.benchmark ffn.",
    )
    return Section("Cost of a feed-forward block", columns, rows, notes)
